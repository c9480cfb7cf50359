"""The engine's figures: what it reaches on this GPU, beside the bars that it is held to."""

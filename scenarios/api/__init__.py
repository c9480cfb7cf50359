"""Where should the layers of a model live on N GPUs? Predicted, measured, side by side."""

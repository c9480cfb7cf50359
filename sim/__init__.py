"""Predicts: what a placement takes, by discrete-event simulation. Needs no torch and no GPU."""

if __name__ == "sim":  # found in a checkout, by the name that it had until version 0.1
    raise ImportError(
        "sim is layerwise.sim now: from layerwise.sim import ..., after pip install ."
    )

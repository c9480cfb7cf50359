"""Messages and collectives by payload: `python -m layerwise.hw.links`."""

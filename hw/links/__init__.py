"""Messages and collectives by payload: `python -m hw.links`."""

"""Messages and collectives by payload, and what they and kernels cost each other."""

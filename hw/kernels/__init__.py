"""The kernels that ops name: plain torch, Triton, torch's attention."""

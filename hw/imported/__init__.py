"""Measured traces from other profilers' files: Nsight Systems and torch.profiler."""

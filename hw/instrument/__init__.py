"""Observes the engine without changing it: kernel times, NVTX ranges, CUDA events."""

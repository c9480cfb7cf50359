"""Measure a GPU, fit a profile, or move one."""

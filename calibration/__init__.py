"""Fits: sweeps expressed as programs, least squares on what they measured, profiles."""

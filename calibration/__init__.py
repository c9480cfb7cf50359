"""Fits: sweeps expressed as programs, least squares on what they measured, profiles."""

if __name__ == "calibration":  # found in a checkout, by the name that it had until version 0.1
    raise ImportError(
        "calibration is layerwise.calibration now: from layerwise.calibration import ..., "
        "after pip install ."
    )

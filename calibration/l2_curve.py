"""The L2's edge: a ramp of hit fraction against reuse distance, fitted to a curve of reads.

A pass over a working set W, repeated, reuses each byte after W other bytes, so W is the reuse
distance. Time of a pass: launch + W (h / L2 rate + (1 - h) / HBM rate).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from calibration.least_squares import Column, Estimate, Parameter, fit_positive
from sim.profile import Constant

PARAMETERS = {
    "launch_s": Parameter(start=1.6e-6, low=0.5e-6, high=10e-6, unit="s"),
    "l2_bytes_per_s": Parameter(start=7e12, low=2e12, high=2e13, unit="bytes/s"),
    "hbm_bytes_per_s": Parameter(start=3e12, low=0.5e12, high=8e12, unit="bytes/s"),
    "l2_full_hit": Parameter(start=0.72, low=0.3, high=0.99, unit="of L2 size"),
    "ramp_width": Parameter(start=0.2, low=0.01, high=1.5, unit="of L2 size"),
}


def pass_seconds(values: Mapping[str, float], sizes: Column, l2_bytes: int) -> Column:
    """Seconds of one pass over working sets of `sizes` bytes."""
    distance = sizes / l2_bytes - values["l2_full_hit"]
    hit = np.clip(1 - distance / values["ramp_width"], 0, 1)
    per_byte = hit / values["l2_bytes_per_s"] + (1 - hit) / values["hbm_bytes_per_s"]
    return values["launch_s"] + sizes * per_byte


def fit_l2_curve(
    curve: Sequence[tuple[int, float]], l2_bytes: int, source: str
) -> dict[str, Constant]:
    """Constants `l2_full_hit` and `l2_no_hit` (multiples of the L2's size) and the L2's read rate.

    `curve`: (bytes of the working set, seconds of a pass). Raises FitError when the curve has too
    few sizes or the fit does not converge.
    """
    sizes, seconds = np.array(curve, dtype=np.float64).reshape(-1, 2).T
    fitted = fit_positive(
        "l2 curve", PARAMETERS, lambda values: pass_seconds(values, sizes, l2_bytes), seconds,
        soft=0.05,
    )  # fmt: skip
    full, width = fitted["l2_full_hit"], fitted["ramp_width"]
    edge = Estimate(full.value + width.value, math.hypot(full.standard_error, width.standard_error))
    return {
        "l2_full_hit": full.constant("of L2 size", source),
        "l2_no_hit": edge.constant("of L2 size", source),
        "read_l2_bytes_per_s": fitted["l2_bytes_per_s"].constant("bytes/s", source),
    }

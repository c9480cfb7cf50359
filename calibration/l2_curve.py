"""The L2's edge: a ramp of hit fraction against reuse distance, fitted to a curve of reads.

A pass over a working set W, repeated, reuses each byte after W other bytes, so W is the reuse
distance. Time of a pass: launch + W (h / L2 rate + (1 - h) / HBM rate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares

from calibration.fit import FitError, Parameter
from sim.profile import Constant

PARAMETERS = {
    "launch_s": Parameter(start=1.6e-6, low=0.5e-6, high=10e-6, unit="s"),
    "l2_bytes_per_s": Parameter(start=7e12, low=2e12, high=2e13, unit="bytes/s"),
    "hbm_bytes_per_s": Parameter(start=3e12, low=0.5e12, high=8e12, unit="bytes/s"),
    "l2_full_hit": Parameter(start=0.72, low=0.3, high=0.99, unit="of L2 size"),
    "ramp_width": Parameter(start=0.2, low=0.01, high=1.5, unit="of L2 size"),
}


def pass_seconds(values: dict[str, float], sizes: np.ndarray, l2_bytes: int) -> np.ndarray:
    """Seconds of one pass over working sets of `sizes` bytes."""
    distance = sizes / l2_bytes - values["l2_full_hit"]
    hit = np.clip(1 - distance / values["ramp_width"], 0, 1)
    per_byte = hit / values["l2_bytes_per_s"] + (1 - hit) / values["hbm_bytes_per_s"]
    return values["launch_s"] + sizes * per_byte


def fit_l2_curve(
    curve: Sequence[tuple[int, float]], l2_bytes: int, source: str
) -> dict[str, Constant]:
    """Constants `l2_full_hit` and `l2_no_hit` (multiples of the L2's size) and the curve's rates.

    Raises FitError when the curve has too few sizes or the fit does not converge.
    """
    if len(curve) < 2 * len(PARAMETERS):
        raise FitError(f"l2 curve: {len(curve)} sizes for {len(PARAMETERS)} parameters")
    sizes, seconds = np.array(curve, dtype=np.float64).T
    names = list(PARAMETERS)

    def residuals(logs: np.ndarray) -> np.ndarray:
        values = dict(zip(names, np.exp(logs), strict=True))
        return np.log(pass_seconds(values, sizes, l2_bytes) / seconds)

    result = least_squares(
        residuals,
        [math.log(p.start) for p in PARAMETERS.values()],
        bounds=([math.log(p.low) for p in PARAMETERS.values()],
                [math.log(p.high) for p in PARAMETERS.values()]),
        loss="soft_l1", f_scale=0.05, diff_step=1e-3,
    )  # fmt: skip
    if not result.success:
        raise FitError(f"l2 curve: the fit did not converge: {result.message}")
    values = dict(zip(names, np.exp(result.x), strict=True))
    freedom = max(1, len(sizes) - len(names))
    variance = float(result.fun @ result.fun) / freedom
    errors = np.sqrt(variance * np.diag(np.linalg.pinv(result.jac.T @ result.jac)))
    spread = dict(zip(names, errors, strict=True))

    def constant(value: float, error: float, unit: str) -> Constant:
        return Constant(value=float(f"{value:.4g}"), standard_error=float(f"{error:.3g}"),
                        unit=unit, source=source)  # fmt: skip

    full, width = values["l2_full_hit"], values["ramp_width"]
    edge_error = math.hypot(full * spread["l2_full_hit"], width * spread["ramp_width"])
    return {
        "l2_full_hit": constant(full, full * spread["l2_full_hit"], "of L2 size"),
        "l2_no_hit": constant(full + width, edge_error, "of L2 size"),
        "read_l2_bytes_per_s": constant(
            values["l2_bytes_per_s"], values["l2_bytes_per_s"] * spread["l2_bytes_per_s"], "bytes/s"
        ),
    }

"""The L2's edge: a ramp of hit fraction against reuse distance, fitted to a curve of reads.

A pass over a working set W, repeated, reuses each byte after W other bytes, so W is the reuse
distance; `layerwise.sim.cost.forms.pass_seconds` is the form. Ramps that are smooth or bent, and a logistic, were tried: none left out of the fit is predicted
better than by the straight one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from layerwise.calibration.least_squares import Column, Estimate, Parameter, fit_positive
from layerwise.sim.cost.forms import pass_seconds
from layerwise.sim.profile import Constant

PARAMETERS = {
    "read_launch_s": Parameter(start=1.4e-6, low=0.5e-6, high=10e-6, unit="s"),
    "read_miss_s": Parameter(start=0.6e-6, low=0.01e-6, high=5e-6, unit="s"),
    "read_l2_bytes_per_s": Parameter(start=7e12, low=2e12, high=2e13, unit="bytes/s"),
    "read_hbm_bytes_per_s": Parameter(start=3e12, low=0.5e12, high=8e12, unit="bytes/s"),
    "l2_full_hit": Parameter(start=0.72, low=0.3, high=0.99, unit="of L2 size"),
    "ramp_width": Parameter(start=0.2, low=0.01, high=1.5, unit="of L2 size"),
}


def fit_l2_curve(
    curve: Sequence[tuple[int, float]], l2_bytes: int, source: str
) -> dict[str, Constant]:
    """Constants `l2_full_hit` and `l2_no_hit` (multiples of the L2's size) and those of a read.

    `curve`: (bytes of the working set, seconds of a pass). Raises FitError when the curve has too
    few sizes or the fit does not converge.
    """
    sizes, seconds = np.array(curve, dtype=np.float64).reshape(-1, 2).T
    fitted = fit_positive(
        "l2 curve",
        PARAMETERS,
        lambda values: pass_seconds(_with_edge(values), sizes, l2_bytes),
        seconds,
        soft=0.05,
    )
    full, width = fitted["l2_full_hit"], fitted.pop("ramp_width")
    edge = Estimate(full.value + width.value, math.hypot(full.standard_error, width.standard_error))
    return {
        name: estimate.constant(
            PARAMETERS["l2_full_hit" if name == "l2_no_hit" else name].unit, source
        )
        for name, estimate in (fitted | {"l2_no_hit": edge}).items()
    }


def held_out_curve_errors(curve: Sequence[tuple[int, float]], l2_bytes: int) -> Column:
    """|predicted / measured - 1| of each size, by a fit that never saw it."""
    errors: list[float] = []
    for index, (size, seconds) in enumerate(curve):
        made = fit_l2_curve([*curve[:index], *curve[index + 1 :]], l2_bytes, "")
        values = {name: constant.value for name, constant in made.items()}
        predicted = pass_seconds(values, np.array([size], dtype=np.float64), l2_bytes)
        errors.append(abs(float(predicted[0]) / seconds - 1))
    return np.array(errors)


def _with_edge(values: Mapping[str, float]) -> dict[str, float]:
    return dict(values) | {"l2_no_hit": values["l2_full_hit"] + values["ramp_width"]}

"""Standard errors by resampling: runs where there are several, readings of a run where there is one.

Source: Efron and Tibshirani 1993, the bootstrap over the units that are independent: two readings
of one run share its clocks, two runs do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from layerwise.calibration.least_squares import significant
from layerwise.sim.profile import Constant

RESAMPLES = 400
SEED = 11

Statistic = Callable[[Sequence[float]], float]


def bootstrap_error(runs: Sequence[Sequence[float]], statistic: Statistic) -> float:
    """Standard deviation of `statistic` over all readings, runs drawn anew with their readings.

    A single run has its readings drawn instead; a single reading has no spread, and the error is 0.
    """
    rng = np.random.default_rng(SEED)
    units = [list(run) for run in runs if len(run)]
    if len(units) == 1:
        units = [[reading] for reading in units[0]]
    if len(units) < 2:
        return 0.0
    found: list[float] = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(units), len(units))
        found.append(statistic([reading for unit in drawn for reading in units[unit]]))
    return float(np.std(found, ddof=1))


def resampled_constant(
    runs: Sequence[Sequence[float]], statistic: Statistic, unit: str, source: str, valid: str = ""
) -> Constant:
    """A machine constant from readings of several runs: its value, its error, and how many."""
    readings = [reading for run in runs for reading in run]
    return Constant(
        value=significant(statistic(readings)),
        standard_error=significant(bootstrap_error(runs, statistic)),
        unit=unit,
        source=source,
        num_points=len(readings),
        valid=valid,
    )


def intercept_error(repeats: Sequence[float], seconds: Sequence[float]) -> float:
    """Of the intercept of step time over number of ops: each point left out once (jackknife).

    Too few points to resample: a draw of three of the same tells no line. Source: Efron and
    Tibshirani 1993, section 11.5.
    """
    rows = range(len(repeats))
    if len(repeats) < 3:
        return abs(intercept(repeats, seconds))
    without = [
        intercept([repeats[r] for r in rows if r != out], [seconds[r] for r in rows if r != out])
        for out in rows
    ]
    num = len(without)
    return float(np.sqrt((num - 1) / num * np.sum((np.array(without) - np.mean(without)) ** 2)))


def intercept(repeats: Sequence[float], seconds: Sequence[float]) -> float:
    """Of a line through step times, weighed by relative error: short graphs tell it."""
    times = np.array(seconds)
    return float(np.polyfit(np.array(repeats), times, 1, w=1 / times)[1])

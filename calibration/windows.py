"""What setting L2 aside for persisting windows costs kernels that HBM bounds.

Rows of windows.json: ["mm", rows, columns, inner, {configuration: us}] and ["read", MiB,
{configuration: TB/s}]. "carve-only" sets lines aside and opens no window; "none" does neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median, stdev
from typing import Any

from layerwise.calibration.least_squares import Estimate
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.reading import read_json
from layerwise.sim.profile import Constant

# Weights and reads this many times the L2 leave nothing in it.
HBM_BOUND = 1.25
NOT_MEASURED = Constant(
    value=0.0, standard_error=0.0, unit="1", source="not measured: windows are taken to be free"
)


def fit_set_aside(path: Path, l2_bytes: int, source: str) -> Constant:
    """How much slower the median HBM-bound kernel gets; NOT_MEASURED where there is no file.

    Raises FileFormatError when the file has no case that HBM bounds.
    """
    if not path.exists():
        return NOT_MEASURED
    try:
        slower = list(_slowdowns(read_json(path), HBM_BOUND * l2_bytes))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FileFormatError(f"{path}: has a row that is none of windows.json: {error}") from error
    if len(slower) < 2:
        raise FileFormatError(f"{path}: has {len(slower)} cases that HBM bounds; measure more")
    spread = stdev(slower) / len(slower) ** 0.5
    return Estimate(median(slower) - 1, spread).constant("1", source)


def _slowdowns(rows: list[Any], from_bytes: float) -> Iterator[float]:
    for row in rows:
        times = row[-1]
        if row[0] == "mm" and 2 * row[2] * row[3] >= from_bytes:
            yield times["carve-only"] / times["none"]
        if row[0] == "read" and row[1] * 2**20 >= from_bytes:
            yield times["none"] / times["carve-only"]

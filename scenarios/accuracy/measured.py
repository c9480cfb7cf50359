"""Measurements that only score, with how much they scatter from replay to replay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from layerwise.calibration.dataset import read_sweep
from layerwise.calibration.links import read_links
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.reading import read_json, read_text


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of one thing. `spread`: how far the median replay lies above the best one."""

    name: str
    seconds: float
    spread: float


def measured_points(path: Path) -> Iterator[Measured]:
    """Every unseen point. Raises what `read_sweep` does."""
    measured = read_sweep(path)
    best_s = _best_seconds(path)
    for name, one in measured.items():
        yield Measured(name, one.step_s, one.step_s / best_s.get(name, one.step_s) - 1)


def measured_sustained(path: Path) -> Iterator[Measured]:
    """Every point in sustained work, which a power limit may hold. Raises FileFormatError."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            row = json.loads(line)
            yield Measured(row["name"], float(row["step_s"]), 0.0)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path}: line {number} is no sustained point") from error


def measured_curve(path: Path) -> Iterator[tuple[int, float]]:
    """(bytes, seconds) of one pass over each working set. Raises FileFormatError."""
    try:
        yield from [(int(size), float(seconds)) for size, seconds in read_json(path)]
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: is no curve of (bytes, seconds): {error}") from error


def measured_links(path: Path) -> Iterator[tuple[str, int, Measured]]:
    """(transfer, payload_bytes, seconds) that no regime is fitted to, in graphs.

    The spread is that of the record with the same median. Raises FileFormatError.
    """
    data = read_json(path)
    records = data.get("timings", ()) if isinstance(data, dict) else ()
    spreads = {
        (int(one["payload_bytes"]), float(one["median_s"])): one["median_s"] / one["min_s"] - 1
        for one in records
    }
    for name, timings in read_links(path).items():
        for size, seconds in timings.score:
            one = Measured(f"{name}/{size}", seconds, spreads.get((size, seconds), 0.0))
            yield name, size, one


def _best_seconds(path: Path) -> dict[str, float]:
    """The best replay by name, of lines that `read_sweep` has found good."""
    rows = [json.loads(line) for line in read_text(path).splitlines() if line.strip()]
    return {row["name"]: float(row["best_s"]) for row in rows if "best_s" in row}

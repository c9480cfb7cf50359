"""What must not enter a fit: named with its file and row, and refused or set aside, never averaged in.

Refused is what means that something is wrong with the folder: another GPU, another model, a run
kept for scoring. Set aside (quarantined, and listed) is what one bad moment did to one run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from layerwise.calibration.dataset import Quarantine
from layerwise.calibration.points import SweepPoint
from layerwise.calibration.unseen import shapes_of, unseen
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import FileFormatError, LayerwiseError
from layerwise.sim.plan.files import scenario_from_data
from layerwise.sim.plan.reading import read_json
from layerwise.sim.plan.scenario import compile_run
from layerwise.sim.trace import Trace, is_held_down

# The first key that a trace has says whether its timed repeats were slowed down.
THROTTLED = ("throttled", "throttled_after")


def read_curve(path: Path) -> list[tuple[int, float]]:
    """(bytes of a working set, seconds of a pass), as measured.

    Raises FileFormatError naming the row that is no size and time, or is there twice.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise FileFormatError(f"{path}: is no list of [bytes, seconds]; measure again")
    found: dict[int, float] = {}
    for number, row in enumerate(rows, 1):
        size, seconds = _size_and_seconds(path, number, row)
        if size in found:
            raise FileFormatError(f"{path}: row {number} measures {size} bytes again; keep one")
        found[size] = seconds
    return list(found.items())


def _size_and_seconds(path: Path, number: int, row: Any) -> tuple[int, float]:
    try:
        size, seconds = int(row[0]), float(row[1])
    except (TypeError, ValueError, IndexError) as error:
        raise FileFormatError(f"{path}: row {number} is no [bytes, seconds]: {row!r}") from error
    if not (size > 0 and math.isfinite(seconds) and seconds > 0):
        raise FileFormatError(
            f"{path}: row {number}: a pass over {size} bytes took {seconds} s; measure again"
        )
    return size, seconds


def without_throttled(
    traces: Iterable[tuple[Path, Trace]], quarantine: Quarantine
) -> list[tuple[Path, Trace]]:
    """The traces whose GPU was not held down."""
    kept: list[tuple[Path, Trace]] = []
    for path, trace in traces:
        reason = next((trace.environment[k] for k in THROTTLED if k in trace.environment), "no")
        if is_held_down(reason):
            quarantine(f"{path.name}, {trace.name}", f"the GPU throttled: {reason}")
        else:
            kept.append((path, trace))
    return kept


def check_trace(path: Path, trace: Trace, gpu: str, environment: Mapping[str, str]) -> None:
    """Raise FileFormatError for a trace of another GPU, or whose ops are not its scenario's.

    `environment` is that of the folder. A trace without rows was timed as a whole.
    """
    scenario = _scenario(path, trace)
    if scenario.cluster.gpu.name != gpu:
        raise FileFormatError(
            f"{path}: {trace.name} ran on {scenario.cluster.gpu.name}, and the fit is of {gpu}; "
            "keep it in a folder of its own"
        )
    for key in ("gpu", "num_sms", "l2_bytes"):
        here, there = environment.get(key), trace.environment.get(key)
        if here and there and here != there:
            raise FileFormatError(
                f"{path}: {trace.name} was measured where {key}={there!r}, the folder where "
                f"{key}={here!r}; keep the GPUs apart"
            )
    if trace.rows:
        _check_ops(path, trace)


def _check_ops(path: Path, trace: Trace) -> None:
    scenario = _scenario(path, trace)
    try:
        run = compile_run(scenario)
    except LayerwiseError as error:
        raise FileFormatError(f"{path}: line 1: its scenario does not compile: {error}") from error
    rank = max(scenario.run.only_rank, 0)
    expected = {placed.name for step in run for placed in step.programs[rank]}
    groups: dict[tuple[int, int], Counter[str]] = {}
    for number, row in enumerate(trace.rows, 2):
        if row.rank == rank and row.op not in expected:
            raise FileFormatError(
                f"{path}: line {number}: op {row.op} is none of {trace.name}'s; is it a trace of "
                "another model? measure again"
            )
        if row.rank == rank:
            groups.setdefault((row.repeat, row.step), Counter())[row.op] += 1
    steps = [{placed.name for placed in step.programs[rank]} for step in run]
    for (repeat, step), seen in groups.items():
        wanted = steps[step % len(steps)]
        if missing := sorted(wanted - seen.keys()):
            raise FileFormatError(
                f"{path}: repeat {repeat}, step {step} lacks {len(missing)} of {len(wanted)} ops, "
                f"{missing[0]} first; measure again"
            )


def _scenario(path: Path, trace: Trace) -> Any:
    return scenario_from_data(trace.scenario, str(path))


def check_apart(points: Iterable[SweepPoint], kernels: KernelChoice) -> None:
    """Raise FileFormatError when a point to fit has a shape, of its kind, that is kept for scoring."""
    kept = {key for point in unseen(kernels) for key in _keys(point)}
    seen = [point.name for point in points if kept & _keys(point)]
    if seen:
        raise FileFormatError(
            f"{len(seen)} measured points have shapes that only score a fit, {seen[0]!r} first; "
            "take them out: what was fitted cannot be validated"
        )


def _keys(point: SweepPoint) -> set[tuple[str, tuple[int, ...]]]:
    return {(point.kind, shape) for shape in shapes_of([point])}

"""What a sweep measured, joined with what each op did: one table per kind of op."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from layerwise.calibration.bootstrap import intercept
from layerwise.calibration.sweeps import SweepPoint
from layerwise.sim.cost.forms import ramp
from layerwise.sim.cost.kinds import KINDS, kind_named
from layerwise.sim.cost.model import SpeedOfLight, Traffic
from layerwise.sim.machine.l2 import L2State
from layerwise.sim.plan import ops
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.reading import read_text

GPU_BOUND_REPEATS = 32
Column = npt.NDArray[np.float64]
Quarantine = Callable[[str, str], None]
"""Hears of what was left out of a fit: where it stands, and why."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A sweep point as it was measured: seconds of one step, and how many ops were in it."""

    step_s: float
    num_ops: int


@dataclass(frozen=True)
class RampedL2(SpeedOfLight):
    """The speed of light with a calibrated L2 ramp: all the traffic count needs."""

    l2_full_hit: float = 0.75
    l2_no_hit: float = 0.95

    @property
    def hit_horizon_bytes(self) -> float:
        return self.l2_no_hit * self.cluster.gpu.l2_bytes

    def hit_fraction(self, reuse_distance_bytes: int) -> float:
        size = self.cluster.gpu.l2_bytes
        low, high = self.l2_full_hit * size, self.l2_no_hit * size
        return ramp(reuse_distance_bytes, low, high)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One kind of op: a row per point. `seconds` is the measured time of one op, gap included.

    `features` [points, dimensions]; `hbm_bytes`, `l2_bytes`: traffic per op in the steady state.
    """

    kind: str
    names: tuple[str, ...]
    features: npt.NDArray[np.float64]
    seconds: Column
    hbm_bytes: Column
    l2_bytes: Column
    flops: Column
    head_dim: Column
    is_cold: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, index: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Table:
        """The rows of an index or a mask."""
        rows = np.arange(len(self))[index]
        return Table(
            kind=self.kind,
            names=tuple(self.names[row] for row in rows),
            features=self.features[rows],
            seconds=self.seconds[rows],
            hbm_bytes=self.hbm_bytes[rows],
            l2_bytes=self.l2_bytes[rows],
            flops=self.flops[rows],
            head_dim=self.head_dim[rows],
            is_cold=self.is_cold[rows],
        )


def read_sweep(
    path: Path, quarantine: Quarantine = lambda _where, _why: None
) -> dict[str, Measurement]:
    """Every measured point by name; points that failed or did not fit are left out.

    A point measured while the GPU slowed itself down (`throttled`) is left out as well, and told to
    `quarantine`. Raises FileFormatError naming a bad line, and a point that is there twice.
    """
    found: dict[str, Measurement] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            row = json.loads(line)
            if "step_s" not in row and ("does_not_fit" in row or "failed" in row):
                continue
            name, one = row["name"], Measurement(float(row["step_s"]), int(row["num_ops"]))
            throttled = row.get("throttled", "no")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise FileFormatError(f"{path}: line {number} is not a sweep point: {error}") from error
        if not (math.isfinite(one.step_s) and one.step_s > 0):
            raise FileFormatError(
                f"{path}: line {number}: {name} took {one.step_s} s; remove the line, and measure "
                "that point again"
            )
        if throttled != "no":
            quarantine(f"{path.name} line {number}, {name}", f"the GPU throttled: {throttled}")
            continue
        if name in found:
            raise FileFormatError(
                f"{path}: lines {lines[name]} and {number} both measure {name}; keep one of them"
            )
        found[name], lines[name] = one, number
    return found


def check_sweep(points: Iterable[SweepPoint], measured: Mapping[str, Measurement]) -> None:
    """Raise FileFormatError when measurements are of another sweep than these points."""
    repeats = {point.name: point.num_repeats for point in points}
    unknown = sorted(measured.keys() - repeats.keys())
    if unknown:
        raise FileFormatError(
            f"{len(unknown)} measured points are not in the sweep, {unknown[0]!r} first; "
            "measure again, or fit with the version that measured them"
        )
    for name, one in measured.items():
        if one.num_ops != repeats[name]:
            raise FileFormatError(
                f"{name} was measured with {one.num_ops} ops in a step and the sweep now has "
                f"{repeats[name]}; measure again"
            )


def graph_launch_seconds(
    points: Iterable[SweepPoint], measured: Mapping[str, Measurement]
) -> float:
    """What every replay of a graph costs the GPU: the intercept of step time over number of ops."""
    return max(0.0, intercept(*graph_launch_steps(points, measured)))


def graph_launch_steps(
    points: Iterable[SweepPoint], measured: Mapping[str, Measurement]
) -> tuple[list[int], list[float]]:
    """(numbers of ops, step times) of the graphs that tell it.

    Short graphs are left out: there the host, not the GPU, sets the pace of replays. Raises
    FileFormatError with fewer than three.
    """
    found = [
        (p.num_repeats, measured[p.name].step_s)
        for p in points
        if p.kind == "graph_launch" and p.name in measured and p.num_repeats >= GPU_BOUND_REPEATS
    ]
    if len(found) < 3:
        raise FileFormatError("the sweep has fewer than three graph_launch points; measure again")
    return [repeats for repeats, _ in found], [seconds for _, seconds in found]


def tables(
    points: Iterable[SweepPoint],
    measured: Mapping[str, Measurement],
    l2: RampedL2,
    graph_launch_s: float = 0.0,
) -> dict[str, Table]:
    """Join points and measurements by name; points without a measurement are left out.

    `graph_launch_s` is taken off every step before it is divided among its ops.
    """
    points = [point for point in points if point.name in measured and point.kind in KINDS]
    op_seconds = {
        p.name: (measured[p.name].step_s - graph_launch_s) / p.num_repeats for p in points
    }
    rows: dict[str, list[tuple[SweepPoint, Traffic]]] = {}
    for point in points:
        rows.setdefault(point.kind, []).append((point, steady_traffic(point, l2)))
    return {kind: _table(kind, found, op_seconds) for kind, found in sorted(rows.items())}


def steady_traffic(point: SweepPoint, l2: RampedL2) -> Traffic:
    """Mean traffic of one op once the program has run before (graphs are replayed)."""
    state = L2State(l2)
    total = np.zeros(4)
    for is_counted in (False, True):
        for placed in point.program:
            traffic = state.traffic_of(placed.op, placed.layer, placed.microbatch)
            if is_counted:
                total += (
                    traffic.hbm_read_bytes,
                    traffic.l2_read_bytes,
                    traffic.written_bytes,
                    traffic.written_back_bytes,
                )
    read, hit, written, back = (round(float(value) / point.num_repeats) for value in total)
    return Traffic(read, hit, written, back)


def gpu_with_ramp(gpu: str, full_hit: float, no_hit: float) -> RampedL2:
    """The L2 of a known GPU with these ramp constants."""
    return RampedL2(cluster=dgx_cluster(GPUS[gpu], 1), l2_full_hit=full_hit, l2_no_hit=no_hit)


def _table(
    kind: str, rows: list[tuple[SweepPoint, Traffic]], seconds: Mapping[str, float]
) -> Table:
    features_of = kind_named(kind).features_of
    return Table(
        kind=kind,
        names=tuple(point.name for point, _ in rows),
        features=np.array([features_of(point.op) for point, _ in rows], dtype=np.float64),
        seconds=np.array([seconds[point.name] for point, _ in rows]),
        hbm_bytes=np.array([traffic.hbm_bytes for _, traffic in rows], dtype=np.float64),
        l2_bytes=np.array([traffic.l2_bytes for _, traffic in rows], dtype=np.float64),
        flops=np.array([_attention_flops(point) for point, _ in rows], dtype=np.float64),
        head_dim=np.array([getattr(point.op, "head_dim", 0) for point, _ in rows], np.float64),
        is_cold=np.array([point.name.endswith("/cold") for point, _ in rows]),
    )


def _attention_flops(point: SweepPoint) -> int:
    return point.op.flops if isinstance(point.op, ops.Attention) else 0

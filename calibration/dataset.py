"""What a sweep measured, joined with what each op did: one table per kind of op."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calibration.sweeps import SweepPoint
from sim.cost.model import SpeedOfLight, Traffic
from sim.cost.shapes import FEATURES, features_of
from sim.machine.l2 import L2State
from sim.plan import ops
from sim.plan.demand import attention_flops
from sim.plan.errors import FileFormatError
from sim.plan.hardware import GPUS, GpuSpec, dgx_cluster

GPU_BOUND_REPEATS = 32
Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RampedL2(SpeedOfLight):
    """The speed of light with a calibrated L2 ramp: all the traffic count needs."""

    l2_full_hit: float = 0.75
    l2_no_hit: float = 0.95

    def hit_fraction(self, reuse_distance_bytes: int) -> float:
        size = self.cluster.gpu.l2_bytes
        low, high = self.l2_full_hit * size, self.l2_no_hit * size
        return min(1.0, max(0.0, (high - reuse_distance_bytes) / (high - low)))


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
            kind=self.kind, names=tuple(self.names[row] for row in rows),
            features=self.features[rows], seconds=self.seconds[rows],
            hbm_bytes=self.hbm_bytes[rows], l2_bytes=self.l2_bytes[rows], flops=self.flops[rows],
            head_dim=self.head_dim[rows], is_cold=self.is_cold[rows],
        )  # fmt: skip


def read_sweep(path: Path) -> dict[str, float]:
    """Seconds per step of every measured point. Raises FileFormatError naming a bad line."""
    seconds: dict[str, float] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if "step_s" not in row and ("does_not_fit" in row or "failed" in row):
                continue
            value = float(row["step_s"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path}: line {number} is not a sweep point: {error}") from error
        if not (math.isfinite(value) and value > 0):
            raise FileFormatError(f"{path}: line {number}: {row['name']} took {value} s")
        seconds[row["name"]] = value
    return seconds


def graph_launch_seconds(points: Iterable[SweepPoint], seconds: Mapping[str, float]) -> float:
    """What every replay of a graph costs the GPU: the intercept of step time over number of ops.

    Short graphs are left out: there the host, not the GPU, sets the pace of replays.
    """
    found = [(p.num_repeats, seconds[p.name]) for p in points
             if p.kind == "graph_launch" and p.name in seconds
             and p.num_repeats >= GPU_BOUND_REPEATS]  # fmt: skip
    if len(found) < 3:
        raise FileFormatError("the sweep has fewer than three graph_launch points; measure again")
    repeats, times = np.array(found).T
    # Relative weights: the short graphs tell the intercept.
    _, intercept = np.polyfit(repeats, times, 1, w=1 / times)
    return max(0.0, float(intercept))


def tables(
    points: Iterable[SweepPoint],
    seconds: Mapping[str, float],
    l2: RampedL2,
    graph_launch_s: float = 0.0,
) -> dict[str, Table]:
    """Join points and measurements by name; points without a measurement are left out.

    `graph_launch_s` is taken off every step before it is divided among its ops.
    """
    op_seconds = {
        p.name: (seconds[p.name] - graph_launch_s) / p.num_repeats
        for p in points
        if p.name in seconds
    }
    rows: dict[str, list[tuple[SweepPoint, Traffic]]] = {}
    for point in points:
        if point.name in op_seconds and point.kind in FEATURES:
            rows.setdefault(point.kind, []).append((point, steady_traffic(point, l2)))
    return {kind: _table(kind, found, op_seconds) for kind, found in sorted(rows.items())}


def steady_traffic(point: SweepPoint, l2: RampedL2) -> Traffic:
    """Mean traffic of one op once the program has run before (graphs are replayed)."""
    state = L2State(l2)
    total = np.zeros(3)
    for is_counted in (False, True):
        for placed in point.program:
            traffic = state.traffic_of(placed.op, placed.layer, placed.microbatch)
            if is_counted:
                total += (traffic.hbm_read_bytes, traffic.l2_read_bytes, traffic.written_bytes)
    return Traffic(*(round(value / point.num_repeats) for value in total))


def gpu_with_ramp(gpu: str, full_hit: float, no_hit: float) -> RampedL2:
    """The L2 of a known GPU with these ramp constants."""
    return RampedL2(
        cluster=dgx_cluster(_gpu(gpu), 1), l2_full_hit=full_hit, l2_no_hit=no_hit
    )


def _gpu(name: str) -> GpuSpec:
    return GPUS[name]


def _table(
    kind: str, rows: list[tuple[SweepPoint, Traffic]], seconds: Mapping[str, float]
) -> Table:
    return Table(
        kind=kind,
        names=tuple(point.name for point, _ in rows),
        features=np.array([features_of(point.op) for point, _ in rows], dtype=np.float64),
        seconds=np.array([seconds[point.name] for point, _ in rows]),
        hbm_bytes=np.array([traffic.hbm_bytes for _, traffic in rows], dtype=np.float64),
        l2_bytes=np.array([traffic.l2_read_bytes for _, traffic in rows], dtype=np.float64),
        flops=np.array([_attention_flops(point) for point, _ in rows], dtype=np.float64),
        head_dim=np.array([getattr(point.op, "head_dim", 0) for point, _ in rows], np.float64),
        is_cold=np.array([point.name.endswith("/cold") for point, _ in rows]),
    )


def _attention_flops(point: SweepPoint) -> int:
    return attention_flops(point.op) if isinstance(point.op, ops.Attention) else 0

"""In which order points are measured, so that a run cut off by its budget is still of use.

First what every fit needs at least; then points where regimes change (waves, tiles, split-k, the
L2's edge), which interpolation gets wrong; then where a profile at hand is least certain; then the
rest. Within each part a seed decides, so that drift of clocks does not look like physics.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from layerwise.calibration.dataset import Measurement
from layerwise.calibration.denser import denser
from layerwise.calibration.edges import fitted_edges
from layerwise.calibration.fit import parameters_of
from layerwise.calibration.points import SweepPoint
from layerwise.calibration.sweeps import OTHER_KERNELS, supplement, sweep
from layerwise.sim.cost.kinds import KINDS, kind_named, kind_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.hardware import GpuSpec
from layerwise.sim.plan.ops import LocalOp
from layerwise.sim.plan.program import buffers_of
from layerwise.sim.profile import Profile

# Every fold of five must keep two points a parameter, whichever shapes fall into it.
POINTS_PER_PARAMETER = 3
SPARE_POINTS = 5
TILE = 128
# So near to a whole number of waves, in their number, a shape lies at an edge; later waves blur.
NEAR_A_WAVE, MAX_WAVES = 0.1, 4.0
SPLIT_WAVES, SPLIT_INNER = 0.5, 4096
L2_EDGE = (0.6, 1.1)
# Of what is left, this share is measured before the rest: where intervals are widest.
UNCERTAIN_SHARE = 1 / 3
# Measured once more at the end, of those that came first.
REPEATED_SHARE, FIRST_SHARE = 0.03, 0.1
MIN_REPEATED, MAX_REPEATED = 8, 100


# What a fit may see, a list a task.
FIT_POINTS: dict[str, Callable[[KernelChoice], list[SweepPoint]]] = {
    "sweep": sweep,
    "supplement": supplement,
    "denser": denser,
    **OTHER_KERNELS,
    "edges": fitted_edges,
}


def every_point(kernels: KernelChoice) -> list[SweepPoint]:
    """All points that a fit may see, each once."""
    return list({p.name: p for made in FIT_POINTS.values() for p in made(kernels)}.values())


def designed(
    points: Iterable[SweepPoint], gpu: GpuSpec, seed: int = 12, reference: Profile | None = None
) -> list[SweepPoint]:
    """The same points in the order in which a budget buys most.

    `reference`: a profile whose intervals tell where a model of this kind is least certain.
    """
    rng = random.Random(seed)
    left = list({point.name: point for point in points}.values())
    rng.shuffle(left)
    edges = {point.name for point in left if is_edge(point, gpu)}
    first = _needed(left, edges)
    taken = {point.name for point in first}
    second = [p for p in left if p.name in edges and p.name not in taken]
    rest = [p for p in left if p.name not in edges and p.name not in taken]
    widths = {p.name: _half_width(p, gpu, reference) for p in rest}
    widest = sorted(rest, key=lambda p: -widths[p.name])[: round(UNCERTAIN_SHARE * len(rest))]
    uncertain = {p.name for p in widest} if reference else set[str]()
    rng.shuffle(first)
    # Without a graph's launch no other point can be read.
    first.sort(key=lambda p: p.kind in KINDS)
    return [
        *first,
        *second,
        *(p for p in rest if p.name in uncertain),
        *(p for p in rest if p.name not in uncertain),
    ]


def needed_points(kind: str) -> int:
    """How many points a kind's fit needs before it can be scored as well."""
    return POINTS_PER_PARAMETER * len(parameters_of(kind)) + SPARE_POINTS


def _needed(points: Sequence[SweepPoint], edges: set[str]) -> list[SweepPoint]:
    """What a fit of every kind needs, edges first; all that tell a graph's launch."""
    counts: dict[str, int] = {}
    found: list[SweepPoint] = []
    for point in sorted(points, key=lambda p: p.name not in edges):
        num = counts[point.kind] = counts.get(point.kind, 0) + 1
        if point.kind not in KINDS or num <= needed_points(point.kind):
            found.append(point)
    return found


def is_edge(point: SweepPoint, gpu: GpuSpec) -> bool:
    """Does a regime change around this shape: a whole wave, split-k, or the edge of the L2?"""
    waves = _waves(point.op, gpu)
    at_wave = 0 < waves <= MAX_WAVES and abs(waves - max(1, round(waves))) <= NEAR_A_WAVE
    op = point.op
    splits = isinstance(op, ops.Matmul) and waves < SPLIT_WAVES and op.inner >= SPLIT_INNER
    low, high = (share * gpu.l2_bytes for share in L2_EDGE)
    return at_wave or splits or (_stays(point) and low <= _touched_bytes(op) <= high)


def _waves(op: LocalOp, gpu: GpuSpec) -> float:
    """Tiles, or walks over keys, for each SM; 0 where an op has neither."""
    kind = kind_of(op)
    first, *rest = kind.features_of(op)
    match kind.family:
        case "matmul":
            return math.ceil(first / TILE) * math.ceil(rest[0] / TILE) / gpu.num_sms
        case "decode attention":
            return first / gpu.num_sms
        case "prefill attention":
            return first * math.ceil(rest[0] / TILE) / gpu.num_sms
        case "rotary write" | "pointwise ops":
            return 0.0


def _stays(point: SweepPoint) -> bool:
    """Does each repeat touch the same bytes?"""
    return len({part.layer for part in point.program.parts}) == 1


def _touched_bytes(op: LocalOp) -> int:
    return sum(buffer.num_bytes for buffer in buffers_of(op))


def _half_width(point: SweepPoint, gpu: GpuSpec, reference: Profile | None) -> float:
    """The reference's interval at this shape, with all of it in the L2 or none: near enough."""
    fit = reference.fits.get(point.kind) if reference else None
    if fit is None or point.kind not in KINDS:
        return math.inf
    misses = 0.0 if _stays(point) and _touched_bytes(point.op) < gpu.l2_bytes else 1.0
    kind = kind_named(point.kind)
    return fit.half_width(kind.place_of(kind.features_of(point.op), misses))


def anchor_points(kernels: KernelChoice, kinds: Iterable[str], seed: int = 14) -> list[SweepPoint]:
    """One or two hundred points of the sweeps, some of every kind, in random order.

    What tells a graph's launch comes first: nothing else can be read without it.
    """
    wanted = {kind: kind_named(kind).anchor_points for kind in kinds}
    points = every_point(kernels)
    rng = random.Random(seed)
    rng.shuffle(points)
    chosen: list[SweepPoint] = []
    for one in points:
        if wanted.get(one.kind, 0) > 0:
            wanted[one.kind] -= 1
            chosen.append(one)
    return [*(p for p in points if p.kind == "graph_launch"), *chosen]


def to_repeat(measured: Sequence[str], seed: int = 13) -> list[str]:
    """Names to measure once more at the end: a small random share, of those measured first."""
    num = min(MAX_REPEATED, max(MIN_REPEATED, round(REPEATED_SHARE * len(measured))))
    early = list(measured[: max(num, round(FIRST_SHARE * len(measured)))])
    return random.Random(seed).sample(early, min(num, len(early)))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The same points at the start and at the end: how far apart, and in which direction.

    `median`, `p90`: of |ln(end / start)|; `drift`: the median with its sign.
    """

    num: int
    median: float
    p90: float
    drift: float


def run_to_run(first: Mapping[str, Measurement], again: Mapping[str, Measurement]) -> Spread | None:
    """How far two measurements of the same points lie apart; None where none was repeated."""
    logs = [math.log(again[name].step_s / first[name].step_s) for name in again if name in first]
    if not logs:
        return None
    sizes = sorted(abs(one) for one in logs)
    return Spread(
        num=len(logs),
        median=median(sizes),
        p90=sizes[round(0.9 * (len(sizes) - 1))],
        drift=median(logs),
    )

"""How sure a prediction is: the intervals of its ops, carried to the step by critical path.

The step's time moves with an op's by the share of the step that the op takes on the path. In steady
decode that path is the rank that paces the stream; where that rank idles, somebody else's work is
on it, and stands in by its mean over the ranks. Errors of one kind of op add up (one library, often
the same neighbours), those of different kinds are independent. Layers kept for fitting do not tell
this from other rules (shape by shape, all in line); what they scatter under it is in the profile's
`step_factor`. Messages and collectives add their tables' own. Nothing is simulated again.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from layerwise.sim.cost.kinds import kind_of
from layerwise.sim.cost.model import Calibrated, CostModel, OpCost, TransferCost
from layerwise.sim.cost.unfitted import Change, half_width_of
from layerwise.sim.machine.account import spells_of
from layerwise.sim.machine.blocks import Timed
from layerwise.sim.machine.rank import RankLog
from layerwise.sim.plan import ops
from layerwise.sim.plan.hardware import ClusterSpec, HeldCluster
from layerwise.sim.plan.ops import LocalOp, Op, PointToPointOp
from layerwise.sim.simulate import PS, Simulation

Source = tuple[str, tuple[float, ...]]
# Of a message's or a collective's table: errors that whole steps of one GPU say nothing about.
LINK_KINDS = ("send", "all_reduce", "all_gather")
# Ends the name of the error that comes of what a fit has not seen: a kind of error by itself.
UNFITTED = ", unfitted"
# Errors of the machine, not of a fit's form: neither is in what the layers kept for fitting scatter.
BETWEEN_GPUS, HELD_CLOCK = "between GPUs", "clock under power"
# How far one GPU's times lie from those of the GPU that was fitted, 90 %, as ln. Five H200s read HBM
# at 4.34, 4.39, 4.42, 4.48 and 4.50 TB/s: 1.4 % (standard deviation), 2.7 % for 90 % of a sixth;
# bursts of large matmuls were 2 to 3 % apart on two of them. Source: the read rates in
# calibration/traces (fit-, engine-, unseen- and flash-h200), power.jsonl against the sweep.
BETWEEN_GPUS_HALF_WIDTH = 0.027


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`, the unit of what it is of; measured values lie in 90 % of them."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Is it inside?"""
        return self.low <= value <= self.high


def around(value: float, half_width: float) -> Interval:
    """The interval of a prediction whose ln(measured / predicted) has this half-width."""
    return Interval(value * math.exp(-half_width), value * math.exp(half_width))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One distinct op of a step: its kind and dimensions, and the share of the step it decides.

    `half_width` and `distance` as in `OpCost`; `is_beyond`: outside what was calibrated.
    `unfitted_half_width`: what of it comes of a kernel, head size or dtype that no fit has seen.
    """

    name: str
    kind: str
    dimensions: tuple[float, ...]
    share: float
    half_width: float
    distance: float
    is_beyond: bool
    unfitted_half_width: float = 0.0

    @property
    def errors(self) -> dict[str, float]:
        """Its part of the step's half-width by kind of error: of the fit, and of what it has not seen.

        They are independent: an op's half-width is the root of their squares.
        """
        unfitted = self.unfitted_half_width
        if not unfitted:
            return {self.kind: self.carried}
        fitted = math.sqrt(max(0.0, self.half_width**2 - unfitted**2))
        return {self.kind: self.share * fitted, f"{self.kind}{UNFITTED}": self.share * unfitted}

    @property
    def carried(self) -> float:
        """Its part of the step's half-width."""
        return self.share * self.half_width


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Why a step's interval is as wide as it is; contributions from the widest."""

    contributions: tuple[Contribution, ...]
    step_factor: float

    @cached_property
    def half_width(self) -> float:
        """Of the step's 90 % interval, as ln(measured / predicted)."""
        return math.sqrt(
            sum(self.factor_of(kind) ** 2 * part**2 for kind, part in self.by_kind.items())
        )

    @cached_property
    def by_kind(self) -> dict[str, float]:
        """What each kind of error carries to the step."""
        found: dict[str, float] = defaultdict(float)
        for one in self.contributions:
            for kind, carried in one.errors.items():
                found[kind] += carried
        return dict(found)

    def factor_of(self, kind: str) -> float:
        """Whole steps of one GPU tell nothing about links, other GPUs, or what no fit has seen."""
        apart = (*LINK_KINDS, BETWEEN_GPUS, HELD_CLOCK)
        return 1.0 if kind in apart or kind.endswith(UNFITTED) else self.step_factor

    @property
    def beyond(self) -> tuple[Contribution, ...]:
        """The ops outside what was calibrated."""
        return tuple(c for c in self.contributions if c.is_beyond)

    def around(self, value: float) -> Interval:
        """The interval of the step's time, or of anything in proportion or inverse to it."""
        return around(value, self.half_width)


def half_width_of_ratio(one: Uncertainty, other: Uncertainty) -> float:
    """Of the ratio of two steps, as ln: the error of a shape that both have cancels where it can.

    Different shapes of a kind are independent here: that they were common would narrow it.
    """
    parts: dict[Source, float] = defaultdict(float)
    for sign, each in ((1, one), (-1, other)):
        for c in each.contributions:
            for kind, carried in c.errors.items():
                parts[kind, c.dimensions] += sign * each.factor_of(kind) * carried
    return math.sqrt(sum(part**2 for part in parts.values()))


@dataclass(slots=True)
class _Found:
    """Time of one source so far, and an op that stands for it: its widest."""

    time_ps: int = 0
    name: str = ""
    half_width: float = 0.0
    distance: float = 0.0
    is_beyond: bool = False
    unfitted_half_width: float = 0.0

    def add(self, name: str, time_ps: int, cost: OpCost | TransferCost) -> None:
        self.time_ps += time_ps
        if not self.name or cost.half_width > self.half_width:
            self.name, self.half_width = name, cost.half_width
            if isinstance(cost, OpCost):
                self.distance = cost.distance
                self.unfitted_half_width = half_width_of(cost.changes)
        self.is_beyond = self.is_beyond or (isinstance(cost, OpCost) and cost.extrapolated)


def uncertainty_of(
    simulation: Simulation, steps: Sequence[int], step_s: float
) -> Uncertainty | None:
    """How sure the time `step_s` of these steps is.

    None under a belief that has no intervals, and where kernels run that nobody measured.
    """
    cost = simulation.machine.cost
    if not isinstance(cost, Calibrated) or cost.belief != "calibrated":
        return None
    if any(change.half_width is None for change in unfitted_of(simulation)):
        return None
    spent = {rank: _spent(simulation, rank, steps, cost.profile.fits) for rank in simulation.ranks}
    compute = {
        rank: sum(f.time_ps for s, f in found.items() if s[0] != "send")
        for rank, found in spent.items()
    }
    pacing = max(compute, key=lambda rank: compute[rank])
    idle = max(0.0, 1 - compute[pacing] * PS / step_s)
    total_ps = (
        sum(
            found.time_ps * simulation.num_alike(rank)
            for rank, each in spent.items()
            for found in each.values()
        )
        or 1
    )
    shares: dict[Source, float] = defaultdict(float)
    widest: dict[Source, _Found] = {}
    for rank, each in spent.items():
        for source, found in each.items():
            shares[source] += idle * found.time_ps * simulation.num_alike(rank) / total_ps
            if rank == pacing and source[0] != "send":
                shares[source] += found.time_ps * PS / step_s
            if source not in widest or found.half_width > widest[source].half_width:
                widest[source] = found
    contributions = [
        Contribution(
            name=widest[source].name,
            kind=source[0],
            dimensions=source[1],
            share=share,
            half_width=widest[source].half_width,
            distance=widest[source].distance,
            is_beyond=any(source in each and each[source].is_beyond for each in spent.values()),
            unfitted_half_width=widest[source].unfitted_half_width,
        )
        for source, share in shares.items()
    ]
    contributions += _of_the_machine(simulation, pacing, steps, step_s)
    contributions.sort(key=lambda one: -one.carried)
    return Uncertainty(contributions=tuple(contributions), step_factor=cost.profile.step_factor)


def _of_the_machine(
    simulation: Simulation, rank: int, steps: Sequence[int], step_s: float
) -> list[Contribution]:
    """What another GPU of the kind would do, and a clock that a power limit holds."""
    busy: Counter[str] = Counter()
    for step in steps:
        busy.update(simulation.account(rank, step).bound_ps)
    shares = {key: busy[key] * PS / step_s for key in ("hbm", "l2", "compute")}
    found = [(BETWEEN_GPUS, sum(shares.values()), BETWEEN_GPUS_HALF_WIDTH)]
    cost, cluster = simulation.machine.cost, simulation.machine.cluster
    if isinstance(cost, Calibrated) and cost.profile.power and isinstance(cluster, HeldCluster):
        moved = shares["l2"] + shares["compute"]
        found.append((HELD_CLOCK, moved, cost.profile.power.slowdown_half_width))
    return [
        Contribution(
            name=kind,
            kind=kind,
            dimensions=(),
            share=share,
            half_width=half_width,
            distance=0.0,
            is_beyond=False,
        )
        for kind, share, half_width in found
    ]


def unfitted_of(simulation: Simulation) -> tuple[Change, ...]:
    """Return every distinct thing about its ops that the belief's fits have not seen, in their order."""
    templates = {id(step.template): step.template for step in simulation.machine.run}
    segments = {
        part.segment: None
        for template in templates.values()
        for rank in simulation.ranks
        for part in template[rank].parts
    }
    changes = simulation.machine.cost.changes
    found = (
        change
        for segment in segments
        for op in segment.ops
        if isinstance(op, LocalOp)
        for change in changes(op)
    )
    return tuple(dict.fromkeys(found))


def half_widths_of(simulation: Simulation, steps: Iterable[int]) -> dict[str, float]:
    """The widest half-width of each op of these steps by its name, microbatch left out."""
    found: dict[str, float] = defaultdict(float)
    machine = simulation.machine
    for log in machine.logs.values():
        for step in steps:
            for spell in spells_of(log, step):
                if spell.timed is None:
                    op = spell.work.op
                    named = [
                        (
                            spell.work.parts[0].name_of(op),
                            _meeting_cost(op, log.rank, machine.cost, machine.cluster).half_width,
                        )
                    ]
                else:
                    named = [
                        (spell.work.parts[one.part_index].name_of(one.op), one.cost.half_width)
                        for one in spell.timed.ops
                    ]
                for name, half_width in named:
                    label = name.partition("@")[0]
                    found[label] = max(found[label], half_width)
    return dict(found)


def changes_by_name(simulation: Simulation, steps: Iterable[int]) -> dict[str, tuple[Change, ...]]:
    """What no fit has seen of each op of these steps by its name, microbatch left out, if anything."""
    found: dict[str, tuple[Change, ...]] = {}
    for log in simulation.machine.logs.values():
        for spell in (spell for step in steps for spell in spells_of(log, step)):
            for one in spell.timed.ops if spell.timed else ():
                if one.cost.changes:
                    name = spell.work.parts[one.part_index].name_of(one.op)
                    found[name.partition("@")[0]] = one.cost.changes
    return found


def _spent(
    simulation: Simulation, rank: int, steps: Sequence[int], fitted: Container[str]
) -> dict[Source, _Found]:
    """What one rank did in these steps, by source."""
    found: dict[Source, _Found] = defaultdict(_Found)
    log = simulation.machine.logs[rank]
    for timed, times in _pieces(log, steps):
        before = 0
        for one in timed.own:
            found[_source(one.op, fitted)].add(one.op.name, times * (one.end_ps - before), one.cost)
            before = one.end_ps
    machine = simulation.machine
    for step in steps if machine.alone < 0 else ():
        for spell in spells_of(log, step):
            if spell.timed is None and not isinstance(spell.work.op, ops.Recv):
                op = spell.work.op
                cost = _meeting_cost(op, rank, machine.cost, machine.cluster)
                found[_source(op, fitted)].add(op.name, spell.end_ps - spell.start_ps, cost)
    return found


def _pieces(log: RankLog, steps: Sequence[int]) -> Iterator[tuple[Timed, int]]:
    """Every distinct part of the blocks of these steps, and how often it ran."""
    times: Counter[int] = Counter()
    known: dict[int, Timed] = {}
    blocks = [t for n in steps for t in log.blocks[log.marks[n].blocks : log.marks[n + 1].blocks]]
    by_id = {id(block): block for block in blocks}
    for key, count in Counter(map(id, blocks)).items():
        for piece in by_id[key].pieces or (by_id[key],):
            known[id(piece)] = piece
            times[id(piece)] += count
    return ((known[key], count) for key, count in times.items())


def _source(op: Op, fitted: Container[str]) -> Source:
    """What an op's error is the error of: its kind and dimensions, or a table and a payload."""
    match op:
        case ops.Send() | ops.Recv():
            return "send", (op.payload_bytes,)
        case ops.AllReduce():
            return "all_reduce", (len(op.group), op.payload_bytes)
        case ops.AllGather():
            return "all_gather", (len(op.group), op.payload_bytes)
        case _:
            kind = kind_of(op, fitted)
            return kind.name, kind.features_of(op)


def _meeting_cost(
    op: Op, rank: int, cost: CostModel, cluster: ClusterSpec
) -> OpCost | TransferCost:
    if isinstance(op, ops.CollectiveOp):
        return cost.collective(op)
    assert isinstance(op, PointToPointOp)
    return cost.transfer(op.payload_bytes, cluster.link_between(rank, op.peer))

"""A program cut where ranks meet, and the wires over which they do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.ops import Meeting, Op
from layerwise.sim.plan.placement import Placement
from layerwise.sim.plan.program import Part, Program, Segment

WorkKind = Meeting | Literal["block"]


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Local parts in a row, or one meeting of ranks: then `parts` is one part of one op."""

    kind: WorkKind
    parts: tuple[Part, ...]

    @property
    def op(self) -> Op:
        """The meeting."""
        return self.parts[0].segment.ops[0]

    @property
    def num_ops(self) -> int:
        """Rows it makes."""
        return sum(len(part.segment.ops) for part in self.parts)


def stages_are_alike(placement: Placement, cluster: ClusterSpec) -> bool:
    """Do all ranks that hold the same stage meet their peers over the same wires?

    Not where a group straddles a node, or replicas lie differently on the nodes.
    """
    found: dict[int, tuple[object, ...]] = {}
    for stages in placement.replicas:
        for index, stage in enumerate(stages):
            after = stages[(index + 1) % len(stages)].ranks
            nodes = len({cluster.node_of(rank) for rank in stage.ranks})
            for rank, peer in zip(stage.ranks, after, strict=True):
                wires = (cluster.link_between(rank, peer).name, nodes)
                if found.setdefault(index, wires) != wires:
                    return False
    return True


def ranks_that_stand(placement: Placement, cluster: ClusterSpec) -> dict[int, tuple[int, ...]]:
    """The ranks that others do the same as at the same time, each with these others, by stage.

    Where `stages_are_alike`. Ranks of one column (the same place in every stage of a replica) meet
    each other and, in collectives, the other columns of their replica: so replicas are alike whose
    columns are as fast, and in one replica columns that are.
    """
    found: dict[tuple[object, ...], list[int]] = {}
    for stages in placement.replicas:
        columns = list(zip(*(stage.ranks for stage in stages), strict=True))
        looks = _looks(columns, cluster)
        for look, column in zip(looks, columns, strict=True):
            for index, rank in enumerate(column):
                found.setdefault((looks, look, index), []).append(rank)
    return {ranks[0]: tuple(ranks[1:]) for ranks in found.values()}


def _looks(columns: list[tuple[int, ...]], cluster: ClusterSpec) -> tuple[object, ...]:
    """What tells columns apart: where they are slow, and how."""
    slow = cluster.slow_ranks
    if not slow or slow.isdisjoint(rank for column in columns for rank in column):
        return (None,) * len(columns)
    wires = (cluster.nvlink.name, cluster.nic.name)
    return tuple(
        tuple(
            (cluster.speed_of(rank), *(cluster.port_share(wire, (rank,)) for wire in wires))
            for rank in column
        )
        for column in columns
    )


def cut_into_work(program: Program, *, collectives_meet: bool) -> list[Work]:
    """Consecutive local parts form one block; a message is work of its own.

    A collective is one too where its members are simulated one by one. Where one stands for all,
    they arrive together, and it is an op among others.
    """
    work: list[Work] = []
    pending: list[Part] = []
    kinds: dict[Segment, WorkKind | None] = {}
    for part in _cut_parts(program) if collectives_meet else program.parts:
        segment = part.segment
        if segment not in kinds:
            kind = segment.ops[0].meets if len(segment.ops) == 1 else None
            is_local = kind == "collective" and not collectives_meet
            kinds[segment] = None if is_local else kind
        kind = kinds[segment]
        if kind is None:
            pending.append(part)
            continue
        if pending:
            work.append(Work("block", tuple(pending)))
            pending = []
        work.append(Work(kind, (part,)))
    return [*work, Work("block", tuple(pending))] if pending else work


def _cut_parts(program: Program) -> Iterator[Part]:
    """The program's parts, those of layers cut at their collectives."""
    for part in program.parts:
        for segment in part.segment.cuts:
            yield part if segment is part.segment else part._replace(segment=segment)

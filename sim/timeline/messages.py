"""Which receive takes each send, and what each op puts onto the wires."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence

from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import wire_bytes_by_link
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.program import Part, Program, Segment, StepPrograms

MessageEnd = tuple[int, int, str]
"""(step, rank, op name) of a send or of a receive."""


def message_pairs(run: Sequence[StepPrograms]) -> dict[MessageEnd, MessageEnd]:
    """Send -> receive: the n-th on one directed edge and channel is taken by the n-th there."""
    waiting: dict[tuple[int, int, str], deque[MessageEnd]] = defaultdict(deque)
    receives: list[tuple[tuple[int, int, str], MessageEnd]] = []
    for step, compiled in enumerate(run):
        for program in compiled.template:
            for part, op in _messages(program):
                end = (step, program.rank, part.name_of(op))
                if isinstance(op, ops.Send):
                    waiting[program.rank, op.peer, op.channel].append(end)
                else:
                    receives.append(((op.peer, program.rank, op.channel), end))
    return {waiting[edge].popleft(): end for edge, end in receives if waiting[edge]}


def wire_bytes_of(program: Program, cluster: ClusterSpec) -> dict[str, Mapping[str, int]]:
    """By op name and wire: what this rank puts onto it."""
    found: dict[str, Mapping[str, int]] = {}
    sent: dict[int, Mapping[str, int]] = {}
    for part in program.parts:
        for op in part.segment.ops:
            if isinstance(op, (ops.Send, ops.AllReduce, ops.AllGather)):
                # Compiled once for all layers and microbatches, so known by its identity.
                if id(op) not in sent:
                    sent[id(op)] = _wire_bytes(op, program.rank, cluster)
                found[part.name_of(op)] = sent[id(op)]
    return found


def _wire_bytes(
    op: ops.Send | ops.AllReduce | ops.AllGather, rank: int, cluster: ClusterSpec
) -> Mapping[str, int]:
    if isinstance(op, ops.Send):
        return {cluster.link_between(rank, op.peer).name: op.payload_bytes}
    return {wire: sent for wire, sent in wire_bytes_by_link(op, cluster).items() if sent}


def _messages(program: Program) -> list[tuple[Part, ops.Send | ops.Recv]]:
    known: dict[Segment, list[ops.Send | ops.Recv]] = {}
    found: list[tuple[Part, ops.Send | ops.Recv]] = []
    for part in program.parts:
        if part.segment not in known:
            known[part.segment] = [
                op for op in part.segment.ops if isinstance(op, (ops.Send, ops.Recv))
            ]
        found += [(part, op) for op in known[part.segment]]
    return found

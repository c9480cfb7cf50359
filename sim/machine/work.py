"""A program cut where ranks meet, and the wires over which they do."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from sim.plan import ops
from sim.plan.hardware import ClusterSpec
from sim.plan.program import Part, Program

WorkKind = Literal["block", "send", "recv", "collective"]
Work = tuple[WorkKind, tuple[Part, ...]]
KINDS: dict[type, WorkKind] = {
    ops.Send: "send",
    ops.Recv: "recv",
    ops.AllReduce: "collective",
    ops.AllGather: "collective",
}


def wires_of(program: Program, cluster: ClusterSpec) -> tuple[str, ...]:
    """The wire of each message, and the nodes of each collective's group, in program order."""
    found: dict[int, tuple[str, ...]] = {}
    for part in program.parts:
        if id(part.segment) not in found:
            found[id(part.segment)] = tuple(
                _wire_of(op, program.rank, cluster) for op in part.segment.ops
            )
    return tuple(wire for wires in found.values() for wire in wires if wire)


def _wire_of(op: ops.Op, rank: int, cluster: ClusterSpec) -> str:
    match op:
        case ops.Send() | ops.Recv():
            return cluster.link_between(rank, op.peer).name
        case ops.AllReduce() | ops.AllGather():
            return f"{len({cluster.node_of(member) for member in op.group})} nodes"
        case _:
            return ""


def cut_into_work(program: Program) -> list[Work]:
    """Consecutive local parts form one block; a message or a collective is work of its own."""
    work: list[Work] = []
    pending: list[Part] = []
    for part in program.parts:
        for segment in part.segment.cuts:
            piece = part if segment is part.segment else replace(part, segment=segment)
            kind = KINDS.get(type(segment.ops[0]))
            if kind is None:
                pending.append(piece)
                continue
            if pending:
                work.append(("block", tuple(pending)))
                pending = []
            work.append((kind, (piece,)))
    return [*work, ("block", tuple(pending))] if pending else work

"""A program cut where ranks meet, and the wires over which they do."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from sim.plan import ops
from sim.plan.hardware import ClusterSpec
from sim.plan.program import Part, Program

WorkKind = Literal["block", "send", "recv", "collective"]
Work = tuple[WorkKind, tuple[Part, ...]]


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


def cut_into_work(program: Program, cut_collectives: bool) -> list[Work]:
    """Consecutive local parts form one block; a message is work of its own.

    With `cut_collectives` every collective is work of its own, too.
    """
    work: list[Work] = []
    pending: list[Part] = []
    for part in program.parts:
        for kind, piece in _pieces(part, cut_collectives):
            if kind == "block":
                pending.append(piece)
                continue
            if pending:
                work.append(("block", tuple(pending)))
                pending = []
            work.append((kind, (piece,)))
    return [*work, ("block", tuple(pending))] if pending else work


def _pieces(part: Part, cut_collectives: bool) -> list[tuple[WorkKind, Part]]:
    kinds: dict[type, WorkKind] = {ops.Send: "send", ops.Recv: "recv"}
    if cut_collectives:
        kinds |= {ops.AllReduce: "collective", ops.AllGather: "collective"}
    if all(type(op) not in kinds for op in part.segment.ops):
        return [("block", part)]
    return [
        (kinds.get(type(single.ops[0]), "block"), replace(part, segment=single))
        for single in part.segment.singles
    ]

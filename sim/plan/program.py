"""Programs: what one rank does in one step, as segments repeated over layers and microbatches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from sim.plan import ops
from sim.plan.demand import demand_of
from sim.plan.ops import Buffer, Op
from sim.plan.placement import Placement
from sim.plan.workload import Step

MEETINGS = (ops.AllReduce, ops.AllGather, ops.Send, ops.Recv)


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of ops with local names, written once and repeated.

    Compared by identity: the compiler makes each distinct segment once, so that the simulator
    can tell a repeat from a new thing without looking inside.
    """

    ops: tuple[Op, ...]

    @cached_property
    def cuts(self) -> tuple[Segment, ...]:
        """The same ops, cut where ranks meet: runs of local ops, and each meeting alone.

        Made once, so that identity still tells.
        """
        runs = [list(run) for _, run in groupby(self.ops, lambda op: isinstance(op, MEETINGS))]
        pieces = [
            piece
            for run in runs
            for piece in ([[op] for op in run] if isinstance(run[0], MEETINGS) else [run])
        ]
        return (self,) if len(pieces) == 1 else tuple(Segment(tuple(piece)) for piece in pieces)

    @cached_property
    def touched(self) -> tuple[Buffer, ...]:
        """Every buffer its ops read or write, each once, in order of first use."""
        found: dict[Buffer, None] = {}
        for op in self.ops:
            demand = demand_of(op)
            for buffer, _ in (*demand.reads, *demand.writes):
                found[buffer] = None
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Part:
    """One repeat of a segment: for a layer (or a stage's edge) and a microbatch.

    `prefix` completes names: `L07` for a layer, `P0` for a stage.
    """

    segment: Segment
    prefix: str
    layer: int
    microbatch: int

    def name_of(self, op: Op) -> str:
        """The op's full name, unique within its rank and step: `L07.attn.qkv@m3`."""
        return f"{self.prefix}.{op.name}@m{self.microbatch}"


@dataclass(frozen=True, slots=True)
class PlacedOp:
    """An op as it stands in the expanded program."""

    name: str
    op: Op
    layer: int
    microbatch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """All that one rank does in one step, in issue order."""

    rank: int
    stage: int
    replica: int
    tensor_rank: int
    tensor_parallel: int
    parts: tuple[Part, ...]

    def __iter__(self) -> Iterator[PlacedOp]:
        for part in self.parts:
            for op in part.segment.ops:
                yield PlacedOp(part.name_of(op), op, part.layer, part.microbatch)

    def __len__(self) -> int:
        return sum(len(part.segment.ops) for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPrograms:
    """One step, compiled: `programs[rank]` for every rank of the placement."""

    step: Step
    placement: Placement
    programs: tuple[Program, ...]


def buffers_of(op: Op) -> tuple[Buffer, ...]:
    """Every buffer an op names, each once, in field order."""
    found: dict[Buffer, None] = {}
    for name in type(op).__dataclass_fields__:
        value = getattr(op, name)
        if isinstance(value, Buffer):
            found[value] = None
    return tuple(found)


def kernel_set_hash(program: Program) -> str:
    """Which kernels a program asks for: equal hashes may be compared, others may not."""
    choices: set[str] = set()
    for part in program.parts:
        for op in part.segment.ops:
            choices.add(_kernel_of(op))
    return hashlib.sha256("\n".join(sorted(choices)).encode()).hexdigest()[:16]


def _kernel_of(op: Op) -> str:
    match op:
        case ops.Attention():
            return f"attention:{op.kernel}:{'decode' if op.query_tokens == 1 else 'prefill'}"
        case ops.AllReduce():
            return f"all_reduce:{op.algorithm}"
        case ops.Norm():
            return f"norm:{'fused residual' if op.delta else 'plain'}"
        case _:
            return type(op).__name__

"""Programs: what one rank does in one step, as segments repeated over layers and microbatches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import NamedTuple, overload

from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.ops import Buffer, Op
from layerwise.sim.plan.placement import Placement
from layerwise.sim.plan.workload import Step


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
        runs = [list(run) for _, run in groupby(self.ops, lambda op: op.meets is not None)]
        pieces = [
            piece for run in runs for piece in ([[op] for op in run] if run[0].meets else [run])
        ]
        return (self,) if len(pieces) == 1 else tuple(Segment(tuple(piece)) for piece in pieces)

    @cached_property
    def grows(self) -> bool:
        """Is there an op in it that a longer context changes?"""
        return any(op.grows for op in self.ops)

    def at(self, context_tokens: int) -> Segment:
        """The same segment where sequences attend to this many tokens. Made once per context."""
        if not self.grows:
            return self
        found = self._at.get(context_tokens)
        if found is None:
            moved = tuple(op.at(context_tokens) for op in self.ops)
            found = self if moved == self.ops else Segment(moved)
            self._at[context_tokens] = found
        return found

    @cached_property
    def _at(self) -> dict[int, Segment]:
        return {}

    @cached_property
    def cache_bytes_per_token(self) -> int:
        """Of the smallest KV cache that its attention reads; without attention, endless."""
        return min(
            (
                demand_of(op.at(op.query_tokens + 1)).read_bytes
                - demand_of(op.at(op.query_tokens)).read_bytes
                for op in self.ops
                if isinstance(op, ops.Attention)
            ),
            default=2**62,
        )

    @cached_property
    def touched(self) -> tuple[Buffer, ...]:
        """Every buffer its ops read or write, each once, in order of first use."""
        found: dict[Buffer, None] = {}
        for op in self.ops:
            demand = demand_of(op)
            for buffer, _ in (*demand.reads, *demand.writes):
                found[buffer] = None
        return tuple(found)

    @cached_property
    def touched_keys(self) -> tuple[tuple[str, bool, bool], ...]:
        """(name, has one per layer, has one per microbatch) of every buffer it touches."""
        return tuple((b.name, b.per_layer, b.per_microbatch) for b in self.touched)


class Part(NamedTuple):
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

    def at(self, context_tokens: int) -> Program:
        """The same program where sequences attend to this many tokens."""
        moved = {s: s.at(context_tokens) for s in {part.segment for part in self.parts}}
        if all(new is old for old, new in moved.items()):
            return self
        parts = (part._replace(segment=moved[part.segment]) for part in self.parts)
        return replace(self, parts=tuple(parts))


class ProgramsOnDemand(Sequence[Program]):
    """Programs by rank, each compiled when first asked for: one often stands for many."""

    def __init__(self, num_ranks: int, compile_rank: Callable[[int], Program]) -> None:
        self._compile = compile_rank
        self._made: list[Program | None] = [None] * num_ranks

    def __len__(self) -> int:
        return len(self._made)

    def __reduce__(self) -> tuple[type, tuple[list[Program]]]:
        """Other processes get the programs, not the way to make them."""
        return tuple, (list(self),)

    @overload
    def __getitem__(self, index: int) -> Program: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Program]: ...
    def __getitem__(self, index: int | slice) -> Program | Sequence[Program]:
        if isinstance(index, slice):
            return [self[rank] for rank in range(*index.indices(len(self)))]
        made = self._made[index]
        if made is None:
            made = self._made[index] = self._compile(index % len(self))
        return made


@dataclass(frozen=True, kw_only=True)
class StepPrograms:
    """One step, compiled: `programs[rank]` for every rank of the placement.

    Decode steps that differ in nothing but their context share one `template`, and are completed
    from it when somebody asks: a thousand steps do not cost a thousand compilations.
    """

    step: Step
    placement: Placement
    template: Sequence[Program]

    @cached_property
    def programs(self) -> Sequence[Program]:
        """The programs at this step's own context."""
        return ProgramsOnDemand(
            len(self.template), lambda rank: self.template[rank].at(self.step.context_tokens)
        )


def context_grows(run: Sequence[StepPrograms]) -> bool:
    """Does a decoding stream attend to more tokens at its end than at its start?

    One of three steps or fewer has none between the first and the last to show it.
    """
    first, last = run[0].step, run[-1].step
    return first.phase == "decode" and first.context_tokens < last.context_tokens and len(run) > 3


def repeated_steps(run: Sequence[StepPrograms]) -> tuple[int, ...]:
    """What a measurement repeats: a stream's middle step, or every step of another run.

    Of a stream whose context grows, every step but the first and the last.
    """
    middle = len(run) // 2
    if not (run[middle].step.takes_feedback and run[middle].step.gives_feedback):
        return tuple(range(len(run)))
    return tuple(range(1, len(run) - 1)) if context_grows(run) else (middle,)


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
            choices.add(op.kernels)
    return hashlib.sha256("\n".join(sorted(choices)).encode()).hexdigest()[:16]

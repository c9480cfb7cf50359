"""Blocks: parts between two meetings of ranks, walked once per L2 state, timed once per context.

What a walk finds in the L2 does not change as a KV cache grows that is larger than the L2 anyway;
only the attention's own bytes do. So a block is walked once, and timed again at each context by
the ops that grow alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING

from layerwise.sim.cost.model import CostModel, OpCost, Traffic
from layerwise.sim.machine.l2 import L2State, code_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.hardware import FULL_SPEED, Speed
from layerwise.sim.plan.ops import BufferKey, Op
from layerwise.sim.plan.program import Part, Segment

if TYPE_CHECKING:
    from layerwise.sim.machine.setup import Setup


@dataclass(frozen=True, slots=True)
class TimedOp:
    """One op of a block with its cost and offsets (picoseconds) from the block's start."""

    part_index: int
    op: Op
    cost: OpCost
    start_ps: int
    end_ps: int


@dataclass(frozen=True)
class Timed:
    """A block at one context: how long it takes, and why.

    One part has its `own` ops; several are `pieces` in a row.
    """

    duration_ps: int
    own: tuple[TimedOp, ...] = ()
    pieces: tuple[Timed, ...] = ()

    @cached_property
    def ops(self) -> tuple[TimedOp, ...]:
        """Every op of all parts: wanted for rows and for a host that issues, not for the clock."""
        found = list(self.own)
        offset = 0
        for index, piece in enumerate(self.pieces):
            found += [
                replace(t, part_index=index, start_ps=offset + t.start_ps, end_ps=offset + t.end_ps)
                for t in piece.own
            ]
            offset += piece.duration_ps
        return tuple(found)

    @cached_property
    def bound_ps(self) -> dict[str, int]:
        """Its time by bottleneck."""
        found: Counter[str] = Counter()
        for piece in self.pieces:
            found.update(piece.bound_ps)
        before = 0
        for timed in self.own:
            found["launch"] += timed.start_ps - before
            found[timed.cost.bound] += timed.end_ps - timed.start_ps
            before = timed.end_ps
        return dict(found)

    @cached_property
    def energy_j(self) -> tuple[float, float]:
        """Joules in SMs and L2 at full clock, and of its traffic with HBM: as in `OpCost`."""
        parts = [(t.cost.sm_j, t.cost.hbm_j) for t in self.own]
        parts += [piece.energy_j for piece in self.pieces]
        return sum(sm_j for sm_j, _ in parts), sum(hbm_j for _, hbm_j in parts)

    @cached_property
    def num_extrapolated(self) -> int:
        """Ops whose shape lies outside what was calibrated."""
        return sum(t.cost.extrapolated for t in self.own) + sum(
            piece.num_extrapolated for piece in self.pieces
        )


def seconds_to_ps(seconds: float) -> int:
    """Simulated time is a whole number of picoseconds, so that folded repeats are exact."""
    return round(seconds * 1e12)


@dataclass(frozen=True, slots=True)
class Walked:
    """An op and what it moved when its block was walked."""

    part_index: int
    op: Op
    traffic: Traffic


@dataclass(eq=False)
class Block:
    """Parts in a row, walked through one L2 state.

    `left`: the state it leaves, most recent first, as (is a slot of this block, index, bytes,
    dirty bytes); `kept`: slots of weights that a persisting window then holds. `grows`: attention
    reads a cache that outgrew the L2, so a longer context changes nothing but its own bytes.
    """

    cost: CostModel
    own: tuple[Walked, ...]
    pieces: tuple[Block, ...]
    left: tuple[tuple[bool, int, int, int], ...]
    grows: bool
    kept: tuple[int, ...] = ()
    _timed: dict[int, Timed] = field(default_factory=dict[int, Timed])

    def at(self, context_tokens: int) -> Timed:
        """Time the block where sequences attend to this many tokens."""
        key = context_tokens if self.grows else 0
        found = self._timed.get(key)
        if found is None:
            found = self._timed[key] = self._time(context_tokens)
        return found

    def _time(self, context_tokens: int) -> Timed:
        if self.pieces:
            pieces = tuple(piece.at(context_tokens) for piece in self.pieces)
            return Timed(sum(piece.duration_ps for piece in pieces), pieces=pieces)
        own = time_ops(self.cost, self._walked_at(context_tokens), self._fixed)
        return Timed(own[-1].end_ps if own else 0, own=own)

    @cached_property
    def _fixed(self) -> tuple[OpCost | None, ...]:
        """What its ops cost, but for those whose bytes grow."""
        return tuple(
            None if isinstance(one.op, ops.Attention) else cost_of(self.cost, one)
            for one in (self.own if self.grows else ())
        )

    def _walked_at(self, context_tokens: int) -> tuple[Walked, ...]:
        if not self.grows:
            return self.own
        return tuple(_moved(walked, context_tokens) for walked in self.own)


def _moved(walked: Walked, context_tokens: int) -> Walked:
    """The op at another context: all that its KV cache grows by is a miss."""
    if not isinstance(walked.op, ops.Attention):
        return walked
    op = walked.op.at(context_tokens)
    grown = demand_of(op).read_bytes - demand_of(walked.op).read_bytes
    missed = walked.traffic.hbm_read_bytes + grown
    return Walked(walked.part_index, op, replace(walked.traffic, hbm_read_bytes=missed))


def walk(parts: Sequence[Part], state: L2State) -> tuple[Walked, ...]:
    """Move parts through the state, op by op."""
    return tuple(
        Walked(index, op, state.traffic_of(op, part.layer, part.microbatch))
        for index, part in enumerate(parts)
        for op in part.segment.ops
    )


def time_ops(
    cost: CostModel, walked: Sequence[Walked], known: Sequence[OpCost | None] = ()
) -> tuple[TimedOp, ...]:
    """Price ops that run one after the other; `known`: what some of them cost."""
    timed: list[TimedOp] = []
    now = 0
    for one, found in zip_longest(walked, known):
        priced = found or cost_of(cost, one)
        start = now + seconds_to_ps(priced.launch_s)
        end = start + seconds_to_ps(priced.kernel_s)
        timed.append(TimedOp(one.part_index, one.op, priced, start, end))
        now = end
    return tuple(timed)


def cost_of(cost: CostModel, walked: Walked) -> OpCost:
    """Cost of a local op, or of a collective whose members arrive together."""
    op = walked.op
    if isinstance(op, ops.CollectiveOp):
        return cost.collective(op)
    assert not isinstance(op, ops.PointToPointOp), "ranks meet between blocks, not in them"
    return cost.local(op, walked.traffic)


Shape = tuple[tuple[Segment, ...], tuple[int, ...]]


@dataclass(slots=True, eq=False)
class Pattern:
    """What blocks of the same segments have in common, wherever they stand.

    `slots`: keys of the buffers they touch, layers and microbatches counted from the block's first.
    `cache_bytes_per_token`: the smallest KV cache their attention reads, per token of context.
    """

    shape: Shape
    slots: list[BufferKey]
    numbers: dict[BufferKey, int]
    cache_bytes_per_token: int
    has_attention: bool

    def outgrows(self, limit_bytes: int, context_tokens: int) -> bool:
        """Is every KV cache read here larger than what the L2 can hold?"""
        return self.cache_bytes_per_token * context_tokens >= limit_bytes


@dataclass(slots=True, eq=False)
class Named:
    """Parts and their pattern, which counts from this layer and this microbatch."""

    parts: tuple[Part, ...]
    pattern: Pattern
    layer: int
    microbatch: int

    def slot_of(self, key: BufferKey) -> int:
        """The slot of a buffer, -1 when the block does not touch it."""
        name, layer, microbatch = key
        if layer >= 0:
            layer -= self.layer
            if layer < 0:
                return -1
        if microbatch >= 0:
            microbatch -= self.microbatch
            if microbatch < 0:
                return -1
        return self.pattern.numbers.get((name, layer, microbatch), -1)

    def key_of(self, slot: int) -> BufferKey:
        """The buffer in a slot."""
        name, layer, microbatch = self.pattern.slots[slot]
        return (
            name,
            layer if layer < 0 else layer + self.layer,
            microbatch if microbatch < 0 else microbatch + self.microbatch,
        )


class Piece:
    """A part by itself, named by the keys its buffers have where it stands."""

    __slots__ = ("key_of", "parts", "pattern", "slot_of")

    def __init__(self, parts: tuple[Part, ...], pattern: Pattern, keys: list[BufferKey]) -> None:
        self.parts, self.pattern = parts, pattern
        slots = _Slots((key, slot) for slot, key in enumerate(keys))
        self.slot_of: Callable[[BufferKey], int] = slots.__getitem__
        self.key_of: Callable[[int], BufferKey] = keys.__getitem__


class _Slots(dict[BufferKey, int]):
    """The slot of a key, -1 for one that has none."""

    def __missing__(self, key: BufferKey) -> int:
        return -1


@dataclass(slots=True, eq=False)
class BlockCache:
    """Blocks walked once per (segments, L2 state up to renaming) and repeated by arithmetic.

    Two lists of parts with the same segments, entered with states that are equal once buffers are
    named by the slot they have in the block, behave the same; so they are walked once. A new
    block is put together from its parts, each looked up in the same way: layers repeat.
    """

    cost: CostModel
    blocks: dict[tuple[object, ...], Block] = field(default_factory=dict)
    patterns: dict[Shape, Pattern] = field(default_factory=dict)
    pieces: dict[Part, Piece] = field(default_factory=dict)
    slowed: dict[Speed, BlockCache] = field(default_factory=dict)
    setups: dict[tuple[object, ...], Setup] = field(default_factory=dict)

    def at_speed(self, speed: Speed) -> BlockCache:
        """The blocks of GPUs of this speed: named alike, priced otherwise."""
        if speed == FULL_SPEED:
            return self
        found = self.slowed.get(speed)
        if found is None:
            cost = self.cost.at_speed(speed)
            found = BlockCache(cost, patterns=self.patterns, pieces=self.pieces)
            self.slowed[speed] = found
        return found

    def name(self, parts: tuple[Part, ...]) -> Named:
        """The parts, and the pattern they follow."""
        layer = min([part.layer for part in parts])
        microbatch = min([part.microbatch for part in parts])
        offsets = [n for part in parts for n in (part.layer - layer, part.microbatch - microbatch)]
        shape = (tuple([part.segment for part in parts]), tuple(offsets))
        pattern = self.patterns.get(shape)
        if pattern is None:
            pattern = self.patterns[shape] = _pattern(shape)
        return Named(parts, pattern, layer, microbatch)

    def _piece(self, part: Part) -> Piece:
        """One part by itself: met again and again, so its buffers' keys are kept."""
        piece = self.pieces.get(part)
        if piece is None:
            named = self.name((part,))
            keys = [named.key_of(slot) for slot in range(len(named.pattern.slots))]
            piece = self.pieces[part] = Piece(named.parts, named.pattern, keys)
        return piece

    def run(self, named: Named, state: L2State, context_tokens: int) -> Block:
        """Find the block that starts from this state, and leave the state as it leaves it."""
        grows = named.pattern.outgrows(state.limit_bytes, context_tokens)
        return self._run(named, state, context_tokens, grows)

    def _run(self, named: Named | Piece, state: L2State, context_tokens: int, grows: bool) -> Block:
        slot_of = named.slot_of
        signature = tuple([(slot_of(key), size, dirty) for key, size, dirty in state.entries])
        kept = _kept_slots(named, state) if state.kept else ()
        key = (
            named.pattern.shape,
            signature,
            kept,
            state.persisting,
            state.left,
            state.set_aside,
            0 if grows else context_tokens,
        )
        block = self.blocks.get(key)
        if block is None:
            block = self.blocks[key] = self._walk(named, state, context_tokens, grows)
            return block
        before, key_of = state.entries, named.key_of
        state.entries = [
            (key_of(index) if is_slot else before[index][0], size, dirty)
            for is_slot, index, size, dirty in block.left
        ]
        if block.kept:
            state.kept.update(key_of(index) for index in block.kept)
        return block

    def _walk(
        self, named: Named | Piece, state: L2State, context_tokens: int, grows: bool
    ) -> Block:
        parts = named.parts
        before = {key: index for index, (key, _, _) in enumerate(state.entries)}
        own: tuple[Walked, ...] = ()
        pieces: tuple[Block, ...] = ()
        if len(parts) > 1:
            pieces = tuple(
                self._run(self._piece(part), state, context_tokens, grows) for part in parts
            )
        else:
            part = next(iter(parts))
            own = walk((part._replace(segment=part.segment.at(context_tokens)),), state)
        left: list[tuple[bool, int, int, int]] = []
        for key, size, dirty in state.entries:
            slot = named.slot_of(key)
            left.append((slot >= 0, slot if slot >= 0 else before[key], size, dirty))
        moves = grows and named.pattern.has_attention
        return Block(self.cost, own, pieces, tuple(left), moves, _kept_slots(named, state))


def _kept_slots(named: Named | Piece, state: L2State) -> tuple[int, ...]:
    """Weights of this block that persisting windows hold."""
    if not state.kept:
        return ()
    slots = range(len(named.pattern.slots))
    return tuple(slot for slot in slots if named.key_of(slot) in state.kept)


def _pattern(shape: Shape) -> Pattern:
    segments, offsets = shape
    places = zip(segments, offsets[::2], offsets[1::2], strict=True)
    slots = list(
        dict.fromkeys(
            (name, layer if per_layer else -1, microbatch if per_microbatch else -1)
            for segment, layer, microbatch in places
            for name, per_layer, per_microbatch in segment.touched_keys
        )
    )
    slots += dict.fromkeys(code_of(op) for segment in segments for op in segment.ops)
    numbers = {key: number for number, key in enumerate(slots)}
    bytes_per_token = min(segment.cache_bytes_per_token for segment in segments)
    return Pattern(shape, slots, numbers, bytes_per_token, any(s.grows for s in segments))

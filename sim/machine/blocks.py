"""Blocks: parts between two meetings of ranks, timed once per L2 state and repeated by arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from sim.cost.model import CostModel, OpCost
from sim.machine.l2 import L2State
from sim.plan.ops import BufferKey, Op
from sim.plan.program import MEETINGS, Part, Segment


@dataclass(frozen=True, slots=True)
class TimedOp:
    """One op of a block with its cost and offsets (picoseconds) from the block's start."""

    part_index: int
    op: Op
    cost: OpCost
    start_ps: int
    end_ps: int


@dataclass(frozen=True)
class Block:
    """Parts in a row, walked through one L2 state: when each op runs, what it moves.

    One part has its `own` ops; several are `pieces` in a row. `hbm_bytes` is what the block takes
    from HBM; `bound_ps` splits its time by bottleneck. `left`: the state it leaves, most recent
    first, as (is a slot of this block, index, bytes).
    """

    own: tuple[TimedOp, ...]
    pieces: tuple[Block, ...]
    duration_ps: int
    hbm_bytes: int
    bound_ps: dict[str, int]
    num_extrapolated: int
    left: tuple[tuple[bool, int, int], ...]

    @cached_property
    def ops(self) -> tuple[TimedOp, ...]:
        """Every op of all parts: wanted for rows and for a host that issues, not for the clock."""
        found = list(self.own)
        offset = 0
        for index, piece in enumerate(self.pieces):
            found += [
                TimedOp(index, t.op, t.cost, offset + t.start_ps, offset + t.end_ps)
                for t in piece.own
            ]
            offset += piece.duration_ps
        return tuple(found)


def seconds_to_ps(seconds: float) -> int:
    """Simulated time is a whole number of picoseconds, so that folded repeats are exact."""
    return round(seconds * 1e12)


def time_block(parts: Sequence[Part], state: L2State) -> tuple[list[TimedOp], int, dict[str, int]]:
    """Walk parts through the state. Returns timed ops, HBM bytes and time by bottleneck."""
    timed: list[TimedOp] = []
    bound_ps: Counter[str] = Counter()
    now = hbm_bytes = 0
    for index, part in enumerate(parts):
        for op in part.segment.ops:
            traffic = state.traffic_of(op, part.layer, part.microbatch)
            assert not isinstance(op, MEETINGS), "ranks meet between blocks, not in them"
            cost = state.cost.local(op, traffic)
            hbm_bytes += traffic.hbm_bytes
            start = now + seconds_to_ps(cost.launch_s)
            end = start + seconds_to_ps(cost.kernel_s)
            bound_ps["launch"] += start - now
            bound_ps[cost.bound] += end - start
            timed.append(TimedOp(index, op, cost, start, end))
            now = end
    return timed, hbm_bytes, dict(bound_ps)


Shape = tuple[tuple[Segment, ...], tuple[int, ...]]
Slot = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class _Named:
    """Parts with their buffers' keys, in slot order, and the slot of each key."""

    parts: tuple[Part, ...]
    shape: Shape
    keys: list[BufferKey]
    numbers: dict[BufferKey, int]


@dataclass(slots=True)
class BlockCache:
    """Blocks timed once per (segments, L2 state up to renaming) and repeated by arithmetic.

    Two parts lists with the same segments, entered with states that are equal once buffers are
    named by the slot they have in the block, behave the same; so they are walked once. A new
    block is put together from its parts, each looked up in the same way: layers repeat.
    """

    cost: CostModel
    blocks: dict[tuple[Shape, tuple[tuple[int, int], ...]], Block] = field(default_factory=dict)
    slots: dict[Shape, tuple[Slot, ...]] = field(default_factory=dict)
    named: dict[int, _Named] = field(default_factory=dict)

    def run(self, parts: tuple[Part, ...], state: L2State) -> Block:
        """Time the parts from this state, and leave the state as they leave it.

        The same tuple comes again in every step, so its names are kept (and with them the tuple:
        its identity is the key).
        """
        named = self.named.get(id(parts))
        if named is None:
            named = self.named[id(parts)] = self._name(parts)
        return self._run(named, state)

    def _name(self, parts: tuple[Part, ...]) -> _Named:
        layers = list(dict.fromkeys(part.layer for part in parts))
        microbatches = list(dict.fromkeys(part.microbatch for part in parts))
        shape = _shape(parts, layers, microbatches)
        slots = self.slots.get(shape)
        if slots is None:
            slots = self.slots[shape] = _slots(parts, layers, microbatches)
        # Number -1 stands for "not per layer" and picks the -1 at the end.
        layers.append(-1)
        microbatches.append(-1)
        keys = [(name, layers[layer], microbatches[batch]) for name, layer, batch in slots]
        return _Named(parts, shape, keys, {key: number for number, key in enumerate(keys)})

    def _run(self, named: _Named, state: L2State) -> Block:
        numbers = named.numbers
        signature = tuple((numbers.get(key, -1), size) for key, size in state.entries)
        block = self.blocks.get((named.shape, signature))
        if block is None:
            block = self.blocks[named.shape, signature] = self._timed(named, state)
            return block
        before = state.entries
        state.entries = [
            (named.keys[index] if is_slot else before[index][0], size)
            for is_slot, index, size in block.left
        ]
        return block

    def _timed(self, named: _Named, state: L2State) -> Block:
        parts, numbers = named.parts, named.numbers
        before = {key: index for index, (key, _) in enumerate(state.entries)}
        if len(parts) > 1:
            pieces = tuple(self._run(self._name((part,)), state) for part in parts)
            return _joined(pieces, _left(state, before, numbers))
        timed, hbm_bytes, bound_ps = time_block(parts, state)
        return Block(
            own=tuple(timed), pieces=(), duration_ps=timed[-1].end_ps, hbm_bytes=hbm_bytes,
            bound_ps=bound_ps,
            num_extrapolated=sum(t.cost.extrapolated for t in timed),
            left=_left(state, before, numbers),
        )  # fmt: skip


def _left(
    state: L2State, before: dict[BufferKey, int], numbers: dict[BufferKey, int]
) -> tuple[tuple[bool, int, int], ...]:
    return tuple(
        (True, numbers[key], size) if key in numbers else (False, before[key], size)
        for key, size in state.entries
    )


def _joined(pieces: tuple[Block, ...], left: tuple[tuple[bool, int, int], ...]) -> Block:
    bound_ps: Counter[str] = Counter()
    for piece in pieces:
        bound_ps.update(piece.bound_ps)
    return Block(
        own=(), pieces=pieces, duration_ps=sum(p.duration_ps for p in pieces),
        hbm_bytes=sum(p.hbm_bytes for p in pieces), bound_ps=dict(bound_ps),
        num_extrapolated=sum(p.num_extrapolated for p in pieces), left=left,
    )  # fmt: skip


def _shape(parts: Sequence[Part], layers: list[int], microbatches: list[int]) -> Shape:
    """Segments, and which of them share a layer or a microbatch: what makes two blocks the same."""
    layer_of = {layer: number for number, layer in enumerate(layers)}
    batch_of = {microbatch: number for number, microbatch in enumerate(microbatches)}
    pattern = tuple(
        number for part in parts for number in (layer_of[part.layer], batch_of[part.microbatch])
    )
    return tuple(part.segment for part in parts), pattern


def _slots(parts: Sequence[Part], layers: list[int], microbatches: list[int]) -> tuple[Slot, ...]:
    """The buffers a block touches, layers and microbatches named by their order in it."""
    found: dict[Slot, None] = {}
    for part in parts:
        layer, microbatch = layers.index(part.layer), microbatches.index(part.microbatch)
        for buffer in part.segment.touched:
            found[buffer.key(layer, microbatch)] = None
    return tuple(found)

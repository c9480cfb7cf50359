"""The L2 as state: which buffers one GPU touched lately, and how much of them is still there.

Recency is kept per buffer, most recent first. A buffer's reuse distance is its own size plus the
bytes touched since its last use; the cost model turns distances into hit fractions. Buffers too
far back to hit are forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sim.cost.model import CostModel, OpCost, Traffic
from sim.plan import ops
from sim.plan.demand import demand_of
from sim.plan.ops import BufferKey, Op
from sim.plan.program import Part, Segment

Entry = tuple[BufferKey, int]


@dataclass(frozen=True, slots=True)
class TimedOp:
    """One op of a block with its cost and offsets (picoseconds) from the block's start."""

    part_index: int
    op: Op
    cost: OpCost
    start_ps: int
    end_ps: int


@dataclass(frozen=True, slots=True)
class Block:
    """Parts in a row, walked through one L2 state: when each op runs, what it moves.

    `hbm_bytes` is what the block takes from HBM; `bound_ps` splits its time by bottleneck.
    `slots`: the state it leaves, most recent first, as (is a slot of this block, index, bytes).
    """

    ops: tuple[TimedOp, ...]
    duration_ps: int
    hbm_bytes: int
    bound_ps: dict[str, int]
    collectives: tuple[ops.CollectiveOp, ...]
    num_extrapolated: int
    left: tuple[tuple[bool, int, int], ...]


@dataclass(slots=True)
class L2State:
    """Residency of one GPU's L2."""

    cost: CostModel
    entries: list[Entry] = field(default_factory=list)

    def traffic_of(self, op: Op, layer: int, microbatch: int) -> Traffic:
        """What this op's reads miss and hit; afterwards its buffers are the most recent ones."""
        demand = demand_of(op)
        missed = hit = 0
        for buffer, size in demand.reads:
            key = buffer.key(layer, microbatch)
            fraction = self._hit_fraction(key, size)
            hit_bytes = round(fraction * size)
            hit += hit_bytes
            missed += size - hit_bytes
            self._touch(key, size)
        for buffer, size in demand.writes:
            self._touch(buffer.key(layer, microbatch), size)
        return Traffic(missed, hit, demand.written_bytes)

    def _hit_fraction(self, key: BufferKey, size: int) -> float:
        since = 0
        for other, held in self.entries:
            if other == key:
                return self.cost.hit_fraction(since + max(size, held)) * min(1.0, held / size)
            since += held
        return 0.0

    def _touch(self, key: BufferKey, size: int) -> None:
        """Move to the front; drop what no hit can reach any more.

        A touch of less than is held (one token written into a cache) refreshes nothing else.
        """
        if any(other == key and held > size for other, held in self.entries):
            return
        horizon, total = self.cost.hit_horizon_bytes, size
        kept = [(key, size)]
        for entry in self.entries:
            if total >= horizon:
                break
            if entry[0] != key:
                kept.append(entry)
                total += entry[1]
        self.entries = kept


def seconds_to_ps(seconds: float) -> int:
    """Simulated time is a whole number of picoseconds, so that folded repeats are exact."""
    return round(seconds * 1e12)


def time_block(
    parts: Sequence[Part], state: L2State
) -> tuple[list[TimedOp], int, dict[str, int]]:
    """Walk parts through the state. Returns timed ops, HBM bytes and time by bottleneck."""
    timed: list[TimedOp] = []
    bound_ps: dict[str, int] = {}
    now = hbm_bytes = 0
    for index, part in enumerate(parts):
        for op in part.segment.ops:
            traffic = state.traffic_of(op, part.layer, part.microbatch)
            cost = _cost_of(op, traffic, state.cost)
            hbm_bytes += traffic.hbm_bytes
            start = now + seconds_to_ps(cost.launch_s)
            end = start + seconds_to_ps(cost.kernel_s)
            bound_ps["launch"] = bound_ps.get("launch", 0) + start - now
            bound_ps[cost.bound] = bound_ps.get(cost.bound, 0) + end - start
            timed.append(TimedOp(index, op, cost, start, end))
            now = end
    return timed, hbm_bytes, bound_ps


def _cost_of(op: Op, traffic: Traffic, cost: CostModel) -> OpCost:
    if isinstance(op, (ops.AllReduce, ops.AllGather)):
        return cost.collective(op)
    assert not isinstance(op, (ops.Send, ops.Recv)), "messages are not part of a block"
    return cost.local(op, traffic)


Shape = tuple[tuple[Segment, ...], tuple[int, ...]]
Slot = tuple[str, int, int]


@dataclass(slots=True)
class BlockCache:
    """Blocks timed once per (segments, L2 state up to renaming) and repeated by arithmetic.

    Two parts lists with the same segments, entered with states that are equal once buffers are
    named by the slot they have in the block, behave the same; so they are walked once.
    """

    cost: CostModel
    blocks: dict[tuple[Shape, tuple[tuple[int, int], ...]], Block] = field(default_factory=dict)
    slots: dict[Shape, tuple[Slot, ...]] = field(default_factory=dict)

    def run(self, parts: Sequence[Part], state: L2State) -> Block:
        """Time the parts from this state, and leave the state as they leave it."""
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
        numbers = {key: number for number, key in enumerate(keys)}
        signature = tuple((numbers.get(key, -1), size) for key, size in state.entries)
        block = self.blocks.get((shape, signature))
        if block is None:
            block = self.blocks[shape, signature] = _timed(parts, state, numbers)
            return block
        before = state.entries
        state.entries = [
            (keys[index] if is_slot else before[index][0], size)
            for is_slot, index, size in block.left
        ]
        return block


def _shape(parts: Sequence[Part], layers: list[int], microbatches: list[int]) -> Shape:
    """Segments, and which of them share a layer or a microbatch: what makes two blocks the same."""
    layer_of = {layer: number for number, layer in enumerate(layers)}
    batch_of = {microbatch: number for number, microbatch in enumerate(microbatches)}
    pattern = tuple(
        number for part in parts for number in (layer_of[part.layer], batch_of[part.microbatch])
    )
    return tuple(part.segment for part in parts), pattern


def _slots(
    parts: Sequence[Part], layers: list[int], microbatches: list[int]
) -> tuple[Slot, ...]:
    """The buffers a block touches, layers and microbatches named by their order in it."""
    found: dict[Slot, None] = {}
    for part in parts:
        layer, microbatch = layers.index(part.layer), microbatches.index(part.microbatch)
        for buffer in part.segment.touched:
            found[buffer.key(layer, microbatch)] = None
    return tuple(found)


def _timed(parts: Sequence[Part], state: L2State, numbers: dict[BufferKey, int]) -> Block:
    before = {key: index for index, (key, _) in enumerate(state.entries)}
    timed, hbm_bytes, bound_ps = time_block(parts, state)
    left = tuple(
        (True, numbers[key], size) if key in numbers else (False, before[key], size)
        for key, size in state.entries
    )
    duration = timed[-1].end_ps if timed else 0
    collectives = tuple(t.op for t in timed if isinstance(t.op, (ops.AllReduce, ops.AllGather)))
    extrapolated = sum(t.cost.extrapolated for t in timed)
    return Block(
        tuple(timed), duration, hbm_bytes, bound_ps, collectives, extrapolated, left
    )

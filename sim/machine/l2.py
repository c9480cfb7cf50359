"""The L2 as state: which buffers one GPU touched lately, how much of them is there, what is dirty.

Recency is kept per buffer, most recent first. A buffer's reuse distance is its own size plus the
bytes touched since its last use; the cost model turns distances into hit fractions. Buffers too
far back to hit are forgotten, and what had been written into them is then written back to HBM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from layerwise.sim.cost.model import CostModel, Traffic
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.ops import Buffer, BufferKey, Op

# (buffer, bytes of it that were touched, of these written and not yet in HBM)
Entry = tuple[BufferKey, int, int]

# A kernel's code is small: what counts is how much was touched since its last turn.
CODE_BYTES = 1


def code_of(op: Op) -> BufferKey:
    """The code of this kind of op's kernel, the same for all layers."""
    return (f"{op.kind}.code", -1, -1)


@dataclass(slots=True)
class L2State:
    """Residency of one GPU's L2.

    `persisting`: the share of a weight that an access-policy window keeps, in lines set aside for
    it, where the kernel that reads it obeys; lines that are held so are lost to everything else
    (`left`, the share of the L2 that others see). `kept` names the weights whose lines the windows hold already. `set_aside`: a part of the
    L2 is set aside, whether or not the kernels make use of it.
    """

    cost: CostModel
    entries: list[Entry] = field(default_factory=list)
    persisting: float = 0.0
    left: float = 1.0
    set_aside: bool = False
    kept: set[BufferKey] = field(default_factory=set)
    _limit_bytes: int = 0
    _written_back: int = 0

    def __post_init__(self) -> None:
        # Beyond this nothing hits; an entry that is larger tells no more than one of this size.
        self._limit_bytes = math.ceil(self.cost.hit_horizon_bytes * self.left)

    @property
    def limit_bytes(self) -> int:
        """The reuse distance from which nothing hits any more."""
        return self._limit_bytes

    def traffic_of(self, op: Op, layer: int, microbatch: int) -> Traffic:
        """What this op's reads miss and hit; afterwards its buffers are the most recent ones."""
        demand = demand_of(op)
        missed = hit = written = 0
        self._written_back = 0
        code = code_of(op)
        code_missed = 1.0 - self._hit_fraction(CODE_BYTES, *self._touch(code, CODE_BYTES, 0))
        obeys = self.persisting > 0 and self.cost.obeys_windows(op)
        for buffer, size in demand.reads:
            key = buffer.key(layer, microbatch)
            covered = round(self.persisting * size) if obeys and buffer.kind == "weight" else 0
            others = size - covered
            fraction = self._hit_fraction(others, *self._touch(key, others, 0))
            hit_bytes = round(fraction * others) + covered * (key in self.kept)
            if covered:
                self.kept.add(key)
            hit += hit_bytes
            missed += size - hit_bytes
        for buffer, size in demand.writes:
            written += size
            self._touch(buffer.key(layer, microbatch), size, size)
        return Traffic(missed, hit, written, self._written_back, self.set_aside, code_missed)

    def receive(self, buffer: Buffer, layer: int, microbatch: int) -> None:
        """A message has arrived in this buffer: links write through the L2."""
        self._touch(buffer.key(layer, microbatch), buffer.num_bytes, buffer.num_bytes)

    def _hit_fraction(self, size: int, since: int, held: int) -> float:
        """What is found of a buffer that had so much held, after so many bytes of others."""
        if not size or not held:
            return 0.0
        distance = since + max(size, held)
        return self.cost.hit_fraction(round(distance / self.left)) * min(1.0, held / size)

    def _touch(self, key: BufferKey, size: int, written: int) -> tuple[int, int]:
        """Move to the front; drop what no hit can reach any more, and write it back.

        A touch of less than is held (one token written into a cache) refreshes nothing else.
        Returns the bytes touched since the last time, and those held of it; 0 of what is not there.
        """
        limit, entries = self._limit_bytes, self.entries
        dirty = 0
        if written:
            dirty = min(limit, written)
            # What streams through in one op is written back as it goes.
            self._written_back += written - dirty
        since = last = 0
        has_grown = False
        for index, (other, held, was_dirty) in enumerate(entries):
            if other == key:
                if not written:
                    dirty = was_dirty
                elif written < held:
                    dirty = min(held, was_dirty + dirty)
                else:
                    dirty = max(dirty, was_dirty)
                if held > size:
                    entries[index] = (key, held, dirty)
                    return since, held
                del entries[index]
                has_grown = held < size and held < limit
                break
            since += held
            last = held
        else:
            held = 0
        total = min(limit, size)
        entries.insert(0, (key, total, min(total, dirty)))
        # Those before it moved back by its bytes, those behind it by what it has grown.
        if has_grown or total + since - last >= limit:
            self._drop()
        return since, held

    def _drop(self) -> None:
        """Forget what begins beyond the limit, but for what was touched last."""
        entries, total = self.entries, 0
        for index, (_, held, _) in enumerate(entries):
            if index and total >= self._limit_bytes:
                self._written_back += sum([dirty for _, _, dirty in entries[index:]])
                del entries[index:]
                return
            total += held

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
        code_missed = 1.0 - self._hit_fraction(code, CODE_BYTES)
        self._touch(code, CODE_BYTES, 0)
        obeys = self.persisting > 0 and self.cost.obeys_windows(op)
        for buffer, size in demand.reads:
            key = buffer.key(layer, microbatch)
            covered = round(self.persisting * size) if obeys and buffer.kind == "weight" else 0
            fraction = self._hit_fraction(key, size - covered)
            hit_bytes = round(fraction * (size - covered)) + covered * (key in self.kept)
            if covered:
                self.kept.add(key)
            hit += hit_bytes
            missed += size - hit_bytes
            self._touch(key, size - covered, 0)
        for buffer, size in demand.writes:
            written += size
            self._touch(buffer.key(layer, microbatch), size, size)
        return Traffic(missed, hit, written, self._written_back, self.set_aside, code_missed)

    def receive(self, buffer: Buffer, layer: int, microbatch: int) -> None:
        """A message has arrived in this buffer: links write through the L2."""
        self._touch(buffer.key(layer, microbatch), buffer.num_bytes, buffer.num_bytes)

    def _hit_fraction(self, key: BufferKey, size: int) -> float:
        if not size:
            return 0.0
        since = 0
        for other, held, _ in self.entries:
            if other == key:
                distance = since + max(size, held)
                return self.cost.hit_fraction(round(distance / self.left)) * min(1.0, held / size)
            since += held
        return 0.0

    def _touch(self, key: BufferKey, size: int, written: int) -> None:
        """Move to the front; drop what no hit can reach any more, and write it back.

        A touch of less than is held (one token written into a cache) refreshes nothing else.
        """
        limit, dirty = self._limit_bytes, min(written, self._limit_bytes)
        # What streams through in one op is written back as it goes.
        self._written_back += written - dirty
        for index, (other, held, was_dirty) in enumerate(self.entries):
            if other == key:
                dirty = min(held, was_dirty + dirty) if written < held else max(dirty, was_dirty)
                if held > size:
                    self.entries[index] = (key, held, dirty)
                    return
                break
        total = min(size, limit)
        kept = [(key, total, min(dirty, total))]
        for entry in self.entries:
            if entry[0] == key:
                continue
            if total >= limit:
                self._written_back += entry[2]
            else:
                kept.append(entry)
                total += entry[1]
        self.entries = kept

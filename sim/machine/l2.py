"""The L2 as state: which buffers one GPU touched lately, and how much of them is still there.

Recency is kept per buffer, most recent first. A buffer's reuse distance is its own size plus the
bytes touched since its last use; the cost model turns distances into hit fractions. Buffers too
far back to hit are forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sim.cost.model import CostModel, Traffic
from sim.plan.demand import demand_of
from sim.plan.ops import BufferKey, Op

Entry = tuple[BufferKey, int]


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
        for other, held in self.entries:
            if other == key:
                if held > size:
                    return
                break
        horizon, total = self.cost.hit_horizon_bytes, size
        kept = [(key, size)]
        for entry in self.entries:
            if total >= horizon:
                break
            if entry[0] != key:
                kept.append(entry)
                total += entry[1]
        self.entries = kept

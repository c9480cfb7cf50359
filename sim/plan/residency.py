"""Which weights an access-policy window asks the L2 to keep, and what share of each.

One rule for the engine, which sets the windows, and the simulator, which counts their hits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from layerwise.sim.plan.hardware import GpuSpec
from layerwise.sim.plan.ops import Buffer, BufferKey, Op
from layerwise.sim.plan.program import Program


def rank_weight_bytes(
    programs: Iterable[Program], counts: Callable[[Op], bool] = lambda _op: True
) -> int:
    """Bytes of all weights that one rank's programs read whole, each counted once.

    `counts`: which ops' weights; all of them if not given.
    """
    found: dict[BufferKey, int] = {}
    for program in programs:
        for part in program.parts:
            for op in part.segment.ops:
                weight = op.whole_weight
                if weight is not None and counts(op):
                    found[weight.key(part.layer, part.microbatch)] = weight.num_bytes
    return sum(found.values())


def window_hit_ratio(weight_bytes: int, gpu: GpuSpec) -> float:
    """Share of each window's lines that are persisting: all windows together fill the set-aside.

    Source: CUDA C++ Programming Guide, "L2 Persistence": `hitRatio` below 1 keeps windows that
    together exceed the set-aside from evicting each other's lines.
    """
    if weight_bytes <= 0:
        return 1.0
    return min(1.0, gpu.persisting_l2_bytes / weight_bytes)


def window_bytes(weight: Buffer, gpu: GpuSpec) -> int:
    """Bytes of a weight under its window: all of it, or the first part of a large one."""
    return min(weight.num_bytes, gpu.access_window_bytes)

"""What a bar that is met with room to spare leaves room for: a larger batch, or fewer GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from layerwise.scenarios.rank.asked import Asked, Candidate
from layerwise.scenarios.rank.explore import at_once, order_of
from layerwise.scenarios.rank.fitting import left_bytes, resized
from layerwise.scenarios.rank.layouts import Layout, layouts_of
from layerwise.sim.plan.errors import SpecError

Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
# Of the bar: a winner below that has room to spare.
SLACK = 0.5
# Each number of sequences or of GPUs is tried with so many layouts.
NUM_LAYOUTS = 4


@dataclass(frozen=True, kw_only=True)
class Leeway:
    """The largest batch found on these GPUs, and the fewest GPUs found for this batch.

    Both meet the bar and fit; None: twice the batch, or half the GPUs, does not. Found by doubling
    and halving.
    """

    larger: Candidate | None = None
    fewer: Candidate | None = None


def leeway_of(
    asked: Asked, best: Sequence[Candidate], tpot_below_s: float | None, spread: Spread
) -> Leeway:
    """Nothing where there is no bar, or `best` (from the first) does not undercut it by far."""
    if tpot_below_s is None or not best or best[0].tpot_s >= SLACK * tpot_below_s:
        return Leeway()
    return Leeway(
        larger=_larger(asked, best, tpot_below_s, spread), fewer=_fewer(asked, tpot_below_s, spread)
    )


def _larger(
    asked: Asked, best: Sequence[Candidate], tpot_below_s: float, spread: Spread
) -> Candidate | None:
    """Doubling, with the fastest layouts of this batch and those that need the least memory."""
    roomy = sorted(best, key=lambda c: c.memory.total_bytes)
    half = NUM_LAYOUTS // 2
    layouts = list(dict.fromkeys(c.layout for c in (*best[:half], *roomy[:half])))
    found, work = None, asked.workload
    while True:
        try:
            work = replace(work, batch_size=2 * work.batch_size)
        except SpecError:
            return found  # beyond what a workload may be
        larger = _best(replace(asked, workload=work), layouts, tpot_below_s, spread)
        if larger is None:
            return found
        found = larger


def _fewer(asked: Asked, tpot_below_s: float, spread: Spread) -> Candidate | None:
    """Halving, with the shortest pipelines: their tokens are closest together."""
    found, number = None, asked.cluster.num_gpus
    while number % 2 == 0:
        number //= 2
        cluster = resized(asked.cluster, number)
        if cluster is None:
            return found
        there = replace(asked, cluster=cluster)
        layouts, _ = layouts_of(asked.model, cluster, asked.workload, asked.profile)
        shortest = sorted(
            layouts,
            key=lambda layout: (
                layout.pipeline_parallel,
                layout.data_parallel,
                layout.all_reduce == "nccl",
            ),
        )
        fewer = _best(there, shortest, tpot_below_s, spread)
        if fewer is None:
            return found
        found = fewer
    return found


def _best(
    asked: Asked, layouts: Iterable[Layout], tpot_below_s: float, spread: Spread
) -> Candidate | None:
    """The fastest of the first few that fit, among those that meet the bar; None if none does."""
    fitting = [each for each in layouts if _may_fit(asked, each)][:NUM_LAYOUTS]
    made = list(spread(at_once, [(asked, layout) for layout in fitting]))
    meeting = [each for each in made if each is not None and each.meets(tpot_below_s)]
    return max(meeting, key=order_of, default=None)


def _may_fit(asked: Asked, layout: Layout) -> bool:
    if layout.data_parallel > asked.workload.batch_size:
        return False
    try:
        return left_bytes(asked, layout, asked.reserved_bytes) >= 0
    except SpecError:
        return False

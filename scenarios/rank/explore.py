"""One layout explored: its numbers of microbatches, smaller batches, its time to first token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from layerwise.scenarios.rank.asked import Asked, Candidate
from layerwise.scenarios.rank.layouts import Layout, Refused, microbatch_grid
from layerwise.scenarios.rank.unvalidated import parts_of
from layerwise.sim.cost.model import Calibrated
from layerwise.sim.plan.errors import ProfileMismatchError
from layerwise.sim.plan.workload import MAX_CHUNKS
from layerwise.sim.predict import Prediction, predict_plan

# Upwards, throughput has this many chances to rise again before more microbatches are left out.
NUM_DECLINES = 2


@dataclass(frozen=True, kw_only=True)
class Explored:
    """One layout at the batch asked for, and its best at each smaller one."""

    candidates: tuple[Candidate, ...]
    smaller: tuple[Candidate, ...]


def explore(task: tuple[Asked, Layout]) -> Explored | Refused:
    """Predict one layout every way; Refused where the profile lacks a table that it needs."""
    asked, layout = task
    cost = asked.cost()
    try:
        prompt = _first_token(asked, layout, cost)
        return Explored(
            candidates=_microbatches(asked, layout, cost, prompt),
            smaller=tuple(_smaller_batches(asked, layout, cost, prompt)),
        )
    except ProfileMismatchError as error:
        # A table that the profile lacks for this layout's groups; others may have theirs.
        return Refused(name=layout.name, reason=str(error))


def at_once(task: tuple[Asked, Layout]) -> Candidate | None:
    """One layout at the best number of microbatches; None where the profile lacks a table for it."""
    asked, layout = task
    cost = asked.cost()
    try:
        prompt = _first_token(asked, layout, cost)
        return _at_best(asked, layout, cost, prompt)
    except ProfileMismatchError:
        return None


def _microbatches(
    asked: Asked, layout: Layout, cost: Calibrated, prompt: Prediction
) -> tuple[Candidate, ...]:
    """The grid from as many as stages, then halving between neighbours of the best found."""
    limit = asked.workload.batch_size // layout.data_parallel
    tried: dict[int, Candidate] = {}
    plan = asked.plan(layout, cost)

    def attempt(number: int) -> tuple[bool, float]:
        if number not in tried:
            found = predict_plan(plan.with_microbatches(number))
            tried[number] = _candidate(asked, layout, cost, found, prompt)
        return order_of(tried[number])

    fixed = asked.workload.num_microbatches
    if fixed:
        if fixed <= limit:
            attempt(fixed)
        return tuple(tried.values())
    grid = microbatch_grid(limit, layout.pipeline_parallel)
    start = grid.index(min(layout.pipeline_parallel, limit))
    for numbers in (grid[start:], grid[start::-1]):
        _climb(attempt, numbers)
    while True:
        best = max(tried, key=attempt)
        known = sorted(tried)
        at = known.index(best)
        between = {(best + known[i]) // 2 for i in (at - 1, at + 1) if 0 <= i < len(known)}
        if not between - set(known):
            return tuple(tried.values())
        for number in between:
            attempt(number)


def _climb(attempt: Callable[[int], tuple[bool, float]], numbers: Sequence[int]) -> None:
    best, declines = attempt(numbers[0]), 0
    for number in numbers[1:]:
        found = attempt(number)
        declines = 0 if found > best else declines + 1
        best = max(best, found)
        if declines == NUM_DECLINES:
            return


def _smaller_batches(
    asked: Asked, layout: Layout, cost: Calibrated, prompt: Prediction
) -> Iterator[Candidate]:
    """The best number of microbatches (`layerwise.sim.predict`'s search) at each power of two below."""
    size = 1
    while size < asked.workload.batch_size:
        fixed = asked.workload.num_microbatches
        if size % layout.data_parallel == 0 and fixed <= size // layout.data_parallel:
            small = replace(asked, workload=replace(asked.workload, batch_size=size))
            yield _at_best(small, layout, cost, prompt)
        size *= 2


def _at_best(asked: Asked, layout: Layout, cost: Calibrated, prompt: Prediction) -> Candidate:
    """At the number of microbatches asked for, or at the best that `layerwise.sim.predict` finds."""
    found = predict_plan(asked.plan(layout, cost, asked.workload.num_microbatches))
    return _candidate(asked, layout, cost, found, prompt)


def _first_token(asked: Asked, layout: Layout, cost: Calibrated) -> Prediction:
    """One prompt on every replica, all of it prefilled, from idle."""
    context = asked.workload.context_tokens
    chunk = max(asked.workload.prefill_chunk_tokens, -(-context // MAX_CHUNKS))
    work = replace(
        asked.workload,
        phase="prefill",
        batch_size=layout.data_parallel,
        prefill_chunk_tokens=chunk,
        num_microbatches=1,
    )
    return predict_plan(replace(asked, workload=work).plan(layout, cost, 1))


def _candidate(
    asked: Asked, layout: Layout, cost: Calibrated, found: Prediction, prompt: Prediction
) -> Candidate:
    return Candidate(
        layout=layout,
        batch_size=asked.workload.batch_size,
        num_microbatches=found.num_microbatches,
        tokens_per_s=found.tokens_per_s,
        tpot_s=found.tpot_s,
        ttft_s=prompt.step_s,
        share=found.share,
        bubble=found.bubble,
        memory=max(found.memory, key=lambda budget: budget.total_bytes),
        num_extrapolated_ops=found.num_extrapolated_ops,
        is_steady=found.is_steady,
        uncertainty=found.uncertainty,
        unvalidated=parts_of(found, cost, asked.pairs),
        unfitted=tuple(dict.fromkeys((*found.unfitted, *prompt.unfitted))),
    )


def order_of(candidate: Candidate) -> tuple[bool, float]:
    """What fits first, then by throughput."""
    return candidate.fits, candidate.tokens_per_s

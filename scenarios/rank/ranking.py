"""Every placement of a model on a cluster, predicted and put in order; a library for what-ifs.

    ranking = rank(model, cluster, Workload(batch_size=128, context_tokens=10_000), profile)

All figures are steady decode. Time to first token is one prompt's prefill, alone on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from layerwise.scenarios.rank.asked import Asked, Candidate
from layerwise.scenarios.rank.explore import Explored, explore, order_of
from layerwise.scenarios.rank.fitting import Room, rooms_of
from layerwise.scenarios.rank.flips import Flip, Knob, find_flip, knobs_of
from layerwise.scenarios.rank.layouts import Layout, Refused, layouts_of
from layerwise.scenarios.rank.leeway import Leeway, leeway_of
from layerwise.scenarios.rank.unvalidated import measured_pairs, width_of_ratio
from layerwise.scenarios.rank.workers import spreading
from layerwise.sim.memory import Remedy, remedies
from layerwise.sim.plan.errors import PlacementError, SpecError
from layerwise.sim.plan.hardware import NOTHING_SLOW, ClusterSpec
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.scenario import RunSpec
from layerwise.sim.plan.workload import Workload
from layerwise.sim.predict import predict_plan
from layerwise.sim.profile import Profile
from layerwise.sim.uncertainty import half_width_of_ratio

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Candidates from the best; those that fit first.

    `best`: the leader at each layout's best number of microbatches, one row a layout.
    `front`: over batches up to the one asked for, what no other candidate beats in both tokens/s
    and TPOT (at one batch the two say the same). `rival`: the best that is not tied with the
    winner. `nearest` and `remedies`: what needs the least memory, and what would make it fit, when
    nothing does; `rooms`: on which GPUs all of it would. `needed`: the fastest smaller batch that
    meets a TPOT which the whole one does not; `leeway`: what a TPOT met with ease leaves room for.
    """

    asked: Asked
    candidates: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    refused: tuple[Refused, ...]
    tpot_below_s: float | None
    flips: tuple[Flip, ...]
    nearest: Candidate | None
    remedies: tuple[Remedy, ...]
    needed: Candidate | None
    rooms: tuple[Room, ...] = ()
    leeway: Leeway = Leeway()

    @property
    def best(self) -> tuple[Candidate, ...]:
        """Each layout's first."""
        first: dict[Layout, Candidate] = {}
        for each in self.candidates:
            first.setdefault(each.layout, each)
        return tuple(first.values())

    @property
    def winner(self) -> Candidate | None:
        """The best that fits and meets the TPOT; None when none does."""
        return next((c for c in self.candidates if c.meets(self.tpot_below_s)), None)

    @property
    def tied(self) -> tuple[Candidate, ...]:
        """Layouts whose difference from the winner `is_tied` cannot tell."""
        winner = self.winner
        if winner is None:
            return ()
        return tuple(
            c
            for c in self.best
            if c is not winner and c.meets(self.tpot_below_s) and is_tied(winner, c)
        )

    @property
    def runner_up(self) -> Candidate | None:
        """The second best layout that qualifies, tied with the winner or not."""
        winner = self.winner
        return next(
            (c for c in self.best if winner and c is not winner and c.meets(self.tpot_below_s)),
            None,
        )

    @property
    def rival(self) -> Candidate | None:
        """The best layout that is not tied with the winner."""
        winner, tied = self.winner, self.tied
        return next(
            (
                c
                for c in self.best
                if winner and c is not winner and c not in tied and c.meets(self.tpot_below_s)
            ),
            None,
        )


def rank(
    model: ModelSpec,
    cluster: ClusterSpec,
    workload: Workload,
    profile: Profile | None = None,
    *,
    run: RunSpec | None = None,
    tpot_below_s: float | None = None,
    fits_only: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Ranking:
    """Predict every layout and put them in order.

    A number of microbatches in the workload is kept; 0 tries many. `workers` above 1 are processes:
    a script that asks for them must be importable (`if __name__ == "__main__"`). `progress` is told
    how many layouts and knobs are done, of how many. Raises SpecError for a workload that is not
    decode, PlacementError when no layout is valid, what `Asked.cost` raises.
    """
    if workload.phase != "decode":
        raise SpecError(
            "workload.phase",
            workload.phase,
            "is not ranked",
            "use 'decode'; each row has its time to first token",
        )
    asked = Asked(
        model=model,
        cluster=cluster,
        workload=workload,
        run=run or RunSpec(),
        profile=profile,
        pairs=measured_pairs() if profile else {},
    )
    asked.cost()
    layouts, refused = layouts_of(model, cluster, workload, profile)
    if not layouts:
        raise _nothing_valid(asked, refused)
    with spreading(min(workers, len(layouts))) as spread:
        tasks = sorted(((asked, layout) for layout in layouts), key=_work, reverse=True)
        knobs = knobs_of(cluster, asked.run.launch)
        total = len(tasks) + len(knobs)
        done = list(_counted(spread(explore, tasks), 0, total, progress))
        refused += tuple(each for each in done if isinstance(each, Refused))
        explored = [each for each in done if isinstance(each, Explored)]
        if not explored:
            raise _nothing_valid(asked, refused)
        ranking = _ranking(asked, explored, refused, tpot_below_s, fits_only=fits_only)
        winner, rival = ranking.winner, ranking.rival
        if winner:
            meeting = [each for each in ranking.best if each.meets(tpot_below_s)]
            leeway = leeway_of(asked, meeting, tpot_below_s, spread)
            ranking = replace(ranking, leeway=leeway)
        if winner is None or rival is None:
            return ranking
        pairs = [(asked, knob, winner, rival) for knob in knobs]
        flips = _counted(spread(_flip, pairs), len(tasks), total, progress)
        return replace(ranking, flips=tuple(flips))


def is_tied(one: Candidate, other: Candidate) -> bool:
    """Is their difference inside the interval of their ratio?

    Always, where what no fit has seen takes an interval away; never under a belief that has none.
    """
    widths = widths_of_ratio(one, other)
    if widths is None:
        return has_unknown_width(one) or has_unknown_width(other)
    return abs(math.log(one.tokens_per_s / other.tokens_per_s)) <= sum(widths)


def has_unknown_width(one: Candidate) -> bool:
    """Does nobody know how far what it runs is off?"""
    return any(change.half_width is None for change in one.unfitted)


def widths_of_ratio(one: Candidate, other: Candidate) -> tuple[float, float] | None:
    """What the ratio of two may be off by, as ln; None where either has no interval.

    First the 90 % half-width of what was calibrated: errors that both share cancel, so that two
    overlapping intervals may still tell them apart. Then the known error of what nothing measured
    here has checked.
    """
    if one.uncertainty is None or other.uncertainty is None:
        return None
    return (
        half_width_of_ratio(one.uncertainty, other.uncertainty),
        width_of_ratio(one.unvalidated, other.unvalidated),
    )


def pareto(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Those that no other beats in tokens/s without a longer TPOT, from the shortest TPOT."""
    front: list[Candidate] = []
    for each in sorted(candidates, key=lambda c: (c.tpot_s, -c.tokens_per_s)):
        if not front or each.tokens_per_s > front[-1].tokens_per_s:
            front.append(each)
    return tuple(front)


def _ranking(
    asked: Asked,
    explored: Sequence[Explored],
    refused: tuple[Refused, ...],
    tpot_below_s: float | None,
    *,
    fits_only: bool,
) -> Ranking:
    everyone = [c for each in explored for c in each.candidates]
    ordered = sorted(everyone, key=order_of, reverse=True)
    front = pareto(c for each in explored for c in (*each.candidates, *each.smaller) if c.fits)
    nearest = needed = None
    if not any(c.fits for c in everyone):
        nearest = min(everyone, key=lambda c: (c.memory.total_bytes, -c.tokens_per_s))
    elif not any(c.meets(tpot_below_s) for c in everyone):
        needed = max(
            (c for c in front if c.meets(tpot_below_s)), key=lambda c: c.tokens_per_s, default=None
        )
    return Ranking(
        asked=asked,
        candidates=tuple(c for c in ordered if c.fits or not fits_only),
        front=front,
        refused=refused,
        tpot_below_s=tpot_below_s,
        flips=(),
        nearest=nearest,
        remedies=_remedies(asked, nearest) if nearest else (),
        needed=needed,
        rooms=rooms_of(asked) if nearest else (),
    )


def _remedies(asked: Asked, nearest: Candidate) -> tuple[Remedy, ...]:
    scenario = asked.scenario(nearest.layout, nearest.num_microbatches)
    return remedies(scenario, nearest.memory)


def _work(task: tuple[Asked, Layout]) -> int:
    """What takes longest is started first: long pipelines of single GPUs."""
    return task[1].pipeline_parallel


def _nothing_valid(asked: Asked, refused: tuple[Refused, ...]) -> PlacementError:
    number = asked.cluster.num_gpus
    smaller = (n for n in range(number - 1, 0, -1) if _has_layout(asked, n))
    reasons = "; ".join(f"{each.name}: {each.reason}" for each in refused[:3])
    more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
    return PlacementError(
        "cluster.num_gpus",
        number,
        f"has no valid placement of {asked.model.name} at batch {asked.workload.batch_size} "
        f"({reasons}{more})",
        f"use {next(smaller, 1)} GPUs, or another batch",
    )


def _has_layout(asked: Asked, num_gpus: int) -> bool:
    one_node = replace(asked.cluster, num_nodes=1, gpus_per_node=num_gpus, slow=NOTHING_SLOW)
    return bool(layouts_of(asked.model, one_node, asked.workload, None)[0])


def _flip(task: tuple[Asked, Knob, Candidate, Candidate]) -> Flip:
    """What one knob does to the lead of a winner over its rival, microbatches kept."""
    asked, knob, winner, rival = task

    def lead(factor: float) -> float:
        changed = asked.with_knob(knob, factor)
        cost = changed.cost()
        first, second = (
            predict_plan(changed.plan(c.layout, cost, c.num_microbatches)).tokens_per_s
            for c in (winner, rival)
        )
        return math.log(first / second)

    return find_flip(knob, lead, asked.cluster)


def _counted(
    results: Iterable[Result], before: int, total: int, progress: Callable[[int, int], None]
) -> Iterator[Result]:
    for number, result in enumerate(results, before + 1):
        progress(number, total)
        yield result

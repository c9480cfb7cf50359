"""A host's folder beside its predictions: steps, ops, rankings, links, and the bars above them.

Nothing here measures. It reads what is there: a folder cut short by its budget is scored as far as
it goes, and says what it lacks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, median

from layerwise.calibration.least_squares import FitError
from layerwise.calibration.links import LinkTimings, fit_links, mean_error, read_links
from layerwise.hw.series import trace_path
from layerwise.scenarios.predict.alone import predict_run
from layerwise.scenarios.whole_host.asked import HostRun
from layerwise.scenarios.whole_host.op_times import op_medians
from layerwise.scenarios.whole_host.predictions import HostPrediction, RunPrediction
from layerwise.sim.plan.scenario import compile_run
from layerwise.sim.profile import Profile
from layerwise.sim.trace import Trace, read_trace

# What is held to; "Figures when it has run" of the issue that asked for this.
STEP_MEDIAN_BAR, STEP_WORST_BAR, SMALL_TENSOR_BAR, ALL_REDUCE_BAR = 0.06, 0.12, 0.20, 0.06
ALL_REDUCE = "all_reduce.nccl."


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """A run beside what was predicted before it; errors are predicted over measured, less one.

    `own_links_s`: predicted with the links that this host's run measured (0: none were fitted).
    `ops`: by kind of op, (predicted seconds, measured seconds).
    """

    name: str
    question: str
    placement: str
    is_small: bool
    reduces: bool
    predicted_s: float
    half_width: float
    speed_of_light_s: float
    uncalibrated_s: float
    measured_s: float
    traced_ratio: float
    own_links_s: float = 0.0
    ops: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    cautions: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """Of the step that was predicted before."""
        return self.predicted_s / self.measured_s - 1

    @property
    def own_links_error(self) -> float | None:
        """Of the step predicted with this host's own links."""
        return self.own_links_s / self.measured_s - 1 if self.own_links_s else None

    @property
    def is_inside(self) -> bool:
        """Does the measurement lie in the 90 % interval?"""
        return abs(math.log(self.measured_s / self.predicted_s)) <= self.half_width

    @property
    def median_op_error(self) -> float | None:
        """Of the sizes of its ops' errors."""
        sizes = [abs(before / after - 1) for before, after in self.ops.values() if after]
        return median(sizes) if sizes else None


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A question: its placements from the fastest, each by its best run; seconds by placement.

    `pairs_asked`: pairs whose measured gap exceeds their interval; `pairs_right` of them are
    predicted in the order measured.
    """

    question: str
    predicted: dict[str, float]
    measured: dict[str, float]
    pairs_asked: int
    pairs_right: int

    @property
    def best_is_right(self) -> bool:
        """Is the placement predicted fastest the one measured fastest?"""
        return next(iter(self.predicted)) == next(iter(self.measured))


@dataclass(frozen=True, kw_only=True)
class LinkScore:
    """A transfer's held-out payloads: mean absolute error of this run's own fit, and of the blind.

    `blind_error` None: nothing was predicted. `largest_bytes_per_s`: at the largest payload.
    """

    name: str
    mode: str
    num_fitted: int
    num_held_out: int
    own_error: float | None
    blind_error: float | None
    largest_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A figure beside what it is held to; `passes` None: there is nothing to hold."""

    what: str
    figure: float | None
    bar: float
    num: int

    @property
    def passes(self) -> bool | None:
        """At most the bar."""
        return None if self.figure is None else self.figure <= self.bar


@dataclass(frozen=True, kw_only=True)
class HostScore:
    """Everything that a report says."""

    runs: tuple[RunScore, ...]
    missing: tuple[str, ...]
    rankings: tuple[Ranking, ...]
    links: tuple[LinkScore, ...]
    bars: tuple[Bar, ...]


def score_host(
    out: Path, prediction: HostPrediction, runs: Sequence[HostRun], profile: Profile | None
) -> HostScore:
    """Score a folder. `profile`: what predicted, to predict again with the links measured here."""
    modes: tuple[str, ...] = ("graph", "eager")
    found = {mode: _links_of(out / "links.json", mode) for mode in modes}
    own = _with_own_links(profile, found["graph"])
    scored = tuple(_scores(out, prediction, runs, own))
    links = tuple(_link_scores(found, prediction))
    rankings = tuple(rank(scored))
    names = {one.name for one in scored}
    return HostScore(
        runs=scored,
        missing=tuple(run.name for run in runs if run.name not in names),
        rankings=rankings,
        links=links,
        bars=bars_of(scored, rankings, links),
    )


def score_run(
    run: HostRun, predicted: RunPrediction, trace: Trace, own: Profile | None = None
) -> RunScore:
    """A trace beside what was predicted before it."""
    measured_ops = op_medians(compile_run(run.scenario), trace.rows)
    return RunScore(
        name=run.name,
        question=run.question,
        placement=run.placement,
        is_small=run.is_small,
        reduces=run.reduces,
        predicted_s=predicted.step_s,
        half_width=predicted.half_width,
        speed_of_light_s=predicted.speed_of_light_s,
        uncalibrated_s=predicted.uncalibrated_s,
        measured_s=median(trace.untraced_step_s),
        traced_ratio=trace.traced_ratio,
        own_links_s=predict_run(run.scenario, own).step_s if own else 0.0,
        ops={
            kind: (predicted.ops[kind], seconds)
            for kind, seconds in measured_ops.items()
            if kind in predicted.ops
        },
        cautions=trace.cautions(),
    )


def rank(scored: Iterable[RunScore]) -> list[Ranking]:
    """Each question with two placements or more."""
    by_question: dict[str, list[RunScore]] = defaultdict(list)
    for one in scored:
        by_question[one.question].append(one)
    return [
        _ranking(question, found)
        for question, found in by_question.items()
        if len({one.placement for one in found}) > 1
    ]


def bars_of(
    runs: Sequence[RunScore], rankings: Sequence[Ranking], links: Sequence[LinkScore]
) -> tuple[Bar, ...]:
    """The figures that the issue names, each beside its bar."""
    paper = [abs(one.error) for one in runs if not one.is_small]
    small = [abs(one.error) for one in runs if one.is_small and one.reduces]
    asked = sum(one.pairs_asked for one in rankings)
    wrong = asked - sum(one.pairs_right for one in rankings)
    held = [one for one in links if one.name.startswith(ALL_REDUCE) and one.mode == "graph"]
    own = [one.own_error for one in held if one.own_error is not None]
    return (
        _bar("steps at the paper's dimensions, median error", paper, STEP_MEDIAN_BAR, median),
        _bar("steps at the paper's dimensions, worst error", paper, STEP_WORST_BAR, max),
        _bar("tensor-parallel steps at hidden 1024, worst error", small, SMALL_TENSOR_BAR, max),
        Bar(
            what="pairs of placements ranked wrongly, of those that tell",
            num=asked,
            bar=0.0,
            figure=float(wrong) if rankings else None,
        ),
        _bar("all-reduce on held-out payloads, worst group's mean error", own, ALL_REDUCE_BAR, max),
    )


def _bar(
    what: str, values: Sequence[float], bar: float, figure_of: Callable[[Sequence[float]], float]
) -> Bar:
    return Bar(what=what, figure=figure_of(values) if values else None, bar=bar, num=len(values))


def _scores(
    out: Path, prediction: HostPrediction, runs: Iterable[HostRun], own: Profile | None
) -> Iterable[RunScore]:
    for run in runs:
        path = trace_path(out / "traces", run.scenario)
        if path.exists() and run.name in prediction.runs:
            yield score_run(run, prediction.runs[run.name], read_trace(path), own)


def _ranking(question: str, found: Sequence[RunScore]) -> Ranking:
    """By each placement's run that is fastest: as predicted there, as measured here."""
    predicted, measured = (_best(found, key) for key in ("predicted_s", "measured_s"))
    asked = right = 0
    for one, other in combinations(measured.values(), 2):
        gap = math.log(other.measured_s / one.measured_s)
        # Independent errors: wider than true where both share shapes, so fewer pairs are asked.
        if gap > math.hypot(one.half_width, other.half_width):
            asked += 1
            right += predicted[other.placement].predicted_s > predicted[one.placement].predicted_s
    return Ranking(
        question=question,
        pairs_asked=asked,
        pairs_right=right,
        predicted={name: one.predicted_s for name, one in predicted.items()},
        measured={name: one.measured_s for name, one in measured.items()},
    )


def _best(found: Iterable[RunScore], key: str) -> dict[str, RunScore]:
    """Placement -> its fastest run by `key`, from the fastest placement."""
    best: dict[str, RunScore] = {}
    for one in sorted(found, key=lambda each: getattr(each, key)):
        best.setdefault(one.placement, one)
    return best


def _links_of(path: Path, mode: str) -> dict[str, LinkTimings]:
    if not path.exists():
        return {}
    return read_links(path, mode="graph" if mode == "graph" else "eager", everything=True)


def _with_own_links(profile: Profile | None, links: Mapping[str, LinkTimings]) -> Profile | None:
    """The profile with this host's messages and collectives in place of those it was shipped with."""
    if profile is None:
        return None
    held = {name: timings for name, timings in links.items() if name in profile.transfers}
    if not held:
        return None
    return replace(profile, transfers=profile.transfers | fit_links(held, "this host's own links"))


def _link_scores(
    found: Mapping[str, Mapping[str, LinkTimings]], prediction: HostPrediction
) -> Iterable[LinkScore]:
    for mode, links in found.items():
        for name, timings in links.items():
            yield _link_score(name, mode, timings, prediction.links.get(name, {}))


def _link_score(
    name: str, mode: str, timings: LinkTimings, predicted: Mapping[str, float]
) -> LinkScore:
    """Predictions are of graphs: an eager launch costs what no link does."""
    known = [(size, s) for size, s in timings.score if str(size) in predicted and mode == "graph"]
    size, seconds = max((*timings.fit, *timings.score), default=(0, 1.0))
    try:
        own = mean_error(fit_links({name: timings}, "")[name], timings.score)
    except (FitError, ValueError):  # nothing to fit to, or nothing held out
        own = None
    return LinkScore(
        name=name,
        mode=mode,
        num_fitted=len(timings.fit),
        num_held_out=len(timings.score),
        own_error=own,
        blind_error=fmean(abs(predicted[str(b)] / s - 1) for b, s in known) if known else None,
        largest_bytes_per_s=size / seconds,
    )

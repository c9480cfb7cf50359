"""The readings of the paper's workload, each with the best rate that either placement reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from layerwise.scenarios.paper.verdicts import Reading
from layerwise.sim.plan.scenario import Scenario, place
from layerwise.sim.plan.workload import Phase, Workload
from layerwise.sim.predict import Prediction, predict
from layerwise.sim.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Believed:
    """A scenario and what is predicted for it."""

    scenario: Scenario
    prediction: Prediction


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The fastest baseline beside layer-wise, for one workload."""

    baseline: Believed
    layer_wise: Believed


def name_of(workload: Workload) -> str:
    """A reading's short name, as verdicts carry it."""
    if workload.phase == "decode":
        return f"decode at a {workload.context_tokens:,}-token context"
    return f"prefill of {workload.context_tokens:,} tokens"


def readings_of(
    baselines: Sequence[Believed], layer_wise: Believed, profile: Profile | None
) -> tuple[Reading, ...]:
    """Decode at the full and at the mean context, and prefill; what was asked is not done again.

    Each is as if it had been asked: the faster all-reduce, the best number of microbatches. Both
    are decode's own and not its context's, so the mean context takes them from the full one.
    """
    own = layer_wise.scenario.workload
    asked = Pair(
        baseline=max(baselines, key=lambda b: b.prediction.tokens_per_s), layer_wise=layer_wise
    )
    other: Phase = "prefill" if own.phase == "decode" else "decode"
    scenarios = [
        replace(each.scenario, workload=replace(own, phase=other))
        for each in (*baselines, layer_wise)
    ]
    if other == "decode":
        # One microbatch a stage has no bubble and re-reads weights least; a test holds it to the
        # full search, which takes three times as long.
        scenarios = [s.with_microbatches(place(s).num_stages) for s in scenarios]
    searched = _search_pair(scenarios[:-1], scenarios[-1], profile)
    decode, prefill = (asked, searched) if own.phase == "decode" else (searched, asked)
    mean = Pair(
        baseline=_at_context(decode.baseline, own.context_tokens // 2, profile),
        layer_wise=_at_context(decode.layer_wise, own.context_tokens // 2, profile),
    )
    return tuple(_reading(pair, is_asked=pair is asked) for pair in (decode, mean, prefill))


def _search_pair(
    baselines: Sequence[Scenario], layer_wise: Scenario, profile: Profile | None
) -> Pair:
    found = [Believed(scenario=each, prediction=predict(each, profile)) for each in baselines]
    return Pair(
        baseline=max(found, key=lambda each: each.prediction.tokens_per_s),
        layer_wise=Believed(scenario=layer_wise, prediction=predict(layer_wise, profile)),
    )


def _at_context(believed: Believed, context_tokens: int, profile: Profile | None) -> Believed:
    scenario = believed.scenario.with_microbatches(believed.prediction.num_microbatches)
    workload = replace(scenario.workload, context_tokens=context_tokens)
    moved = replace(scenario, workload=workload)
    return Believed(scenario=moved, prediction=predict(moved, profile))


def _reading(pair: Pair, *, is_asked: bool) -> Reading:
    workload = pair.layer_wise.scenario.workload
    theirs, ours = pair.baseline.prediction, pair.layer_wise.prediction
    return Reading(
        name=name_of(workload),
        phase=workload.phase,
        context_tokens=workload.context_tokens,
        baseline_tokens_per_s=theirs.tokens_per_s,
        layer_wise_tokens_per_s=ours.tokens_per_s,
        fits=theirs.fits and ours.fits,
        is_asked=is_asked,
    )

"""Which traces a comparison is of, each with its profile and what was committed before its run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from layerwise.calibration.data import file_hash
from layerwise.scenarios.compare.joined import (
    STAGE_TOLERANCE,
    Comparison,
    Score,
    StageScore,
    compare,
    median_error,
    median_size,
    passes,
)
from layerwise.scenarios.compare.refusals import differences, require_unseen
from layerwise.scenarios.compare.scores import LEVELS
from layerwise.scenarios.predict.beliefs import (
    CommittedPrediction,
    provenance_of,
    read_prediction,
    unfitted_as_data,
)
from layerwise.scenarios.predict.committed import Earlier, earlier_than
from layerwise.sim.cost.unfitted import sentences
from layerwise.sim.plan.errors import SpecError, TraceMismatchError
from layerwise.sim.plan.files import load_scenario, scenario_from_data
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.profile import Profile
from layerwise.sim.trace import Trace, as_data, read_trace

Profiles = Callable[[str], Profile]
"""The profile of a GPU type, by its name; raises where there is none."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A comparison, and what was predicted before the run (None: nothing was committed).

    `earlier`: whether that prediction is older than the run.
    """

    comparison: Comparison
    committed: CommittedPrediction | None
    earlier: Earlier
    profile: Profile


def choose_traces(
    scenario: Path | None, measured: Path | None, everything: bool, profiles: Profiles
) -> tuple[Trace, ...]:
    """The trace given, every committed one, or the committed ones of a scenario file.

    Raises SpecError when nothing is chosen, TraceMismatchError for a trace of another scenario, a
    committed validation trace that a fit has seen, or any trace that says "validation" and is
    among the files of the profile's fit.
    """
    from layerwise.calibration.data import validation_trace_paths

    asked = load_scenario(scenario) if scenario else None
    if measured is not None:
        trace = read_trace(measured)
        if asked and (others := _differences(asked, trace)):
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            raise TraceMismatchError(
                f"{measured}: was measured on another scenario than {scenario}: "
                f"{', '.join(others[:3])}{more}; leave the scenario out, or measure this one"
            )
        if trace.purpose == "validation":
            require_unseen(trace, file_hash(measured), profiles(gpu_of(trace)))
        return (trace,)
    if not (everything or asked):
        raise SpecError(
            "--measured",
            None,
            "is missing",
            "give --measured TRACE, --all, or a scenario file whose trace is committed",
        )
    paths = validation_trace_paths()
    traces = tuple(read_trace(path) for path in paths)
    for trace, path in zip(traces, paths, strict=True):
        require_unseen(trace, file_hash(path), profiles(gpu_of(trace)))
    chosen = traces if asked is None else tuple(t for t in traces if not _differences(asked, t))
    if not chosen:
        raise TraceMismatchError(
            f"no committed trace of {scenario or 'any scenario'} in calibration/traces/validation; "
            "measure it (layerwise measure) and give --measured TRACE"
        )
    return chosen


def compare_all(traces: tuple[Trace, ...], profiles: Profiles) -> tuple[Compared, ...]:
    """Compare each trace; raises TraceMismatchError for the first that cannot be compared."""
    return tuple(_compared(trace, profiles(gpu_of(trace))) for trace in traces)


def _compared(trace: Trace, profile: Profile) -> Compared:
    from layerwise.calibration.data import prediction_path

    comparison, path = compare(trace, profile), prediction_path(trace.name)
    committed = read_prediction(path)
    if committed and comparison.ops and committed.ops.keys() != {s.op for s in comparison.ops}:
        return Compared(
            comparison=comparison,
            committed=None,
            profile=profile,
            earlier=Earlier(told=f"not committed before: {path.name} is of other ops"),
        )
    earlier = earlier_than(
        trace.environment.get("date_utc", ""), path, committed.created if committed else ""
    )
    return Compared(comparison=comparison, committed=committed, earlier=earlier, profile=profile)


def gpu_of(trace: Trace) -> str:
    """The GPU type that its scenario names."""
    return scenario_from_data(trace.scenario, f"trace {trace.name!r}: scenario").cluster.gpu.name


def median_op_error(compared: tuple[Compared, ...]) -> float | None:
    """Median of the signed errors over the ops of all traces that count."""
    return median_error(score for each in compared for score in each.comparison.counted_ops)


def median_absolute_op_error(compared: tuple[Compared, ...]) -> float | None:
    """Median of the errors' sizes over the ops of all traces that count."""
    return median_size(score for each in compared for score in each.comparison.counted_ops)


def comparisons_as_data(compared: tuple[Compared, ...]) -> dict[str, Any]:
    """Everything, for machines: SI units in key names."""
    profiles = {each.profile.digest: each.profile for each in compared}
    return {
        "provenance": [provenance_of(profile) for profile in profiles.values()],
        "stage_tolerance": STAGE_TOLERANCE,
        "median_op_error": median_op_error(compared),
        "median_absolute_op_error": median_absolute_op_error(compared),
        "passes": passes(each.comparison for each in compared),
        "traces": [_as_data(each) for each in compared],
    }


def _as_data(each: Compared) -> dict[str, Any]:
    comparison = each.comparison
    stage, trace = comparison.stage, comparison.trace
    return {
        "name": stage.name,
        "purpose": trace.purpose,
        "is_scored": stage.is_scored,
        "not_scored_because": list(stage.quarantine),
        "profile_digest": each.profile.digest,
        "environment": dict(trace.environment),
        "stage": asdict(stage)
        | {"error": stage.error, "passes": stage.passes, "interval_s": _interval(stage)},
        "levels": {
            level: [score_as_data(score) for score in comparison.of(level)] for level in LEVELS
        },
        "pacing_rank": asdict(comparison.pacing) if comparison.pacing else None,
        "fitted_op_shapes": asdict(comparison.fitted),
        "median_op_error": comparison.median_op_error,
        "median_absolute_op_error": comparison.median_absolute_op_error,
        "num_replaced": comparison.num_replaced,
        "timing": trace.timing,
        "is_disturbed": trace.is_disturbed,
        "cautions": list(comparison.cautions),
        "unfitted": unfitted_as_data(comparison.unfitted),
        "measured": dict(trace.measured),
        "predicted_before_the_run": asdict(each.committed) if each.committed else None,
        "committed_before_the_run": asdict(each.earlier),
    }


def score_as_data(score: Score) -> dict[str, Any]:
    """One line with stable keys, SI units in their names."""
    return {
        "level": score.level,
        "name": score.name,
        "part": score.part,
        "ranks": list(score.ranks),
        "count": score.count,
        **asdict(score.times),
        "error": score.error,
        "interval_s": _interval(score),
        "spread": score.spread,
        "share": score.share,
        "is_extrapolated": score.extrapolated,
        "unfitted": list(sentences(score.unfitted)),
        "first_step": asdict(score.first) if score.first else None,
        "last_step": asdict(score.last) if score.last else None,
    }


def _interval(score: Score | StageScore) -> dict[str, Any] | None:
    if score.interval is None:
        return None
    return asdict(score.interval) | {"holds": score.is_inside}


def _differences(asked: Scenario, trace: Trace) -> list[str]:
    """What differs but for the name, the kernels (a profile's choice) and the number of repeats."""
    measured = scenario_from_data(trace.scenario, f"trace {trace.name!r}: scenario")
    run = replace(asked.run, repeats=measured.run.repeats)
    ours = replace(asked, name="", kernels=None, given_kernels=None, run=run)
    theirs = replace(measured, name="", kernels=None, given_kernels=None)
    return [] if ours == theirs else differences(as_data(ours), as_data(theirs))

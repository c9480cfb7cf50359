"""Which traces a comparison is of, with the predictions that were committed before them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from calibration.data import file_hash
from scenarios.compare import (
    STAGE_TOLERANCE,
    Comparison,
    OpScore,
    compare,
    passes,
    require_unseen,
)
from scenarios.predicted import CommittedPrediction, provenance_of, read_prediction
from sim.plan.errors import SpecError, TraceMismatchError
from sim.plan.files import load_scenario, scenario_from_data
from sim.plan.scenario import Scenario
from sim.profile import Profile
from sim.trace import Trace, read_trace


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A comparison, and what was predicted before the run (None: nothing was committed)."""

    comparison: Comparison
    committed: CommittedPrediction | None


def choose_traces(
    scenario: Path | None, measured: Path | None, everything: bool, profile: Profile
) -> tuple[Trace, ...]:
    """The trace given, every committed one, or the committed ones of a scenario file.

    Raises SpecError when nothing is chosen, TraceMismatchError for a trace of another scenario, a
    committed validation trace that a fit has seen, or any trace that says "validation" and is
    among the files of the profile's fit.
    """
    from calibration.data import validation_trace_paths

    asked = load_scenario(scenario) if scenario else None
    if measured is not None:
        trace = read_trace(measured)
        if asked and not _same_work(asked, trace):
            raise TraceMismatchError(
                f"{measured}: was measured on another scenario than {scenario}; "
                "leave the scenario out, or measure this one"
            )
        if trace.purpose == "validation":
            require_unseen(trace, file_hash(measured), profile)
        return (trace,)
    if not (everything or asked):
        raise SpecError(
            "--measured", None, "is missing",
            "give --measured TRACE, --all, or a scenario file whose trace is committed",
        )  # fmt: skip
    paths = validation_trace_paths()
    traces = tuple(read_trace(path) for path in paths)
    for trace, path in zip(traces, paths, strict=True):
        require_unseen(trace, file_hash(path), profile)
    chosen = traces if asked is None else tuple(t for t in traces if _same_work(asked, t))
    if not chosen:
        raise TraceMismatchError(
            f"no committed trace of {scenario or 'any scenario'} in calibration/traces/validation; "
            "measure it (layerwise measure) and give --measured TRACE"
        )
    return chosen


def compare_all(traces: tuple[Trace, ...], profile: Profile) -> tuple[Compared, ...]:
    """Compare each trace; raises TraceMismatchError for the first that cannot be compared."""
    from calibration.data import prediction_path

    return tuple(
        Compared(
            comparison=compare(trace, profile),
            committed=read_prediction(prediction_path(trace.name)),
        )
        for trace in traces
    )


def median_op_error(compared: tuple[Compared, ...]) -> float | None:
    """Median of the signed errors over all ops of all traces."""
    errors = [score.error for each in compared for score in each.comparison.ops]
    return median(errors) if errors else None


def median_absolute_op_error(compared: tuple[Compared, ...]) -> float | None:
    """Median of the errors' sizes over all ops of all traces."""
    errors = [abs(score.error) for each in compared for score in each.comparison.ops]
    return median(errors) if errors else None


def comparisons_as_data(compared: tuple[Compared, ...], profile: Profile) -> dict[str, Any]:
    """Everything, for machines: SI units in key names."""
    return {
        "provenance": provenance_of(profile),
        "stage_tolerance": STAGE_TOLERANCE,
        "median_op_error": median_op_error(compared),
        "median_absolute_op_error": median_absolute_op_error(compared),
        "passes": passes(each.comparison for each in compared),
        "traces": [_as_data(each) for each in compared],
    }


def _as_data(each: Compared) -> dict[str, Any]:
    comparison = each.comparison
    stage = comparison.stage
    return {
        "name": stage.name,
        "purpose": comparison.trace.purpose,
        "environment": dict(comparison.trace.environment),
        "stage": asdict(stage) | {"error": stage.error, "passes": stage.passes},
        "median_op_error": comparison.median_op_error,
        "median_absolute_op_error": comparison.median_absolute_op_error,
        "ops": [_op_as_data(score) for score in comparison.ops],
        "gap": asdict(comparison.gap) if comparison.gap else None,
        "num_replaced": comparison.num_replaced,
        "measured": dict(comparison.trace.measured),
        "predicted_before_the_run": asdict(each.committed) if each.committed else None,
    }


def _op_as_data(score: OpScore) -> dict[str, Any]:
    return asdict(score) | {"error": score.error}


def _same_work(asked: Scenario, trace: Trace) -> bool:
    """Equal but for the name, the kernels (a profile's choice) and the number of repeats."""
    measured = scenario_from_data(trace.scenario, f"trace {trace.name!r}: scenario")
    run = replace(asked.run, repeats=measured.run.repeats)
    return replace(asked, name="", kernels=None, run=run) == replace(
        measured, name="", kernels=None
    )

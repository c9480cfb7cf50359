"""Predicted beside measured: op by op, what fell between ops, and the whole stage.

The scenario is rebuilt from the trace's own header, so both sides are of the same work. Rows join
on (step, rank, op); a row without a partner is an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from layerwise.scenarios.compare.accounts import members_of, op_label
from layerwise.scenarios.compare.fitted import FittedShapes, fitted_shapes
from layerwise.scenarios.compare.levels import pacing_of, scores_of
from layerwise.scenarios.compare.refusals import (
    check_gpu,
    check_joined,
    check_rows,
    quarantine_of,
    require_unseen,
)
from layerwise.scenarios.compare.scores import (
    STAGE_TOLERANCE,
    Comparison,
    Score,
    StageScore,
    Times,
    median_error,
    median_size,
    spread_of,
)
from layerwise.scenarios.compare.sides import Sides
from layerwise.scenarios.predict.alone import PredictedRun, run_plan
from layerwise.sim.plan.errors import TraceMismatchError
from layerwise.sim.plan.files import scenario_from_data
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import Plan, resolve
from layerwise.sim.trace import Trace

__all__ = [
    "STAGE_TOLERANCE",
    "Comparison",
    "Score",
    "StageScore",
    "compare",
    "median_error",
    "median_size",
    "op_label",
    "passes",
    "require_unseen",
    "score_stage",
]


def compare(trace: Trace, profile: Profile) -> Comparison:
    """Join a measured trace with its prediction.

    Raises TraceMismatchError: rows that do not match, other kernels, no step times; and
    ProfileMismatchError for another GPU.
    """
    check_rows(trace)
    asked = _Asked(trace, profile)
    predicted, uncalibrated = asked.predicted, asked.uncalibrated
    stage = _stage(asked, uncalibrated)
    whole = _whole_step(asked, stage, uncalibrated)
    if not trace.rows:
        return Comparison(
            stage=stage,
            scores=(whole,),
            num_replaced=0,
            pacing=None,
            fitted=asked.fitted,
            trace=trace,
            unfitted=predicted.unfitted,
        )
    steps = set(predicted.repeated_steps)
    check_joined(
        trace,
        {
            (row.step, row.rank, row.op): row.kind
            for row in predicted.rows
            if row.step in steps and row.rank in asked.ranks
        },
    )
    members = {} if asked.is_alone else members_of(predicted.run, asked.ranks, sorted(steps))
    sides = Sides(
        trace=trace,
        predicted=predicted,
        others=(asked.light, uncalibrated),
        members=members,
        step_factor=profile.step_factor,
    )
    return Comparison(
        stage=stage,
        scores=(*scores_of(sides), whole),
        pacing=pacing_of(sides),
        num_replaced=len({(r.step, r.rank, r.op) for r in trace.rows if r.replaced}),
        fitted=asked.fitted,
        trace=trace,
        unfitted=predicted.unfitted,
    )


def score_stage(trace: Trace, profile: Profile) -> StageScore:
    """The whole step only: no rows are joined."""
    return _stage(_Asked(trace, profile), None)


def passes(comparisons: Iterable[Comparison]) -> bool:
    """Every scored stage is within the bar. Runs for fitting or anything else have no say."""
    return all(c.stage.passes for c in comparisons if c.stage.is_scored)


@dataclass(frozen=True)
class _Asked:
    """A trace and a profile that go together; raises what `compare` raises where they do not."""

    trace: Trace
    profile: Profile

    @cached_property
    def scenario(self) -> Scenario:
        found = scenario_from_data(self.trace.scenario, f"trace {self.trace.name!r}: scenario")
        check_gpu(self.trace, found.cluster.gpu, self.profile)
        return found

    @property
    def is_alone(self) -> bool:
        return self.scenario.run.only_rank >= 0

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Those that ran."""
        alone = self.scenario.run.only_rank
        return (alone,) if self.is_alone else tuple(range(len(self.predicted.run[0].template)))

    @cached_property
    def _plan(self) -> Plan:
        return resolve(self.scenario, self.profile)

    @cached_property
    def predicted(self) -> PredictedRun:
        """Calibrated, with what the trace must agree with checked."""
        trace, run = self.trace, run_plan(self._plan)
        steps = sorted({row.step for row in trace.rows}) or run.repeated_steps
        if max(steps) >= len(run.run):
            raise TraceMismatchError(
                f"trace {trace.name!r} has rows of step {max(steps)} and its scenario has "
                f"{len(run.run)} steps; measure again"
            )
        run.require_kernels(trace, self.scenario.run.only_rank, steps)
        return run

    @cached_property
    def light(self) -> PredictedRun:
        return run_plan(self._plan.under("speed_of_light"))

    @cached_property
    def uncalibrated(self) -> PredictedRun:
        return run_plan(self._plan.under("uncalibrated"))

    @cached_property
    def fitted(self) -> FittedShapes:
        steps = [self.predicted.run[step] for step in self.predicted.repeated_steps]
        ranks = self.ranks
        if not self.is_alone:
            # Replicas and the members of a stage compute the same shapes.
            ranks = tuple(stage.ranks[0] for stage in steps[0].placement.replicas[0])
        return fitted_shapes((s.programs[rank] for s in steps for rank in ranks), self.profile)


def _stage(asked: _Asked, uncalibrated: PredictedRun | None) -> StageScore:
    trace, predicted = asked.trace, asked.predicted
    if not trace.untraced_step_s:
        raise TraceMismatchError(
            f"trace {trace.name!r} has no untraced_step_s: it tells nothing about the whole step; "
            "measure again with run.repeats of 1 or more"
        )
    return StageScore(
        name=trace.name,
        gpu=trace.environment.get("gpu", "unknown GPU"),
        validation=trace.purpose == "validation",
        predicted_s=predicted.step_s,
        speed_of_light_s=asked.light.step_s,
        measured_s=median(trace.untraced_step_s),
        traced_ratio=trace.traced_ratio,
        hbm_floor_fraction=trace.measured.get("hbm_floor_fraction", 0.0),
        half_width=predicted.uncertainty.half_width if predicted.uncertainty else None,
        uncalibrated_s=uncalibrated.step_s if uncalibrated else 0.0,
        spread=spread_of(
            _by_step(trace, predicted)[0] if predicted.grows else trace.untraced_step_s
        ),
        quarantine=quarantine_of(trace, asked.fitted),
    )


def _whole_step(asked: _Asked, stage: StageScore, uncalibrated: PredictedRun) -> Score:
    """The step with no tracer attached, as a line of level `run`; where it grows, with its trend."""
    trace, predicted = asked.trace, asked.predicted
    first = last = None
    if predicted.grows:
        each = _by_step(trace, predicted)
        runs = (asked.light, uncalibrated, predicted)
        first, last = (
            Times(*(run.duration_s(step) for run in runs)).with_measured(median(seconds))
            for step, seconds in (
                (predicted.repeated_steps[0], each[0]),
                (predicted.repeated_steps[-1], each[-1]),
            )
        )
    times = Times(stage.speed_of_light_s, stage.uncalibrated_s, stage.predicted_s, stage.measured_s)
    return Score(
        level="run",
        name="step, no tracer attached",
        part="step",
        ranks=asked.ranks,
        count=len(trace.untraced_step_s),
        times=times,
        share=1.0,
        half_width=stage.half_width,
        spread=stage.spread,
        first=first,
        last=last,
    )


def _by_step(trace: Trace, predicted: PredictedRun) -> list[tuple[float, ...]]:
    """Untraced seconds of each step of a growing run, over its repeats."""
    num_steps = len(predicted.repeated_steps)
    seconds = trace.untraced_step_s
    if len(seconds) % num_steps:
        raise TraceMismatchError(
            f"trace {trace.name!r} has {len(seconds)} untraced_step_s for {num_steps} steps with "
            "growing contexts: its last repeat is not whole; measure again"
        )
    return [seconds[step::num_steps] for step in range(num_steps)]

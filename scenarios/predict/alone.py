"""A scenario as a measured run executes it (one rank alone, or all): its prediction, op by op."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from statistics import median

from layerwise.sim.cost.model import Belief
from layerwise.sim.cost.unfitted import Change
from layerwise.sim.plan.errors import TraceMismatchError
from layerwise.sim.plan.program import StepPrograms, context_grows, kernel_set_hash, repeated_steps
from layerwise.sim.plan.scenario import RunSpec, Scenario
from layerwise.sim.power import Power, power_of
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import Plan, resolve
from layerwise.sim.simulate import Simulation, simulate_scenario
from layerwise.sim.trace import Row, Trace
from layerwise.sim.uncertainty import Uncertainty, uncertainty_of, unfitted_of


@dataclass(frozen=True, kw_only=True)
class PredictedRun:
    """One simulated run.

    Decode: `step_s` is the last steady interval, or the median one where the context grows;
    prefill: the whole run.
    """

    step_s: float
    simulation: Simulation
    run: tuple[StepPrograms, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every op of the run, worked out when first asked for."""
        return self.simulation.rows

    @property
    def _steps(self) -> range:
        """Whose time `step_s` is."""
        if self.run[0].step.phase != "decode":
            return range(len(self.run))
        # A steady step is the last but one; of a growing context the middle one.
        middle = len(self.run) // 2 if context_grows(self.run) else max(0, len(self.run) - 2)
        return range(middle, middle + 1)

    @cached_property
    def uncertainty(self) -> Uncertainty | None:
        """Why the interval of `step_s` is as wide as it is; None under a belief without one."""
        return uncertainty_of(self.simulation, self._steps, self.step_s)

    @cached_property
    def power(self) -> Power | None:
        """What it draws, and the clock that the power limit holds; None where nobody measured it."""
        return power_of(self.simulation, self._steps, self.step_s)

    @cached_property
    def unfitted(self) -> tuple[Change, ...]:
        """What no fit has seen of its kernels, head sizes and dtypes."""
        return unfitted_of(self.simulation)

    def kernel_set(self, only_rank: int, steps: Iterable[int]) -> str:
        """The hash that a measured trace of these steps must carry, over its ranks' programs."""
        programs = [
            program
            for step in steps
            for program in self.run[step].programs
            if only_rank in (-1, program.rank)
        ]
        parts = tuple(chain.from_iterable(program.parts for program in programs))
        return kernel_set_hash(replace(programs[0], parts=parts))

    def require_kernels(self, trace: Trace, only_rank: int, steps: Iterable[int]) -> None:
        """Raises TraceMismatchError for a trace of these steps that ran other kernels."""
        expected = self.kernel_set(only_rank, steps)
        if expected != trace.kernel_set:
            raise TraceMismatchError(
                f"trace {trace.name!r} ran kernel set {trace.kernel_set!r} and this version's engine "
                f"has {expected!r} for its scenario; measure it again with these kernels, or give a "
                "profile for the trace's"
            )

    @property
    def grows(self) -> bool:
        """Does the context grow from step to step?"""
        return context_grows(self.run)

    def duration_s(self, step: int) -> float:
        """From the end of the step before to its own, on the rank that ends last."""
        ends = (0.0, *self.simulation.step_end_s)
        return ends[step + 1] - ends[step]

    @property
    def repeated_steps(self) -> tuple[int, ...]:
        """What a measurement repeats, as `layerwise.sim.plan.program.repeated_steps` has it."""
        return repeated_steps(self.run)


def predict_run(
    scenario: Scenario, profile: Profile | None, belief: Belief | None = None
) -> PredictedRun:
    """Simulate `run.only_rank` alone, or every rank when it is -1.

    Raises SpecError when the number of microbatches is open, and what
    `layerwise.sim.resolve.resolve` raises.
    """
    return run_plan(resolve(scenario, profile, belief))


def run_plan(plan: Plan) -> PredictedRun:
    """Simulate the same of a resolved plan."""
    run = plan.compile()
    simulation = simulate_scenario(plan.scenario, run, plan.cost)
    return PredictedRun(step_s=_step_s(run, simulation), simulation=simulation, run=tuple(run))


def _step_s(run: Sequence[StepPrograms], simulation: Simulation) -> float:
    if run[0].step.phase != "decode":
        return simulation.step_end_s[-1]
    ends = simulation.step_end_s
    if context_grows(run):
        return median(later - earlier for earlier, later in pairwise(ends[:-1]))
    return simulation.steady_step_s


def measured_stage_s(scenario: Scenario, traces: Iterable[Trace]) -> float | None:
    """The measured step of one of this scenario's GPUs alone, if a trace is of just that.

    Only placements without tensor parallelism: alone, the shard of a layer reduces nothing.
    """
    from layerwise.sim.plan.files import scenario_from_data

    if scenario.placement.tensor_parallel > 1:
        return None
    for trace in traces:
        measured = scenario_from_data(trace.scenario, trace.name)
        if measured.run.only_rank >= 0 and trace.untraced_step_s and _same(scenario, measured):
            return median(trace.untraced_step_s)
    return None


def _same(scenario: Scenario, measured: Scenario) -> bool:
    """Equal in all that decides a stage's time; names and how often it ran may differ."""

    def bare(one: Scenario) -> Scenario:
        run = RunSpec(
            launch=one.run.launch,
            persisting_weights=one.run.persisting_weights,
            steps_per_graph=one.run.steps_per_graph,
        )
        return replace(one, name="", run=run)

    return bare(measured) == bare(scenario)

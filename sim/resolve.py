"""Scenario + profile -> a plan: all that follows from a question before anything is simulated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from layerwise.sim.cost.model import Belief, Calibrated, CostModel, SpeedOfLight
from layerwise.sim.cost.uncalibrated import RESERVED_BYTES, published_profile
from layerwise.sim.plan.compile import KernelChoice, compile_steps
from layerwise.sim.plan.errors import ProfileMismatchError
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.placement import Placement
from layerwise.sim.plan.program import StepPrograms
from layerwise.sim.plan.scenario import RunSpec, Scenario, place, steps_of
from layerwise.sim.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A scenario with every kernel named, where its layers are placed, and what its ops cost.

    `profile` is the one that was given, moved to the scenario's cluster where the belief is
    calibrated. `reserved_bytes` of each GPU are not the program's own. The number of microbatches
    may still be open: `layerwise.sim.predict` searches for it.
    """

    scenario: Scenario
    placement: Placement
    cost: CostModel
    reserved_bytes: int
    profile: Profile | None = None

    @property
    def belief(self) -> Belief:
        """What the costs rest on."""
        return self.cost.belief

    @property
    def kernels(self) -> KernelChoice:
        """The kernel of each kind of op."""
        return self.scenario.kernels_on()

    def under(self, belief: Belief) -> Plan:
        """Return the same plan under another belief; raises what `cost_model` raises."""
        if belief == self.belief:
            return self
        cost = cost_model(self.scenario.cluster, self.profile, belief)
        return replace(self, cost=cost, reserved_bytes=reserved_bytes(belief, self.profile))

    def with_microbatches(self, num_microbatches: int) -> Plan:
        """Return the same plan with a fixed number of microbatches."""
        return replace(self, scenario=self.scenario.with_microbatches(num_microbatches))

    def with_run(self, run: RunSpec) -> Plan:
        """Return the same plan, run in another way with the same kernels."""
        return replace(self, scenario=replace(self.scenario, run=run))

    def compile(self) -> list[StepPrograms]:
        """Compile every step for every rank; raises SpecError for an open number of microbatches."""
        steps = steps_of(self.scenario)
        return compile_steps(self.scenario.model, self.placement, steps, self.kernels)


def resolve(
    scenario: Scenario,
    profile: Profile | None,
    belief: Belief | None = None,
    *,
    cost: CostModel | None = None,
) -> Plan:
    """Decide all that a scenario and a profile leave to be decided, once.

    The profile, if any, chooses the kernels whatever the belief, so that beliefs are about one
    program. `cost` is a model of this cluster at hand, taken instead of a new one under `belief`.
    Raises what `cost_model` and `place` raise.
    """
    model = cost_model(scenario.cluster, profile, belief) if cost is None else cost
    named = fill_kernels(scenario, profile)
    return Plan(
        scenario=named,
        placement=place(named),
        cost=model,
        reserved_bytes=reserved_bytes(model.belief, profile),
        profile=_as_held(profile, model),
    )


def fill_kernels(scenario: Scenario, profile: Profile | None) -> Scenario:
    """Name every kernel: the scenario's own ones, and for the others the profile's, or plain ones."""
    if profile:
        return scenario.with_kernels(profile.kernels)
    return replace(scenario, kernels=scenario.kernels_on(), given_kernels=None)


def best_belief(profile: Profile | None) -> Belief:
    """Return the belief to trust most: calibrated where a profile says what was measured."""
    return "calibrated" if profile else "uncalibrated"


def reserved_bytes(belief: Belief, profile: Profile | None) -> int:
    """Return the bytes on each GPU that are not the program's own: context, libraries, graphs.

    The speed of light leaves them out: it is a bound, also of memory.
    """
    if belief == "uncalibrated":
        return RESERVED_BYTES
    return profile.reserved_bytes if profile and belief == "calibrated" else 0


def cost_model(
    cluster: ClusterSpec, profile: Profile | None, belief: Belief | None = None
) -> CostModel:
    """Make a belief's cost model; calibrated with a profile and no other wish, else speed of light.

    Raises ProfileMismatchError when the calibrated belief is asked for and no profile of this GPU
    is given; the others need none.
    """
    match belief or ("calibrated" if profile else "speed_of_light"):
        case "speed_of_light":
            return SpeedOfLight(cluster)
        case "uncalibrated":
            return Calibrated(cluster, published_profile(cluster), belief="uncalibrated")
        case "calibrated":
            if profile is None:
                raise ProfileMismatchError(
                    f"belief='calibrated' needs a profile of {cluster.gpu.name} and none was given; "
                    "give one (layerwise calibrate), or ask for 'uncalibrated'"
                )
            return Calibrated.about(cluster, profile)
        case _ as unknown:
            assert_never(unknown)


def _as_held(profile: Profile | None, cost: CostModel) -> Profile | None:
    if profile and isinstance(cost, Calibrated) and cost.belief == "calibrated":
        return cost.profile
    return profile

"""A scenario is resolved once, and beliefs about it share all but their costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.sim.cost.model import Belief, Calibrated
from layerwise.sim.plan.compile import GivenKernels, KernelChoice
from layerwise.sim.plan.errors import PlacementError, ProfileMismatchError
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.scenario import PlacementSpec, compile_run, place
from layerwise.sim.predict import predict, predict_plan
from layerwise.sim.resolve import best_belief, cost_model, fill_kernels, reserved_bytes, resolve
from tests.sim.scenes import CLUSTER, scenario_of
from tests.synthetic import synthetic_profile

PROFILE = replace(synthetic_profile(), reserved_bytes=3 * 10**9)
SCENE = scenario_of(PlacementSpec(num_gpus=4), microbatches=4)


def test_a_plan_names_the_profiles_kernels_and_keeps_the_scenarios_own() -> None:
    asked = replace(SCENE, kernels=None, given_kernels=GivenKernels(all_reduce="one_shot"))
    plan = resolve(asked, PROFILE, "speed_of_light")

    assert replace(PROFILE.kernels, all_reduce="one_shot") == plan.kernels
    assert plan.scenario == fill_kernels(plan.scenario, None) == fill_kernels(asked, PROFILE)


def test_without_a_profile_kernels_are_plain_ones() -> None:
    asked = replace(SCENE, kernels=None, given_kernels=GivenKernels(small_matmul="skinny"))

    assert KernelChoice(small_matmul="skinny") == resolve(asked, None).scenario.kernels


def test_another_belief_shares_placement_and_scenario() -> None:
    plan = resolve(SCENE, PROFILE)
    other = plan.under("uncalibrated")

    assert (plan.scenario, plan.profile) == (other.scenario, other.profile)
    assert other.placement is plan.placement
    assert plan.under("calibrated") is plan


@pytest.mark.parametrize("belief", ["speed_of_light", "uncalibrated", "calibrated"])
def test_a_plan_under_a_belief_is_the_scenario_resolved_under_it(belief: Belief) -> None:
    plan = resolve(SCENE, PROFILE).under(belief)

    assert resolve(SCENE, PROFILE, belief) == plan
    assert predict(SCENE, PROFILE, belief) == predict_plan(plan)


def test_reserved_memory_is_the_beliefs() -> None:
    beliefs: tuple[Belief, ...] = ("speed_of_light", "uncalibrated", "calibrated")

    assert [0, 2 * 10**9, 3 * 10**9] == [reserved_bytes(belief, PROFILE) for belief in beliefs]
    assert ("calibrated", "uncalibrated") == (best_belief(PROFILE), best_belief(None))


def test_the_profile_of_a_calibrated_plan_is_the_one_moved_to_its_cluster() -> None:
    gpu = replace(CLUSTER.gpu, hbm_bytes_per_s=2 * CLUSTER.gpu.hbm_bytes_per_s)
    scenario = replace(SCENE, cluster=replace(CLUSTER, gpu=gpu))
    plan = resolve(scenario, PROFILE)

    assert isinstance(plan.cost, Calibrated)
    assert PROFILE.digest != plan.cost.profile.digest
    assert plan.profile is plan.cost.profile
    assert PROFILE is resolve(scenario, PROFILE, "uncalibrated").profile


def test_a_cost_model_at_hand_is_taken() -> None:
    cost = cost_model(SCENE.cluster, PROFILE)

    assert resolve(SCENE, PROFILE, cost=cost).cost is cost


def test_a_plan_compiles_to_what_its_scenario_does() -> None:
    plan = resolve(SCENE, None)
    compiled, expected = plan.compile(), compile_run(plan.scenario)

    assert place(SCENE) == plan.placement == expected[0].placement
    assert [one.step for one in expected] == [one.step for one in compiled]


def test_what_cannot_be_placed_or_priced_is_not_resolved() -> None:
    with pytest.raises(PlacementError):
        resolve(replace(SCENE, placement=PlacementSpec(num_gpus=99)), PROFILE)
    with pytest.raises(ProfileMismatchError):
        resolve(replace(SCENE, cluster=dgx_cluster(GPUS["h200"], 8)), PROFILE)

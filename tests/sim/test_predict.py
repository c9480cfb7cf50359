from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.sim.cost.model import Belief
from layerwise.sim.plan.errors import PlacementError, ProfileMismatchError
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.scenario import PlacementSpec, Scenario, Strategy, paper_scenario
from layerwise.sim.plan.workload import Workload
from layerwise.sim.predict import predict
from layerwise.sim.resolve import cost_model
from tests.sim.scenes import CLUSTER, scenario_of
from tests.synthetic import synthetic_profile

PROFILE = synthetic_profile()
SHARDS = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=4, pipeline_parallel=2)


def scene(microbatches: int = 2) -> Scenario:
    return scenario_of(
        SHARDS, model=replace(MODELS["paper-16"], num_layers=4), microbatches=microbatches
    )


@pytest.mark.parametrize("strategy", ["layer-wise", "tensor-pipeline"])
def test_best_number_of_microbatches_is_as_good_as_each_power_of_two(strategy: Strategy) -> None:
    scenario = paper_scenario(strategy)
    best = predict(scenario, PROFILE)
    each = [
        predict(scenario.with_microbatches(number), PROFILE) for number in (1, 2, 4, 8, 16, 32, 64)
    ]

    assert best.tokens_per_s == max(p.tokens_per_s for p in (best, *each) if p.fits == best.fits)


def test_given_number_of_microbatches_is_kept() -> None:
    assert 2 == predict(scene(2), PROFILE).num_microbatches


def test_replica_never_has_more_microbatches_than_sequences() -> None:
    spec = PlacementSpec(strategy="layer-wise", num_gpus=8, data_parallel=2)
    prediction = predict(scenario_of(spec, batch_size=6, microbatches=0), PROFILE)

    assert 1 <= prediction.num_microbatches <= 3


def test_throughput_is_the_batch_over_the_steady_step() -> None:
    prediction = predict(scene(), PROFILE)

    assert 16 / prediction.step_s == prediction.tokens_per_s
    assert prediction.step_s == prediction.tpot_s


def test_inverse_throughput_is_not_the_time_per_output_token() -> None:
    prediction = predict(scene(), PROFILE)

    assert prediction.tpot_s / 16 == pytest.approx(prediction.inverse_throughput_s)


def test_prefill_counts_every_prompt_token() -> None:
    scenario = scene()
    workload = replace(
        scenario.workload, phase="prefill", context_tokens=300, prefill_chunk_tokens=128
    )
    prediction = predict(replace(scenario, workload=workload), PROFILE)

    assert 16 * 300 / prediction.step_s == prediction.tokens_per_s


def test_prefill_is_faster_a_token_than_decode() -> None:
    scenario = scene()
    prefill = replace(scenario, workload=replace(scenario.workload, phase="prefill"))

    assert predict(prefill, PROFILE).tokens_per_s > predict(scenario, PROFILE).tokens_per_s


@pytest.mark.parametrize("profile", [None, PROFILE], ids=["speed of light", "calibrated"])
def test_shares_and_bubble_make_the_whole(profile: object) -> None:
    prediction = predict(scene(), profile)  # type: ignore[arg-type]

    assert 1.0 == pytest.approx(sum(prediction.share.values()) + prediction.bubble, abs=2e-3)


def test_speed_of_light_is_the_belief_without_a_profile() -> None:
    assert ("speed_of_light", "calibrated") == (
        cost_model(CLUSTER, None).belief,
        cost_model(CLUSTER, PROFILE).belief,
    )


def test_belief_that_is_asked_for_is_the_one_given() -> None:
    beliefs: tuple[Belief, ...] = ("speed_of_light", "uncalibrated", "calibrated")

    assert beliefs == tuple(cost_model(CLUSTER, PROFILE, belief).belief for belief in beliefs)


def test_calibrated_belief_without_a_profile_is_refused() -> None:
    with pytest.raises(ProfileMismatchError, match="needs a profile of h100-sxm"):
        cost_model(CLUSTER, None, "calibrated")


def test_uncalibrated_belief_rests_on_nothing_of_the_profile_but_its_kernels() -> None:
    kernels = replace(PROFILE.kernels, all_reduce="one_shot")
    chosen = replace(PROFILE, kernels=kernels)
    alone = predict(replace(scene(), kernels=kernels), None, "uncalibrated")

    assert alone == predict(scene(), chosen, "uncalibrated")


@pytest.mark.parametrize("strategy", ["layer-wise", "tensor-pipeline"])
def test_calibrated_is_slower_than_the_speed_of_light(strategy: Strategy) -> None:
    scenario = paper_scenario(strategy)

    assert predict(scenario, PROFILE).tokens_per_s < predict(scenario, None).tokens_per_s


def test_steady_state_is_reached() -> None:
    assert predict(scene(), PROFILE).is_steady


def test_step_from_idle_is_longer_than_the_steady_step() -> None:
    prediction = predict(paper_scenario("layer-wise").with_microbatches(16), PROFILE)

    assert prediction.from_idle_s > prediction.step_s


def test_layer_wise_puts_only_messages_on_the_wire() -> None:
    prediction = predict(paper_scenario("layer-wise").with_microbatches(16), PROFILE)
    stream = 128 * 4096 * 2

    # 14 hops inside nodes; one between them, and the token's way back from last to first.
    assert {"nvlink4": 14 * stream, "ndr400": 2 * stream} == prediction.wire_bytes


def test_wire_bytes_do_not_depend_on_the_number_of_steps() -> None:
    short, long = (
        predict(replace(scene(), run=replace(scene().run, num_steps=steps)), PROFILE).wire_bytes
        for steps in (4, 16)
    )

    assert short == long


def test_every_gpu_of_the_paper_has_a_budget() -> None:
    prediction = predict(paper_scenario("tensor-pipeline").with_microbatches(2), PROFILE)

    assert list(range(16)) == [budget.rank for budget in prediction.memory]


def test_busy_share_is_given_for_each_simulated_rank() -> None:
    prediction = predict(paper_scenario("layer-wise").with_microbatches(16), PROFILE)

    assert 16 == len(prediction.busy_share_by_rank)
    assert all(0.0 < share <= 1.0 + 1e-6 for share in prediction.busy_share_by_rank)


def test_one_shot_all_reduce_is_the_profiles_choice_to_make() -> None:
    kernels = replace(PROFILE.kernels, all_reduce="one_shot")
    nccl, one_shot = (
        predict(scene(), replace(PROFILE, kernels=choice)).step_s
        for choice in (PROFILE.kernels, kernels)
    )

    assert nccl != one_shot


def test_scenarios_own_kernels_win() -> None:
    kernels = replace(PROFILE.kernels, all_reduce="one_shot")
    own = predict(replace(scene(), kernels=kernels), PROFILE).step_s

    assert own == predict(scene(), replace(PROFILE, kernels=kernels)).step_s


def test_ops_outside_what_was_calibrated_are_counted() -> None:
    fits = {
        kind: replace(fit, valid=((0.0, 1.0),) * len(fit.features))
        for kind, fit in PROFILE.fits.items()
    }

    assert predict(scene(), replace(PROFILE, fits=fits)).num_extrapolated_ops > 0


def test_profile_of_another_gpu_is_refused() -> None:
    with pytest.raises(ProfileMismatchError):
        predict(replace(scene(), cluster=dgx_cluster(GPUS["h200"], 8)), PROFILE)


def test_more_stages_than_layers_is_refused() -> None:
    with pytest.raises(PlacementError, match="num_gpus=16 .*num_layers=8"):
        predict(scenario_of(PlacementSpec(), microbatches=0), PROFILE)


def test_larger_batch_is_not_slower_a_token() -> None:
    small, large = (
        predict(
            replace(
                paper_scenario("layer-wise"),
                workload=Workload(
                    batch_size=batch,
                    context_tokens=1000,
                    num_microbatches=16,
                ),
            ),
            PROFILE,
        ).tokens_per_s
        for batch in (32, 128)
    )

    assert large > small

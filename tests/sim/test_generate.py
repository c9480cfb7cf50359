from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from layerwise.sim.generate import generate, generate_exactly
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.scenario import PlacementSpec, Scenario, paper_scenario
from layerwise.sim.plan.workload import Workload
from layerwise.sim.resolve import Plan, resolve
from tests.sim.scenes import calibrated, scenario_of

SHARDS = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=4, pipeline_parallel=2)


def plan_of(scenario: Scenario) -> Plan:
    return resolve(scenario, None, cost=calibrated())


def growing(spec: PlacementSpec, context: int, batch: int, microbatches: int) -> Plan:
    scenario = scenario_of(
        spec,
        model=replace(MODELS["paper-16"], num_layers=4),
        microbatches=microbatches,
        batch_size=batch,
    )
    workload = replace(scenario.workload, context_tokens=context)
    return plan_of(replace(scenario, workload=workload))


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([PlacementSpec(num_gpus=4), SHARDS]),
    st.sampled_from([40, 900, 2500, 9000]),
    st.sampled_from([(1, 1), (8, 2), (24, 8)]),
    st.sampled_from([2, 3, 50, 400]),
)
@example(PlacementSpec(num_gpus=4), 40, (8, 2), 3)  # fewer microbatches than stages: no drain
def test_sampled_total_is_within_its_bound(
    spec: PlacementSpec, context: int, batch: tuple[int, int], num_tokens: int
) -> None:
    plan = growing(spec, context, *batch)
    sampled, exact = generate(plan, num_tokens), generate_exactly(plan, num_tokens)

    # A stage that has grown past another one moves the fill by a little that no bound sees.
    allowed = sampled.error_bound_s + 2e-5 * exact.total_s
    assert abs(sampled.total_s - exact.total_s) <= allowed


@pytest.mark.parametrize("context", [128, 500, 3000])
def test_key_tiles_of_a_short_context_are_seen(context: int) -> None:
    scenario = paper_scenario("layer-wise").with_microbatches(16)
    short = replace(scenario, workload=replace(scenario.workload, context_tokens=context))
    sampled, exact = (made(plan_of(short), 200) for made in (generate, generate_exactly))

    assert abs(sampled.total_s - exact.total_s) <= sampled.error_bound_s < 1e-3 * exact.total_s


@pytest.mark.parametrize("strategy", ["layer-wise", "tensor-pipeline"])
def test_papers_thousand_tokens_sampled_are_within_a_thousandth(strategy: str) -> None:
    scenario = paper_scenario(strategy).with_microbatches(16)  # type: ignore[arg-type]
    sampled = generate(plan_of(scenario), 1000)
    exact = generate_exactly(plan_of(scenario), 1000)

    assert sampled.error_bound_s < 1e-3 * sampled.total_s
    assert sampled.total_s == pytest.approx(exact.total_s, rel=1e-3)


def test_steps_get_slower_as_the_context_grows() -> None:
    steps = [s for _, s in generate_exactly(growing(SHARDS, 1000, 8, 2), 60).sampled]

    assert steps[-1] > steps[1]


def test_exact_run_has_no_error_bound() -> None:
    assert 0.0 == generate_exactly(growing(SHARDS, 100, 8, 2), 5).error_bound_s


def test_step_between_samples_lies_on_their_line() -> None:
    generation = generate(growing(SHARDS, 1000, 8, 2), 200)
    (low, low_s), (high, high_s) = generation.sampled[:2]
    middle = (low + high) / 2

    assert (low_s + high_s) / 2 == pytest.approx(generation.step_s(round(middle)), rel=1e-3)


def test_rates_count_every_token_of_the_batch() -> None:
    generation = generate_exactly(growing(SHARDS, 100, 8, 2), 5)

    assert 5 * 8 / generation.total_s == generation.tokens_per_s
    assert generation.total_s / 5 == generation.mean_tpot_s


def test_prefill_generates_nothing() -> None:
    scenario = replace(scenario_of(SHARDS), workload=Workload(phase="prefill"))

    with pytest.raises(SpecError, match="generates no tokens"):
        generate(plan_of(scenario), 5)


def test_one_token_has_no_step_time() -> None:
    with pytest.raises(SpecError, match="num_tokens=1"):
        generate(growing(SHARDS, 100, 8, 2), 1)

"""Slow GPUs and slow ports in a simulation: who takes longer, who waits, who still folds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerwise.sim.cost.model import Belief, Calibrated, CostModel, SpeedOfLight
from layerwise.sim.generate import generate_exactly
from layerwise.sim.plan.hardware import ClusterSpec, SlowParts
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.scenario import (
    PlacementSpec,
    RunSpec,
    Scenario,
    compile_run,
    paper_scenario,
)
from layerwise.sim.plan.workload import Workload
from layerwise.sim.predict import predict
from layerwise.sim.resolve import resolve
from layerwise.sim.simulate import PS, Simulation, simulate
from layerwise.sim.trace import Row
from tests.sim.scenes import (
    CLUSTER,
    TINY,
    Case,
    FlatCost,
    calibrated,
    cases,
    pipeline,
    scenario_of,
    uncontended,
)
from tests.synthetic import synthetic_profile

PROFILE = synthetic_profile()
# Two replicas of two stages of four ranks.
SHARDS = PlacementSpec(
    strategy="tensor-pipeline", tensor_parallel=4, pipeline_parallel=2, data_parallel=2
)
SLOW_FIFTH = SlowParts(gpus=(5,), clock_share=0.5)
BELIEFS: tuple[Belief, ...] = ("speed_of_light", "uncalibrated", "calibrated")


def slowed(scenario: Scenario, slow: SlowParts) -> Scenario:
    return replace(scenario, cluster=replace(scenario.cluster, slow=slow))


def run_scenario(scenario: Scenario, cost: CostModel, **options: object) -> Simulation:
    return simulate(compile_run(scenario), cost, scenario.cluster, **options)  # type: ignore[arg-type]


def in_order(simulation: Simulation) -> list[Row]:
    return sorted(simulation.rows, key=lambda row: (row.step, row.rank, row.start_s, row.op))


def local_seconds(simulation: Simulation, rank: int) -> list[float]:
    """Of the ops of a rank's second step that meet nobody."""
    return [row.end_s - row.start_s for row in simulation.rows_of(rank, 1) if row.bound != "link"]


@st.composite
def slow_parts(draw: st.DrawFn, num_gpus: int) -> SlowParts:
    shares = st.sampled_from((0.25, 0.7, 1.0))
    ranks = st.lists(st.integers(0, num_gpus - 1), min_size=1, max_size=3, unique=True).map(tuple)
    return SlowParts(
        gpus=draw(ranks),
        clock_share=draw(shares),
        hbm_share=draw(shares),
        ports=draw(ranks),
        nvlink_share=draw(shares),
        nic_share=draw(shares),
    )


def both_ways(case: Case, cost: CostModel, cluster: ClusterSpec) -> list[Simulation]:
    return [simulate(case.run, cost, cluster, folded=flag) for flag in (True, False)]


@settings(max_examples=25)
@given(cases(), st.data())
def test_folded_rows_equal_unfolded_rows(case: Case, data: st.DataObject) -> None:
    slow = data.draw(slow_parts(case.placement.num_ranks))
    cluster = replace(CLUSTER, num_nodes=1, gpus_per_node=64, slow=slow)
    folded, unfolded = both_ways(case, uncontended(cluster), cluster)

    assert in_order(unfolded) == in_order(folded)


@settings(max_examples=15)
@given(cases(), st.data())
def test_folded_steps_equal_unfolded_steps_by_the_speed_of_light(
    case: Case, data: st.DataObject
) -> None:
    slow = data.draw(slow_parts(case.placement.num_ranks))
    cluster = replace(CLUSTER, num_nodes=1, gpus_per_node=64, slow=slow)
    folded, unfolded = both_ways(case, SpeedOfLight(cluster), cluster)

    assert unfolded.step_end_s == folded.step_end_s


@pytest.mark.parametrize("strategy", ["layer-wise", "tensor-pipeline"])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_folded_rows_equal_unfolded_rows_at_the_papers_size(strategy: str, phase: str) -> None:
    workload = Workload(phase=phase, batch_size=8, num_microbatches=4)  # type: ignore[arg-type]
    slow = SlowParts(gpus=(3, 12), clock_share=0.6, hbm_share=0.8, ports=(7,), nic_share=0.3)
    scenario = slowed(paper_scenario(strategy, workload=workload), slow)  # type: ignore[arg-type]
    cost = calibrated(scenario.cluster)
    folded, unfolded = (run_scenario(scenario, cost, folded=flag) for flag in (True, False))

    assert in_order(unfolded) == in_order(folded)


@pytest.mark.parametrize("launch", ["graph", "eager"])
def test_folded_steps_equal_unfolded_steps_in_replicas(launch: str) -> None:
    scenario = slowed(scenario_of(SHARDS, num_steps=3), SLOW_FIFTH)
    folded, unfolded = (
        run_scenario(scenario, FlatCost(issue_s=3e-7), folded=flag, launch=launch)
        for flag in (True, False)
    )

    assert unfolded.step_end_s == folded.step_end_s


def test_folded_rows_equal_unfolded_rows_with_a_vocabulary() -> None:
    scenario = slowed(scenario_of(SHARDS, model=TINY.with_vocabulary(64)), SLOW_FIFTH)
    cost = calibrated(scenario.cluster)
    folded, unfolded = (run_scenario(scenario, cost, folded=flag) for flag in (True, False))

    assert in_order(unfolded) == in_order(folded)


def test_symmetric_ranks_still_fold() -> None:
    # Rank 5 is in the second column of the second stage; the second replica is whole.
    simulation = run_scenario(slowed(scenario_of(SHARDS), SLOW_FIFTH), FlatCost())

    assert (0, 4, 1, 5, 8, 12) == simulation.ranks
    assert [3, 3, 1, 1, 4, 4] == [simulation.num_alike(rank) for rank in simulation.ranks]


def test_every_rank_has_its_rows() -> None:
    simulation = run_scenario(slowed(scenario_of(SHARDS), SLOW_FIFTH), FlatCost())

    assert set(range(16)) == {row.rank for row in simulation.rows}
    assert len(simulation.rows) == simulation.num_rows


@pytest.mark.parametrize("spec", [SHARDS, PlacementSpec(num_gpus=8)])
def test_at_full_speed_nothing_changes(spec: PlacementSpec) -> None:
    scenario = scenario_of(spec)
    named = slowed(scenario, SlowParts(gpus=(5,), ports=(3,)))
    plain, marked = (run_scenario(each, calibrated(each.cluster)) for each in (scenario, named))

    assert plain.ranks == marked.ranks
    assert plain.rows == marked.rows


def test_ops_of_the_slow_rank_alone_take_longer() -> None:
    scenario, slow = pipeline(4, 4, 3), SlowParts(gpus=(2,), clock_share=0.5)
    plain, found = (run_scenario(each, FlatCost()) for each in (scenario, slowed(scenario, slow)))

    assert [2 * s for s in local_seconds(plain, 2)] == pytest.approx(local_seconds(found, 2))
    assert local_seconds(plain, 1) == pytest.approx(local_seconds(found, 1))


def test_the_slow_stage_sets_the_steady_rate() -> None:
    scenario = pipeline(4, 8, num_steps=8)
    slow = slowed(scenario, SlowParts(gpus=(2,), clock_share=0.5))
    plain_s, slow_s = (run_scenario(each, FlatCost()).steady_step_s for each in (scenario, slow))

    assert 2 * plain_s == pytest.approx(slow_s)


def test_a_group_waits_for_its_slow_member() -> None:
    spec = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=4)
    scenario = slowed(scenario_of(spec), SlowParts(gpus=(2,), clock_share=0.5))
    simulation = run_scenario(scenario, FlatCost())
    waits = {rank: simulation.account(rank, 1).bound_ps["wait"] for rank in simulation.ranks}
    busy = {rank: simulation.account(rank, 1).bound_ps["compute"] for rank in simulation.ranks}

    assert 0 == waits[2]
    # What follows the last all-reduce of a step is waited for in the next one.
    assert busy[2] - busy[0] == waits[0] > 0


def test_a_slow_port_stretches_the_bytes_of_its_messages_and_not_their_latency() -> None:
    scenario, cost = pipeline(3, 3, num_steps=2), FlatCost(latency_s=2e-6, bytes_per_s=1e9)
    slow = slowed(scenario, SlowParts(ports=(2,), nvlink_share=0.25))

    def sends(asked: Scenario) -> dict[int, int]:
        rows = run_scenario(asked, cost).rows
        return {
            row.rank: round((row.end_s - row.start_s) / PS)
            for row in rows
            if row.kind == "Send" and ".act." in row.op and row.step == 0
        }

    plain, found = sends(scenario), sends(slow)
    latency = 2_000_000

    assert plain[0] == found[0]
    assert 4 * (plain[1] - latency) == pytest.approx(found[1] - latency, abs=4)


def test_messages_share_what_a_slow_port_has() -> None:
    scenario = slowed(pipeline(3, 3, num_steps=2), SlowParts(ports=(1,), nvlink_share=0.25))
    machine = run_scenario(scenario, calibrated(scenario.cluster)).machine
    capacities = [machine.port("nvlink4", "in", rank).capacity for rank in (0, 1)]

    assert capacities[0] == 4 * capacities[1]


def test_a_slow_gpu_alone_is_slow() -> None:
    scenario = slowed(pipeline(4, 4, 3), SlowParts(gpus=(2,), clock_share=0.5))
    steps = [run_scenario(scenario, FlatCost(), alone=rank).steady_step_s for rank in (1, 2)]

    assert 2 * steps[0] == pytest.approx(steps[1])


def test_generation_is_slower_too() -> None:
    scenario = pipeline(2, 2, 2)
    slow = slowed(scenario, SlowParts(gpus=(1,), clock_share=0.5))
    plain_s, slow_s = (
        generate_exactly(resolve(each, None, cost=calibrated(each.cluster)), 6).total_s
        for each in (scenario, slow)
    )

    assert slow_s > plain_s


@pytest.mark.parametrize("belief", BELIEFS)
@pytest.mark.parametrize("strategy", ["layer-wise", "tensor-pipeline"])
def test_every_belief_prices_the_slow_gpu(belief: Belief, strategy: str) -> None:
    number = {"layer-wise": 16, "tensor-pipeline": 2}[strategy]
    scenario = paper_scenario(strategy).with_microbatches(number)  # type: ignore[arg-type]
    plain = predict(scenario, PROFILE, belief)
    found = predict(slowed(scenario, SlowParts(gpus=(9,), hbm_share=0.5)), PROFILE, belief)

    # Nearly all of a step reads HBM; on the slow GPU it does so at half the rate.
    assert 1.7 < found.step_s / plain.step_s <= 2 + 1e-9


@pytest.mark.parametrize("strategy", ["layer-wise", "tensor-pipeline"])
def test_a_prediction_counts_every_rank(strategy: str) -> None:
    scenario = paper_scenario(strategy).with_microbatches(4)  # type: ignore[arg-type]
    plain = predict(scenario, PROFILE)
    found = predict(slowed(scenario, SLOW_FIFTH), PROFILE)

    assert plain.wire_bytes == found.wire_bytes
    assert plain.memory == found.memory
    assert 1 == pytest.approx(sum(found.share.values()) + found.bubble)


def test_shares_of_a_step_are_those_of_all_ranks() -> None:
    scenario = slowed(paper_scenario("tensor-pipeline").with_microbatches(2), SLOW_FIFTH)
    found = predict(scenario, PROFILE)
    unfolded = run_scenario(scenario, Calibrated(scenario.cluster, PROFILE), folded=False)
    step = found.steps[0]
    waits = [unfolded.account(rank, step).bound_ps.get("wait", 0) for rank in unfolded.ranks]

    assert sum(waits) * PS / 16 / found.step_s == pytest.approx(found.share["wait"])


def test_the_interval_is_as_wide_for_its_size() -> None:
    model = replace(MODELS["paper-16"], num_layers=4)
    scenario = scenario_of(PlacementSpec(num_gpus=4), model=model, microbatches=4)
    scenario = replace(scenario, run=RunSpec(num_steps=4))
    slow = slowed(scenario, SlowParts(gpus=(1,), clock_share=0.999_999))
    widths = [
        u.half_width for each in (scenario, slow) if (u := predict(each, PROFILE).uncertainty)
    ]

    assert widths[0] == pytest.approx(widths[1], abs=1e-6)
    assert 2 == len(widths)

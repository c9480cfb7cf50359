"""Accounts of a small pipeline whose every op takes a microsecond, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.sim.machine.account import StepAccount
from layerwise.sim.plan.hardware import dgx_cluster
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario, compile_run
from layerwise.sim.simulate import simulate_scenario
from tests.sim.scenes import H100, FlatCost, pipeline, scenario_of

US = 1_000_000
# A layer's nine ops, and the residual add that ends a stage.
STAGE_OPS = 10
# Four layers, each with two all-reduces, on two ranks.
TP2 = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2, pipeline_parallel=2)
TP2_LOCAL_OPS, TP2_ALL_REDUCES = 4 * 9 + 1, 4 * 2


def account(
    scenario: Scenario, cost: FlatCost, rank: int, step: int, *, folded: bool = True
) -> StepAccount:
    return simulate_scenario(scenario, compile_run(scenario), cost, folded=folded).account(
        rank, step
    )


def microseconds(found: StepAccount) -> dict[str, float]:
    """What each bottleneck took, where it took anything."""
    return {bound: time_ps / US for bound, time_ps in found.bound_ps.items() if time_ps}


def eager(scenario: Scenario) -> Scenario:
    return replace(scenario, run=replace(scenario.run, launch="eager"))


@pytest.mark.parametrize(
    ("rank", "step", "expected"),
    [
        # From idle: the first stage launches its graph and works.
        (0, 0, {"launch": 3, "compute": STAGE_OPS}),
        # The second one waits meanwhile, then for the wire.
        (1, 0, {"launch": 3, "bubble": STAGE_OPS, "link": 4, "compute": STAGE_OPS}),
        # 14 us until the token: both wires, and the second stage's work, less the next launch.
        (0, 1, {"launch": 3, "bubble": 4 + STAGE_OPS - 3, "link": 4, "compute": STAGE_OPS}),
        # The token's way, the first stage's work and the way back, less the next launch.
        (1, 1, {"launch": 3, "bubble": 4 + STAGE_OPS - 3, "link": 4, "compute": STAGE_OPS}),
    ],
)
def test_step_of_a_pipeline_is_launch_bubble_link_and_work(
    rank: int, step: int, expected: dict[str, float]
) -> None:
    cost = FlatCost(latency_s=4e-6, graph_launch_s=3e-6)

    assert expected == microseconds(account(pipeline(2, 1, 3), cost, rank, step))


def test_message_that_came_while_the_rank_was_busy_costs_nothing() -> None:
    # Two microbatches: the second message is there long before the first one's work is done.
    found = account(pipeline(2, 2, 1), FlatCost(latency_s=4e-6), 1, 0)

    assert {"bubble": STAGE_OPS, "link": 4, "compute": 2 * STAGE_OPS} == microseconds(found)


def test_gaps_between_kernels_are_launch() -> None:
    found = account(pipeline(1, 1, 3), FlatCost(launch_s=0.5e-6), 0, 1)

    assert {"launch": 0.5 * STAGE_OPS, "compute": STAGE_OPS} == microseconds(found)


def test_late_host_is_launch() -> None:
    # It issues an op each 3 us, and the GPU needs one to run it: idle for 3 us, then for 2 each.
    found = account(eager(pipeline(1, 1, 1)), FlatCost(issue_s=3e-6), 0, 0)

    assert {"launch": 3 + 2 * (STAGE_OPS - 1), "compute": STAGE_OPS} == microseconds(found)


def test_what_an_op_loses_to_a_message_is_lost_to_hbm() -> None:
    # While the first message moves for 2 us, the op beside it does half of what it would.
    cost = FlatCost(latency_s=2e-6, op_speed=0.5)
    found = account(pipeline(2, 2, 1), cost, 0, 0)

    assert {"compute": 2 * STAGE_OPS, "hbm": 1} == microseconds(found)


@pytest.mark.parametrize("folded", [True, False])
def test_collectives_are_link(*, folded: bool) -> None:
    scenario = scenario_of(TP2, num_steps=1)
    found = account(scenario, FlatCost(collective_s=2e-6), 0, 0, folded=folded)

    assert {"compute": TP2_LOCAL_OPS, "link": 2 * TP2_ALL_REDUCES} == microseconds(found)


@pytest.mark.parametrize("rank", [0, 1])
def test_account_begins_where_the_step_before_ended(rank: int) -> None:
    scenario, cost = pipeline(2, 3, 3), FlatCost(latency_s=4e-6)
    first, second = (account(scenario, cost, rank, step) for step in (0, 1))

    assert (0, first.end_ps) == (first.begin_ps, second.begin_ps)
    assert second.end_ps - second.begin_ps == sum(second.bound_ps.values())


@pytest.mark.parametrize(
    ("gpus_per_node", "wire"), [(2, "nvlink4"), (1, "ndr400")], ids=["one node", "two nodes"]
)
def test_messages_of_all_microbatches_cross_the_wire_of_their_hop(
    gpus_per_node: int, wire: str
) -> None:
    scenario = replace(pipeline(2, 3, 1), cluster=dgx_cluster(H100, 2, gpus_per_node=gpus_per_node))

    # 24 sequences of one token, 64 wide, in two bytes.
    assert {wire: 24 * 64 * 2} == account(scenario, FlatCost(), 0, 0).wire_bytes


def test_last_rank_of_the_last_step_sends_nothing() -> None:
    assert {} == account(pipeline(2, 3, 1), FlatCost(), 1, 0).wire_bytes


def test_collectives_send_what_a_ring_sends() -> None:
    payload = 16 * 64 * 2
    ring = TP2_ALL_REDUCES * 2 * payload // 2
    found = account(scenario_of(TP2, num_steps=1), FlatCost(), 0, 0)

    # Beside the message to the next stage.
    assert {"nvlink4": ring + payload} == found.wire_bytes


def test_rank_alone_has_neither_bubble_nor_link() -> None:
    scenario = replace(pipeline(2, 3, 3), run=RunSpec(num_steps=3, only_rank=1))
    found = account(scenario, FlatCost(latency_s=4e-6), 1, 1)

    assert {"compute": 3 * STAGE_OPS} == microseconds(found)

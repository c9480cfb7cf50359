from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.sim.cost.model import SpeedOfLight
from layerwise.sim.machine.contention import (
    collective_rates,
    find_contention,
    flow_of,
    port_bytes_per_s,
)
from layerwise.sim.plan import ops
from layerwise.sim.plan.hardware import SlowParts, dgx_cluster
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.scenario import PlacementSpec, Scenario, compile_run, paper_scenario
from layerwise.sim.plan.workload import Workload
from tests.sim.scenes import CLUSTER, H100, FlatCost, calibrated, scenario_of

MIB = 2**20


def contention_of(scenario: Scenario):
    cost = calibrated(scenario.cluster)
    programs = compile_run(scenario)[0].programs
    return find_contention(programs, cost, scenario.cluster)


def message(payload_bytes: int, peer: int = 1) -> ops.Send:
    buffer = ops.Buffer("b", "communication", (payload_bytes // 2,), "bfloat16")
    return ops.Send(
        name="act.send", buffer=buffer, payload_bytes=payload_bytes, peer=peer, channel="act"
    )


@pytest.mark.parametrize("strategy", ["layer-wise", "tensor-pipeline"])
def test_decode_has_nothing_to_contend_for(strategy: str) -> None:
    found = contention_of(paper_scenario(strategy).with_microbatches(16))  # type: ignore[arg-type]

    assert (set(), set()) == (found.ranks, found.edges)


def test_prompts_larger_than_the_l2_meet_the_ops_beside_them() -> None:
    workload = Workload(phase="prefill", num_microbatches=128)
    found = contention_of(paper_scenario("layer-wise", workload=workload))

    assert set(range(16)) == found.ranks


def test_only_messages_that_do_not_fit_the_l2_disturb() -> None:
    flows = [flow_of(message(size), 0, calibrated(), CLUSTER) for size in (MIB, 200 * MIB)]

    assert [False, True] == [flow.disturbs for flow in flows]


def test_by_the_speed_of_light_nothing_disturbs() -> None:
    assert not flow_of(message(200 * MIB), 0, SpeedOfLight(CLUSTER), CLUSTER).disturbs


def test_message_draws_its_mean_rate() -> None:
    flow = flow_of(message(MIB), 0, FlatCost(latency_s=1e-6, bytes_per_s=1e12), CLUSTER)

    assert MIB / (1e-6 + MIB / 1e12) == pytest.approx(flow.wire_bytes_per_s)


def test_hop_between_nodes_draws_on_the_nic() -> None:
    wires = [flow_of(message(MIB, peer), 0, calibrated(), CLUSTER).wire for peer in (1, 8)]

    assert ["nvlink4", "ndr400"] == wires


@pytest.mark.parametrize("rank", [0, 1])
def test_a_slow_port_at_either_end_slows_the_bytes_of_a_message(rank: int) -> None:
    cost = FlatCost(latency_s=1e-6, bytes_per_s=1e12)
    cluster = replace(CLUSTER, slow=SlowParts(ports=(rank,), nvlink_share=0.5))
    plain, slow = (flow_of(message(MIB), 0, cost, each) for each in (CLUSTER, cluster))

    assert 2 * (plain.duration_ps - 1_000_000) == pytest.approx(slow.duration_ps - 1_000_000, abs=2)


def test_a_slow_nic_does_not_slow_a_message_inside_a_node() -> None:
    cluster = replace(CLUSTER, slow=SlowParts(ports=(0,), nic_share=0.5))
    plain, slow = (flow_of(message(MIB), 0, FlatCost(), each) for each in (CLUSTER, cluster))

    assert plain == slow


def test_a_slow_port_has_less_for_all_its_users() -> None:
    cluster = replace(CLUSTER, slow=SlowParts(ports=(1,), nvlink_share=0.25))
    ports = [port_bytes_per_s("nvlink4", (rank,), calibrated(), cluster) for rank in (0, 1)]

    assert ports[0] == 4 * ports[1]


def test_collective_draws_its_bytes_over_its_time_where_the_port_has_more() -> None:
    buffer = ops.Buffer("b", "communication", (1_000,), "bfloat16")
    op = ops.AllReduce(
        name="sum", buffer=buffer, payload_bytes=2_000, group=(0, 1), algorithm="nccl"
    )
    cost = FlatCost(collective_s=2e-6, port_bytes_per_s=1e12)

    # A ring of two sends each byte once.
    assert {"nvlink4": 2_000 / 2e-6} == collective_rates(op, cost, CLUSTER)


def test_collectives_and_large_messages_on_one_wire_contend() -> None:
    # Four shards and two stages inside one node: prompts of 32 MiB leave beside all-reduces.
    spec = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=4, pipeline_parallel=2)
    model = replace(MODELS["paper-16"], num_layers=2)
    scenario = scenario_of(spec, model=model, cluster=dgx_cluster(H100, 8), batch_size=8)
    prompts = Workload(phase="prefill", batch_size=8, context_tokens=4096, num_microbatches=8)

    assert contention_of(replace(scenario, workload=prompts)).edges

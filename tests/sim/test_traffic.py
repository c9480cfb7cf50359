"""Bytes per op of a steady step: the simulator's own, and worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.sim.cost.model import Calibrated, Traffic
from layerwise.sim.machine.blocks import seconds_to_ps
from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.errors import ProfileMismatchError
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario, compile_run
from layerwise.sim.plan.workload import Workload
from layerwise.sim.resolve import resolve
from layerwise.sim.simulate import PS, simulate_scenario
from layerwise.sim.traffic import add_up, read_traffic, traffic_of, walk_rank, walk_steady
from tests.synthetic import synthetic_profile

L2_BYTES = GPUS["h100-sxm"].l2_bytes


def layers(num_layers: int = 1, hidden: int = 1024, **workload: object) -> Scenario:
    """One GPU with layers of this width."""
    heads = hidden // 128
    model = ModelSpec(
        name=f"h{hidden}",
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=128,
    )
    made = Workload(batch_size=8, context_tokens=128, num_microbatches=1)
    return Scenario(
        name="layers",
        model=model,
        cluster=dgx_cluster(GPUS["h100-sxm"], 1),
        placement=PlacementSpec(),
        workload=replace(made, **workload),
        run=RunSpec(num_steps=6, only_rank=0),
    )


STAGE = replace(
    layers(4),
    cluster=dgx_cluster(GPUS["h100-sxm"], 4),
    workload=Workload(batch_size=16, context_tokens=500, num_microbatches=4),
    run=RunSpec(num_steps=6, only_rank=2),
)
SHARD = replace(
    layers(4),
    cluster=dgx_cluster(GPUS["h100-sxm"], 2),
    placement=PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2),
    run=RunSpec(num_steps=6, only_rank=1),
)


@pytest.mark.parametrize(
    "scenario",
    [layers(), layers(9), layers(1, 1280, context_tokens=1000), STAGE, SHARD],
    ids=["in the L2", "out of it", "half in", "a stage", "a shard"],
)
def test_priced_it_is_the_step_that_is_simulated(scenario: Scenario) -> None:
    cost = Calibrated(scenario.cluster, synthetic_profile())
    traffic, run = walk_steady(resolve(scenario, None, cost=cost)), compile_run(scenario)
    rank, steady = scenario.run.only_rank, len(run) - 2
    simulated = simulate_scenario(scenario, run, cost)
    rows = {row.op: row for row in simulated.rows_of(rank, steady) if not row.replaced}
    local = {placed.name: placed.op for placed in run[steady].programs[rank]}
    assert rows.keys() == traffic.keys()
    for name, moved in traffic.items():
        op = local[name]
        assert not isinstance(op, (ops.Send, ops.Recv, ops.AllReduce, ops.AllGather))
        kernel_ps = seconds_to_ps(cost.local(op, moved).kernel_s)
        assert kernel_ps == round(rows[name].duration_s / PS)


@pytest.mark.parametrize(
    "scenario",
    [
        replace(STAGE, run=RunSpec(num_steps=4)),
        replace(SHARD, run=RunSpec(num_steps=4)),
        replace(STAGE, run=RunSpec(num_steps=4, context_growth_tokens=1)),
        STAGE,
    ],
    ids=["a pipeline", "tensor-parallel", "a growing context", "a rank alone"],
)
@pytest.mark.parametrize("folded", [True, False])
def test_a_whole_run_is_walked_as_it_was_simulated(scenario: Scenario, folded: bool) -> None:
    cost, run = Calibrated(scenario.cluster, synthetic_profile()), compile_run(scenario)
    simulation = simulate_scenario(scenario, run, cost, folded=folded)
    for rank in simulation.ranks:
        for step, moved in enumerate(walk_rank(simulation.machine, rank)):
            rows = {row.op: row for row in simulation.rows_of(rank, step)}
            for placed in run[step].programs[rank]:
                op = placed.op
                if isinstance(op, (ops.Send, ops.Recv, ops.AllReduce, ops.AllGather)):
                    continue
                kernel_s = cost.local(op, moved[placed.name].traffic).kernel_s
                assert seconds_to_ps(kernel_s) == round(rows[placed.name].duration_s / PS)


def test_a_walk_holds_no_more_than_the_l2_has() -> None:
    simulation = simulate_scenario(
        STAGE, compile_run(STAGE), Calibrated(STAGE.cluster, synthetic_profile())
    )
    held = [m.l2_bytes for step in walk_rank(simulation.machine, 2) for m in step.values()]
    assert sorted(held[:5]) == held[:5]
    assert L2_BYTES * 0.5 < max(held) <= L2_BYTES


def test_reads_that_hit_and_miss_are_what_the_ops_read() -> None:
    scenario = layers(2)
    traffic = traffic_of(scenario, synthetic_profile())
    expected = {
        placed.name: demand_of(placed.op).read_bytes
        for placed in compile_run(scenario)[3].programs[0]
        if placed.name in traffic
    }
    assert expected == {name: t.hbm_read_bytes + t.l2_read_bytes for name, t in traffic.items()}


def test_one_narrow_layer_hits_and_nine_miss() -> None:
    warm, cold = (add_up(walk_steady(resolve(layers(n), None)).values()) for n in (1, 9))
    assert 0 == warm.hbm_read_bytes
    assert 9 * layers().model.layer_weight_bytes <= cold.hbm_read_bytes


def test_chunks_of_a_prefill_are_summed() -> None:
    scenario = layers(phase="prefill", batch_size=1, context_tokens=1024, prefill_chunk_tokens=256)
    traffic = traffic_of(scenario, synthetic_profile())
    written = sum(
        size
        for step in compile_run(scenario)
        for placed in step.programs[0]
        if placed.name == "L00.attn.qkv@m0"
        for _, size in demand_of(placed.op).writes
    )
    assert written == traffic["L00.attn.qkv@m0"].written_bytes


def test_bytes_add_up() -> None:
    each = (Traffic(1, 2, 3, 4), Traffic(10, 20, 30, 40))
    assert Traffic(11, 22, 33, 44) == add_up(each)


@pytest.mark.parametrize(("share_of_l2", "hit"), [(0.5, 1.0), (0.85, 0.5), (1.0, 0.0)])
def test_a_read_of_a_working_set_follows_the_ramp(share_of_l2: float, hit: float) -> None:
    size = round(share_of_l2 * L2_BYTES)
    found = read_traffic(size, synthetic_profile(), L2_BYTES)
    assert size == found.hbm_read_bytes + found.l2_read_bytes
    assert hit == pytest.approx(found.l2_read_bytes / size, abs=1e-6)


def test_a_profile_without_the_ramp_is_refused() -> None:
    profile = synthetic_profile()
    without = replace(
        profile, machine={k: v for k, v in profile.machine.items() if k != "l2_no_hit"}
    )
    with pytest.raises(ProfileMismatchError, match="no machine constant.*l2_no_hit"):
        read_traffic(1000, without, L2_BYTES)

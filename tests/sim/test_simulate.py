from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerwise.sim.cost.model import CostModel, SpeedOfLight
from layerwise.sim.machine.account import StepAccount
from layerwise.sim.machine.blocks import time_ops, walk
from layerwise.sim.machine.l2 import L2State
from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.hardware import ClusterSpec, dgx_cluster
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.scenario import (
    PlacementSpec,
    RunSpec,
    Scenario,
    compile_run,
    paper_scenario,
)
from layerwise.sim.plan.workload import Workload
from layerwise.sim.predict import predict_plan
from layerwise.sim.resolve import resolve
from layerwise.sim.simulate import PS, Simulation, simulate
from layerwise.sim.trace import Row, Trace, write_trace
from tests.sim.scenes import (
    CLUSTER,
    H100,
    TINY,
    Case,
    FlatCost,
    calibrated,
    cases,
    pipeline,
    scenario_of,
    uncontended,
)

SHARDS = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=4, pipeline_parallel=2)
# Nodes of three GPUs: a group of two straddles their edge.
THREES = ClusterSpec(
    name="threes", gpu=H100, num_nodes=2, gpus_per_node=3, nvlink=CLUSTER.nvlink, nic=CLUSTER.nic
)
DEPTHS = [(1, 1), (2, 1), (3, 2), (4, 4), (4, 12), (6, 4), (3, 8)]


def run_scenario(scenario: Scenario, cost: CostModel, **options: object) -> Simulation:
    return simulate(compile_run(scenario), cost, scenario.cluster, **options)  # type: ignore[arg-type]


def accounts_of(simulation: Simulation) -> list[StepAccount]:
    steps = range(len(simulation.step_end_s))
    return [simulation.account(rank, step) for rank in simulation.ranks for step in steps]


def in_order(rows: tuple[Row, ...]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.step, row.rank, row.start_s, row.op))


def stage_s(scenario: Scenario, cost: FlatCost) -> float:
    """One microbatch on one stage, whose ops all take the same time."""
    local = [
        placed
        for placed in compile_run(scenario)[0].programs[0]
        if placed.microbatch == 0 and not isinstance(placed.op, ops.Send)
    ]
    return len(local) * cost.op_s


@pytest.mark.parametrize(("stages", "microbatches"), DEPTHS)
def test_step_from_idle_has_the_bubble_of_the_closed_form(stages: int, microbatches: int) -> None:
    scenario, cost = pipeline(stages, microbatches, num_steps=1), FlatCost()
    step_s = run_scenario(scenario, cost).first_step_s
    bubble = 1 - microbatches * stage_s(scenario, cost) / step_s

    assert float(Fraction(stages - 1, microbatches + stages - 1)) == pytest.approx(bubble, abs=1e-9)


@pytest.mark.parametrize(("stages", "microbatches"), DEPTHS)
def test_steady_decode_has_the_bubble_of_the_closed_form(stages: int, microbatches: int) -> None:
    scenario, cost = pipeline(stages, microbatches, num_steps=6), FlatCost()
    step_s = run_scenario(scenario, cost).steady_step_s
    bubble = 1 - microbatches * stage_s(scenario, cost) / step_s

    assert max(0.0, 1 - microbatches / stages) == pytest.approx(bubble, abs=1e-9)


@pytest.mark.parametrize(("stages", "microbatches"), DEPTHS)
def test_predicted_bubble_is_that_of_the_closed_form(stages: int, microbatches: int) -> None:
    scenario = pipeline(stages, microbatches, num_steps=4)
    prediction = predict_plan(resolve(scenario, None, cost=FlatCost()))

    assert max(0.0, 1 - microbatches / stages) == pytest.approx(prediction.bubble, abs=1e-6)


def test_latency_of_a_link_delays_one_step_by_each_hop() -> None:
    scenario = pipeline(4, 1, num_steps=1)
    near, far = (run_scenario(scenario, FlatCost(latency_s=s)).first_step_s for s in (0.0, 5e-6))

    assert 3 * 5e-6 == pytest.approx(far - near, abs=1e-12)


def test_steps_chain_by_data_alone() -> None:
    # Two microbatches a stage: the link's latency hides behind the other microbatch.
    scenario, cost = pipeline(2, 4, num_steps=6), FlatCost()
    steps = [run_scenario(scenario, replace(cost, latency_s=s)).steady_step_s for s in (0.0, 3e-6)]

    assert steps[0] == pytest.approx(steps[1], abs=1e-12)


@settings(max_examples=25)
@given(cases())
def test_folded_rows_equal_unfolded_rows(case: Case) -> None:
    # Every rank of this cluster sits in one node, so symmetric ranks sit on equal wires.
    cluster = replace(CLUSTER, num_nodes=1, gpus_per_node=64)
    cost = uncontended(cluster)
    folded, unfolded = (simulate(case.run, cost, cluster, folded=flag) for flag in (True, False))

    assert in_order(unfolded.rows) == in_order(folded.rows)


@settings(max_examples=15)
@given(cases())
def test_folded_steps_equal_unfolded_steps(case: Case) -> None:
    cluster = replace(CLUSTER, num_nodes=1, gpus_per_node=64)
    cost = FlatCost(latency_s=2e-6)
    folded, unfolded = (simulate(case.run, cost, cluster, folded=flag) for flag in (True, False))

    assert unfolded.step_end_s == folded.step_end_s


def test_ranks_on_other_wires_are_not_folded() -> None:
    # Nodes of three GPUs: ranks 0, 1 | 2, 3 | ... of which 2 and 3 sit in different nodes.
    spec = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2, pipeline_parallel=2)
    scenario = scenario_of(spec, cluster=THREES, num_steps=1)
    cost = SpeedOfLight(THREES)
    folded, unfolded = (run_scenario(scenario, cost, folded=flag) for flag in (True, False))

    assert unfolded.step_end_s == folded.step_end_s


def test_replicas_on_other_wires_are_not_folded() -> None:
    # Three stages a replica on nodes of eight: the third replica crosses the node's edge.
    spec = PlacementSpec(strategy="tensor-pipeline", pipeline_parallel=3, data_parallel=4)
    scenario = scenario_of(spec, num_steps=1)
    cost = SpeedOfLight(CLUSTER)
    folded, unfolded = (run_scenario(scenario, cost, folded=flag) for flag in (True, False))

    assert unfolded.step_end_s == folded.step_end_s


def test_eager_folded_steps_equal_eager_unfolded_steps() -> None:
    scenario, cost = scenario_of(SHARDS, num_steps=2), FlatCost(issue_s=3e-6)
    folded, unfolded = (
        run_scenario(scenario, cost, folded=flag, launch="eager") for flag in (True, False)
    )

    assert unfolded.step_end_s == folded.step_end_s


@settings(max_examples=15)
@given(cases())
def test_no_run_is_faster_than_the_speed_of_light(case: Case) -> None:
    cluster = replace(CLUSTER, num_nodes=1, gpus_per_node=64)
    believed, bound = (
        simulate(case.run, cost, cluster) for cost in (calibrated(cluster), SpeedOfLight(cluster))
    )

    assert bound.step_end_s[-1] <= believed.step_end_s[-1]


@pytest.mark.parametrize("strategy", ["layer-wise", "tensor-pipeline"])
@pytest.mark.parametrize("model", ["paper-16", "paper-30b"])
def test_paper_is_not_faster_than_the_speed_of_light(strategy: str, model: str) -> None:
    scenario = paper_scenario(strategy, model).with_microbatches(8)  # type: ignore[arg-type]
    believed, bound = (
        run_scenario(scenario, cost).steady_step_s for cost in (calibrated(), SpeedOfLight(CLUSTER))
    )

    assert bound < believed


def test_rows_hold_every_op_of_every_rank_once() -> None:
    scenario = scenario_of(SHARDS, num_steps=2)
    run = compile_run(scenario)
    rows = simulate(run, calibrated(), CLUSTER).rows
    expected = [
        (0, step, program.rank, placed.name)
        for step, compiled in enumerate(run)
        for program in compiled.programs
        for placed in program
    ]

    assert sorted(expected) == sorted(row.key for row in rows)


def test_ops_of_a_stream_do_not_overlap() -> None:
    rows = run_scenario(scenario_of(SHARDS), calibrated()).rows
    stream = in_order(tuple(r for r in rows if r.rank == 0 and r.stream == "compute"))

    assert all(a.end_s <= b.start_s + 1e-15 for a, b in zip(stream, stream[1:], strict=False))


def test_row_starts_when_it_is_ready_or_later() -> None:
    rows = run_scenario(scenario_of(SHARDS), calibrated()).rows

    assert [] == [row for row in rows if not row.ready_s <= row.start_s <= row.end_s]


def test_receive_ends_when_its_send_arrives() -> None:
    rows = run_scenario(pipeline(2, 1, 1), calibrated()).rows
    ends = {row.op: row.end_s for row in rows}

    assert ends["P0.act.send@m0"] == ends["P1.act.recv@m0"]


def test_same_scenario_writes_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        rows = run_scenario(scenario_of(SHARDS), calibrated()).rows
        trace = Trace(source="predicted", name="t", scenario={}, kernel_set="k", rows=rows)
        write_trace(trace, tmp_path / f"{name}.gz")
        written.append((tmp_path / f"{name}.gz").read_bytes())

    assert written[0] == written[1]


def test_eager_is_slower_than_graph() -> None:
    graph, eager = (
        run_scenario(scenario_of(SHARDS), calibrated(), launch=launch).steady_step_s
        for launch in ("graph", "eager")
    )

    assert eager > graph


def test_eager_with_slow_host_is_issue_time_per_op() -> None:
    scenario = scenario_of(PlacementSpec(num_gpus=1), num_steps=4)
    cost = FlatCost(op_s=1e-9, issue_s=8e-6)
    num_ops = len(compile_run(scenario)[1].programs[0])

    assert num_ops * 8e-6 == pytest.approx(
        run_scenario(scenario, cost, launch="eager").steady_step_s, rel=1e-3
    )


def test_eager_op_starts_when_its_gap_is_over_and_the_host_has_issued_it() -> None:
    scenario = scenario_of(PlacementSpec(num_gpus=1), num_steps=1)
    cost = FlatCost(op_s=1e-6, launch_s=3e-6, issue_s=5e-6)
    found = run_scenario(scenario, cost, launch="eager")

    # Issued at 5, 10 and 15 us: the gap of 3 us is over by then.
    assert [6_000_000, 11_000_000, 16_000_000] == list(found.machine.logs[0].op_ends[:3])


def test_eager_host_that_is_ahead_costs_nothing() -> None:
    scenario = scenario_of(PlacementSpec(num_gpus=1), num_steps=4)
    graph, eager = (
        run_scenario(scenario, FlatCost(op_s=1e-4, issue_s=1e-6), launch=launch).steady_step_s
        for launch in ("graph", "eager")
    )

    assert graph == pytest.approx(eager, rel=1e-9)


def test_rank_alone_takes_the_sum_of_its_ops() -> None:
    scenario, cost = pipeline(4, 2, num_steps=1), FlatCost()
    local = [
        p
        for p in compile_run(scenario)[0].programs[1]
        if not isinstance(p.op, (ops.Send, ops.Recv))
    ]

    assert len(local) * 1e-6 == pytest.approx(run_scenario(scenario, cost, alone=1).first_step_s)


def test_rank_alone_with_caches_takes_the_sum_of_its_walk() -> None:
    scenario = replace(
        paper_scenario("layer-wise", workload=Workload(num_microbatches=4)),
    )
    scenario = replace(scenario, run=replace(scenario.run, num_steps=1))
    cost = uncontended()
    program = compile_run(scenario)[0].programs[3]
    parts = [
        part for part in program.parts if not isinstance(part.segment.ops[0], (ops.Send, ops.Recv))
    ]
    timed = time_ops(cost, walk(parts, L2State(cost)))
    by_hand = round(sum(op.cost.launch_s + op.cost.kernel_s for op in timed), 9)
    graphs = round(cost.graph_launch_s, 9)

    assert by_hand + graphs == pytest.approx(
        run_scenario(scenario, cost, alone=3).first_step_s, rel=1e-6
    )


def test_rank_alone_marks_its_messages_replaced() -> None:
    rows = run_scenario(pipeline(4, 2, 1), calibrated(), alone=1).rows

    assert {"Recv", "Send"} == {row.kind for row in rows if row.replaced}
    assert {1} == {row.rank for row in rows}


@pytest.mark.parametrize("spec", [PlacementSpec(), SHARDS])
def test_doubling_every_bandwidth_halves_the_speed_of_light(spec: PlacementSpec) -> None:
    gpu = replace(
        H100,
        hbm_bytes_per_s=2 * H100.hbm_bytes_per_s,
        l2_bytes_per_s=2 * H100.l2_bytes_per_s,
        peak_flops_per_s=2 * H100.peak_flops_per_s,
    )
    doubled = replace(
        CLUSTER,
        gpu=gpu,
        nvlink=replace(CLUSTER.nvlink, bytes_per_s=900e9),
        nic=replace(CLUSTER.nic, bytes_per_s=100e9),
    )
    once, twice = (
        run_scenario(
            scenario_of(spec, model=MODELS["paper-16"], microbatches=4, cluster=cluster),
            SpeedOfLight(cluster),
        ).steady_step_s
        for cluster in (CLUSTER, doubled)
    )

    assert 0.5 == pytest.approx(twice / once, rel=1e-4)


@settings(max_examples=15)
@given(cases())
def test_wire_bytes_are_those_of_the_ops(case: Case) -> None:
    machine = simulate(case.run, FlatCost(), CLUSTER, folded=False)
    counted = sum(size for account in accounts_of(machine) for size in account.wire_bytes.values())
    demanded = sum(
        demand_of(placed.op).wire_bytes
        for compiled in case.run
        for program in compiled.programs
        for placed in program
    )

    assert demanded == counted


def test_hops_count_on_their_own_wire() -> None:
    scenario = scenario_of(PlacementSpec(num_gpus=16), model=MODELS["paper-16"], num_steps=1)
    counted: dict[str, int] = {}
    for account in accounts_of(run_scenario(scenario, FlatCost())):
        for wire, size in account.wire_bytes.items():
            counted[wire] = counted.get(wire, 0) + size

    # 15 hops of 16 sequences x 4096 x 2 bytes, of which one leaves the node.
    assert {"nvlink4": 14 * 131_072, "ndr400": 131_072} == counted


def test_messages_slow_the_ops_beside_them() -> None:
    scenario = pipeline(2, 4, 4)
    free, disturbed = (
        run_scenario(scenario, FlatCost(bytes_per_s=1e9, op_speed=speed)).step_end_s[-1]
        for speed in (1.0, 0.5)
    )

    assert disturbed > free


def test_steady_state_is_recognised() -> None:
    simulation = run_scenario(pipeline(3, 6, num_steps=5), FlatCost())

    assert simulation.is_steady


def test_two_steps_are_too_few_to_be_steady() -> None:
    assert not run_scenario(pipeline(3, 6, num_steps=2), FlatCost()).is_steady


def test_step_ends_are_accounted_to_the_picosecond() -> None:
    simulation = run_scenario(pipeline(3, 3, num_steps=2), FlatCost())
    last = max(account.end_ps for account in accounts_of(simulation))

    assert last * PS == simulation.step_end_s[-1]


def test_embedding_and_head_run_too() -> None:
    scenario = scenario_of(SHARDS, model=TINY.with_vocabulary(64), num_steps=2)
    plain = scenario_of(SHARDS, num_steps=2)

    assert run_scenario(scenario, FlatCost()).first_step_s > (
        run_scenario(plain, FlatCost()).first_step_s
    )


@given(st.integers(1, 3))
def test_cluster_of_one_node_uses_no_nic(stages: int) -> None:
    cluster = dgx_cluster(H100, 8)
    scenario = scenario_of(PlacementSpec(num_gpus=stages), cluster=cluster, num_steps=1)
    simulation = run_scenario(scenario, FlatCost())

    assert {"nvlink4"} >= {
        wire for account in accounts_of(simulation) for wire in account.wire_bytes
    }


def test_folded_steps_equal_unfolded_ones_where_messages_contend_with_ops() -> None:
    scenario = replace(
        paper_scenario("tensor-pipeline").with_microbatches(4), run=RunSpec(num_steps=3)
    )
    run, light = compile_run(scenario), SpeedOfLight(scenario.cluster)
    folded, unfolded = (
        simulate(run, light, scenario.cluster, folded=flag) for flag in (True, False)
    )

    assert unfolded.step_end_s == folded.step_end_s


@settings(max_examples=20)
@given(cases(), st.booleans(), st.sampled_from(["graph", "eager"]))
def test_accounts_add_up_to_the_step(case: Case, folded: bool, launch: str) -> None:
    cluster = replace(CLUSTER, num_nodes=1, gpus_per_node=64)
    simulation = simulate(
        case.run,
        calibrated(cluster),
        cluster,
        folded=folded,
        launch=launch,  # type: ignore[arg-type]
    )

    for account in accounts_of(simulation):
        assert account.end_ps - account.begin_ps == sum(account.bound_ps.values())
        assert min(account.bound_ps.values()) >= 0


def test_wait_for_the_last_member_is_no_transfer() -> None:
    # Rank 1 of the group is on another node than rank 0's peer, so ranks are simulated one by one.
    spec = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2, pipeline_parallel=2)
    scenario = scenario_of(spec, cluster=THREES, num_steps=2)
    simulation = run_scenario(scenario, FlatCost(latency_s=1e-6))
    waits = [row for row in simulation.rows if row.kind == "AllReduce"]

    assert {2_000_000} == {round(row.duration_s / PS) for row in waits}
    assert all(row.ready_s <= row.start_s for row in waits)


@pytest.mark.parametrize("strategy", ["layer-wise", "tensor-pipeline"])
def test_folded_rows_equal_unfolded_rows_where_prefill_contends(strategy: str) -> None:
    workload = Workload(phase="prefill", batch_size=8, num_microbatches=4)
    scenario = paper_scenario(strategy, workload=workload)  # type: ignore[arg-type]
    run, cost = compile_run(scenario), calibrated()
    folded, unfolded = (simulate(run, cost, CLUSTER, folded=flag) for flag in (True, False))

    assert folded.machine.contention.ranks
    assert in_order(unfolded.rows) == in_order(folded.rows)


@pytest.mark.parametrize("context", [20, 1500, 9000])
def test_folded_rows_equal_unfolded_rows_while_the_context_grows(context: int) -> None:
    # Caches that fit the L2, that grow out of it, and that never fitted.
    model = replace(MODELS["paper-16"], num_layers=4)
    scenario = scenario_of(PlacementSpec(num_gpus=4), model=model, microbatches=4, batch_size=4)
    scenario = replace(
        scenario,
        workload=replace(scenario.workload, context_tokens=context),
        run=RunSpec(num_steps=6, context_growth_tokens=300),
    )
    run, cost = compile_run(scenario), calibrated()
    folded, unfolded = (simulate(run, cost, CLUSTER, folded=flag) for flag in (True, False))

    assert in_order(unfolded.rows) == in_order(folded.rows)


def test_growing_context_takes_longer_steps() -> None:
    scenario = paper_scenario("layer-wise").with_microbatches(16)
    scenario = replace(scenario, run=RunSpec(num_steps=6, context_growth_tokens=1000))
    ends = run_scenario(scenario, calibrated()).step_end_s

    assert ends[2] - ends[1] < ends[4] - ends[3]


def test_rows_are_counted_without_being_made() -> None:
    simulation = run_scenario(scenario_of(SHARDS, num_steps=3), calibrated())

    assert len(simulation.rows) == simulation.num_rows


def test_steps_in_one_graph_share_its_launch() -> None:
    scenario = scenario_of(PlacementSpec(num_gpus=1), num_steps=4)
    run, cost = compile_run(scenario), FlatCost(graph_launch_s=8e-6)
    one, four = (
        simulate(run, cost, CLUSTER, steps_per_graph=steps).steady_step_s for steps in (1, 4)
    )

    assert 6e-6 == pytest.approx(one - four, abs=1e-12)


def windowed(cost: CostModel, hidden: int) -> tuple[float, float]:
    """Seconds of a layer's step without windows over its weights, and with."""
    model = replace(
        MODELS["paper-16"],
        num_layers=1,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 128,
    )
    scenario = scenario_of(PlacementSpec(num_gpus=1), model=model, batch_size=1, num_steps=6)
    run = compile_run(scenario)
    plain, kept = (
        simulate(run, cost, CLUSTER, persisting_weights=flag).steady_step_s
        for flag in (False, True)
    )
    return plain, kept


def test_windows_that_are_obeyed_keep_a_share_of_weights_that_do_not_fit() -> None:
    # 302 MB of weights: the set-aside of 32.8 MB keeps a ninth of what HBM had to deliver.
    plain, kept = windowed(SpeedOfLight(CLUSTER), 3072)

    assert 1 - H100.persisting_l2_bytes / 302e6 == pytest.approx(kept / plain, abs=0.02)


def test_windows_that_no_kernel_obeys_only_cost() -> None:
    plain, lost = windowed(calibrated(), 3072)

    assert plain < lost < plain * 1.07


def test_windows_over_few_weights_take_no_more_of_the_l2_than_these() -> None:
    run = compile_run(scenario_of(PlacementSpec(num_gpus=1), num_steps=2))
    found = simulate(run, SpeedOfLight(CLUSTER), CLUSTER, persisting_weights=True)
    # Eight layers, two bytes a weight: projections of 64 x 192, 64 x 64, 64 x 256, 128 x 64, two norms.
    weights = 8 * 2 * (64 * (192 + 64 + 256 + 128) + 2 * 64)

    assert 1 - weights / H100.l2_bytes == found.machine.l2_of(0).left


def test_windows_over_weights_that_fit_gain_nothing() -> None:
    plain, kept = windowed(SpeedOfLight(CLUSTER), 768)

    assert kept >= plain * (1 - 1e-9)

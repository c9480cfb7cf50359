from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerwise.sim.cost.kinds import KINDS, kind_of
from layerwise.sim.cost.model import Calibrated, OpCost, SpeedOfLight, Traffic
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.errors import ProfileMismatchError
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.ops import AllReduce, Buffer
from layerwise.sim.plan.placement import tensor_pipeline
from layerwise.sim.plan.scenario import PlacementSpec, compile_run
from layerwise.sim.plan.workload import prefill_steps
from layerwise.sim.profile import Regime, TransferFit
from layerwise.sim.residuals import ResidualPoint
from tests.sim.scenes import CLUSTER, H100, TINY, Case, calibrated, cases, matmul_op, scenario_of
from tests.synthetic import constant, synthetic_profile

LIGHT = SpeedOfLight(CLUSTER)
MIB = 2**20


def all_reduce(payload_bytes: int, group: tuple[int, ...]) -> AllReduce:
    buffer = Buffer("b", "activation", (payload_bytes // 2,), "bfloat16")
    return AllReduce(
        name="r", buffer=buffer, payload_bytes=payload_bytes, group=group, algorithm="nccl"
    )


def local_ops(case: Case) -> list[ops.LocalOp]:
    return [
        placed.op
        for compiled in case.run
        for program in compiled.programs
        for placed in program
        if not isinstance(placed.op, (ops.AllReduce, ops.AllGather, ops.Send, ops.Recv))
    ]


def cold(op: ops.LocalOp) -> Traffic:
    demand = demand_of(op)
    return Traffic(demand.read_bytes, 0, demand.written_bytes)


def seconds(cost: OpCost) -> float:
    return cost.launch_s + cost.kernel_s


@given(cases())
def test_no_op_is_faster_than_the_speed_of_light(case: Case) -> None:
    cost = calibrated()
    for op in set(local_ops(case)):
        believed, bound = cost.local(op, cold(op)), LIGHT.local(op, cold(op))

        assert bound.kernel_s <= believed.launch_s + believed.kernel_s


@given(st.sampled_from((1, 8, 32, 128)), st.sampled_from((1, 8)), st.booleans())
def test_no_op_of_the_paper_is_faster_than_the_speed_of_light(
    sequences: int, tensor_parallel: int, prefill: bool
) -> None:
    scenario = scenario_of(
        PlacementSpec(strategy="tensor-pipeline", tensor_parallel=tensor_parallel),
        model=replace(MODELS["paper-16"], num_layers=1),
        num_steps=1,
        batch_size=sequences,
    )
    phase = {"phase": "prefill"} if prefill else {}
    workload = replace(scenario.workload, context_tokens=10_000, **phase)
    cost = calibrated()
    for placed in compile_run(replace(scenario, workload=workload))[0].programs[0]:
        if isinstance(placed.op, (ops.AllReduce, ops.AllGather)):
            continue
        believed = cost.local(placed.op, cold(placed.op))
        bound = LIGHT.local(placed.op, cold(placed.op))

        assert bound.kernel_s <= believed.launch_s + believed.kernel_s


def test_prefill_of_many_short_prompts_is_not_faster_than_the_speed_of_light() -> None:
    model = replace(MODELS["paper-16"], num_layers=1)
    step = prefill_steps((128,), 128, 128)[0]
    compiled = compile_step(model, tensor_pipeline(model), step, KernelChoice())
    op = next(p.op for p in compiled.programs[0] if isinstance(p.op, ops.Attention))
    believed = calibrated().local(op, cold(op))

    assert LIGHT.local(op, cold(op)).kernel_s <= believed.launch_s + believed.kernel_s


@given(cases())
def test_every_op_has_a_feature_per_name(case: Case) -> None:
    for op in local_ops(case):
        kind = kind_of(op)
        assert len(kind.features) == len(kind.features_of(op))


def test_speed_of_light_reads_weights_at_the_datasheets_rate() -> None:
    op = matmul_op("m", 335 * 10**4 * 1024 // 1000)

    assert op.weight.num_bytes / 3.35e12 == pytest.approx(
        LIGHT.local(op, Traffic(op.weight.num_bytes, 0, 0)).kernel_s
    )


def test_speed_of_light_names_its_bound() -> None:
    op, large = matmul_op("m", 8 * MIB), matmul_op("m", 8 * MIB, rows=8192)

    assert ("hbm", "l2", "compute") == (
        LIGHT.local(op, cold(op)).bound,
        LIGHT.local(op, Traffic(0, 8 * MIB, 0)).bound,
        LIGHT.local(large, cold(large)).bound,
    )


def test_hits_are_faster_than_misses() -> None:
    cost, op = calibrated(), matmul_op("m", 16 * MIB)
    size = op.weight.num_bytes

    assert cost.local(op, Traffic(0, size, 0)).kernel_s < cost.local(op, cold(op)).kernel_s


@given(st.integers(0, 200 * MIB), st.integers(0, 200 * MIB))
def test_hits_never_grow_with_distance(near: int, far: int) -> None:
    cost = calibrated()

    assert cost.hit_fraction(max(near, far)) <= cost.hit_fraction(min(near, far))


def test_hit_ramp_ends_where_the_profile_says() -> None:
    cost, size = calibrated(), H100.l2_bytes

    assert (1.0, 0.0) == (
        cost.hit_fraction(int(0.75 * size)),
        cost.hit_fraction(round(0.95 * size) + 1),
    )


def test_residual_stretches_the_form() -> None:
    op, profile = matmul_op("m", 16 * MIB), synthetic_profile()
    place = KINDS["matmul"].place_of(kind_of(op).features_of(op), cold(op).miss_share)
    point = ResidualPoint(place=place, log_ratio=0.25)
    fit = replace(profile.fits["matmul"], residuals=(point,))
    stretched = Calibrated(CLUSTER, replace(profile, fits=profile.fits | {"matmul": fit}))
    plain, more = (
        sum((cost.launch_s, cost.kernel_s))
        for cost in (c.local(op, cold(op)) for c in (calibrated(), stretched))
    )

    # The form alone weighs against one point: a 75th.
    assert 0.25 == pytest.approx(math.log(more / plain), rel=0.02)


def test_set_aside_slows_what_hbm_bounds_and_nothing_else() -> None:
    cost, op = calibrated(), matmul_op("m", 64 * MIB)
    hits = Traffic(0, MIB, 0)
    slower = [
        seconds(cost.local(op, replace(traffic, l2_set_aside=True)))
        / seconds(cost.local(op, traffic))
        for traffic in (cold(op), hits)
    ]

    assert [1.06, 1.0] == pytest.approx(slower)


def test_only_code_that_left_the_l2_costs_an_op_among_others() -> None:
    profile = synthetic_profile()
    machine = profile.machine | {"interleaved_code_s": constant(1e-6)}
    cost, op = Calibrated(CLUSTER, replace(profile, machine=machine)), matmul_op("m", MIB)
    missed, half, hit = (
        seconds(cost.local(op, replace(cold(op), code_miss_share=share)))
        for share in (1.0, 0.5, 0.0)
    )

    assert (1e-6, 0.5e-6) == (pytest.approx(missed - hit), pytest.approx(half - hit))


def test_every_op_costs_more_among_others_and_one_that_hbm_bounds_more_again() -> None:
    times = {"interleaved_s": constant(1e-7), "interleaved_hbm_s": constant(3e-7)}
    profile = synthetic_profile()
    among = Calibrated(CLUSTER, replace(profile, machine=profile.machine | times))
    op = matmul_op("m", 64 * MIB)
    more = [
        seconds(among.local(op, traffic)) - seconds(calibrated().local(op, traffic))
        for traffic in (Traffic(0, 64 * MIB, 0), cold(op))
    ]

    assert [1e-7, 4e-7] == pytest.approx(more)


def test_kernels_of_plain_loads_obey_windows_and_tma_does_not() -> None:
    matmul = matmul_op("m", MIB)
    cost = calibrated()

    assert cost.obeys_windows(replace(matmul, kernel="skinny"))
    assert not cost.obeys_windows(matmul)


def test_documents_say_that_every_kernel_obeys_windows() -> None:
    op = matmul_op("m", MIB)

    assert LIGHT.obeys_windows(op)
    assert Calibrated(CLUSTER, synthetic_profile(), "uncalibrated").obeys_windows(op)


def test_hits_end_where_they_do_among_others() -> None:
    profile = synthetic_profile()
    ends = {"interleaved_full_hit": constant(0.4), "interleaved_no_hit": constant(0.8)}
    cost = Calibrated(CLUSTER, replace(profile, machine=profile.machine | ends))
    size = CLUSTER.gpu.l2_bytes

    assert 0.8 * size == cost.hit_horizon_bytes
    assert 0.5 == pytest.approx(cost.hit_fraction(round(0.6 * size)))


def test_write_that_pushes_another_out_is_counted_at_hbm_alone() -> None:
    traffic = Traffic(100, 40, 30, 20)

    assert (120, 50) == (traffic.hbm_bytes, traffic.l2_bytes)
    assert 120 / 170 == traffic.miss_share


def test_shape_outside_what_was_calibrated_is_flagged() -> None:
    profile = synthetic_profile()
    fit = replace(profile.fits["matmul"], valid=((1.0, 4.0),) * 3)
    cost = Calibrated(CLUSTER, replace(profile, fits=profile.fits | {"matmul": fit}))
    op = matmul_op("m", MIB)

    assert (True, False) == (
        cost.local(op, cold(op)).extrapolated,
        calibrated().local(op, cold(op)).extrapolated,
    )


def test_all_reduce_follows_the_table_of_its_group() -> None:
    seconds = synthetic_profile().transfers["all_reduce.nccl.8"].seconds(65_536)

    assert seconds == calibrated().collective(all_reduce(65_536, tuple(range(8)))).kernel_s


def test_all_reduce_across_nodes_is_slower_than_inside_one() -> None:
    cost = calibrated()
    inside, across = (
        cost.collective(all_reduce(65_536, tuple(range(ranks)))).kernel_s for ranks in (8, 16)
    )

    assert across > inside


def test_all_reduce_across_nodes_sends_a_gpus_share_of_a_nodes_share_there_and_back() -> None:
    wire = TransferFit(
        regimes=(Regime(from_bytes=0, latency_s=5e-6, bytes_per_s=1e9),), source="made up"
    )
    profile = synthetic_profile()
    transfers = profile.transfers | {"send.ndr400": wire}
    cost = Calibrated(CLUSTER, replace(profile, transfers=transfers))
    inside, across = (
        cost.collective(all_reduce(64_000, tuple(range(ranks)))).kernel_s for ranks in (8, 16)
    )

    # 64,000 bytes over eight GPUs of a node and two nodes: 4,000 each, 4 us at 1 GB/s.
    assert 2 * (5e-6 + 4e-6) == pytest.approx(across - inside)


def test_all_reduce_across_nodes_is_not_faster_than_the_speed_of_light() -> None:
    op = all_reduce(2**26, tuple(range(16)))

    assert LIGHT.collective(op).kernel_s <= calibrated().collective(op).kernel_s


def test_all_reduce_inside_a_node_is_not_faster_than_the_speed_of_light() -> None:
    op = all_reduce(2**26, tuple(range(8)))

    assert LIGHT.collective(op).kernel_s <= calibrated().collective(op).kernel_s


def test_group_nobody_calibrated_is_refused() -> None:
    with pytest.raises(ProfileMismatchError, match=r"no transfer 'all_reduce.nccl.3'; it has \["):
        calibrated().collective(all_reduce(1024, (0, 1, 2)))


def test_all_reduce_with_one_rank_a_node_has_a_cost() -> None:
    cluster = ClusterSpec(
        name="ones",
        gpu=H100,
        num_nodes=2,
        gpus_per_node=1,
        nvlink=CLUSTER.nvlink,
        nic=CLUSTER.nic,
    )

    assert (
        Calibrated(cluster, synthetic_profile()).collective(all_reduce(1024, (0, 1))).kernel_s > 0
    )


def test_port_carries_what_its_fastest_regime_does() -> None:
    profile = synthetic_profile()
    regimes = (
        Regime(from_bytes=0, latency_s=0.0, bytes_per_s=1e9),
        Regime(from_bytes=10, latency_s=0.0, bytes_per_s=4e9),
    )
    fit = TransferFit(regimes=regimes, source="made up")
    cost = Calibrated(CLUSTER, replace(profile, transfers={"send.nvlink4": fit}))

    assert 4e9 == cost.link_bytes_per_s(CLUSTER.nvlink)


def test_more_rows_never_take_less_time_by_a_wave() -> None:
    cost = calibrated()
    products = [matmul_op("m", 32 * MIB, rows=rows) for rows in (1, 64, 512, 4096)]
    seconds = [cost.local(op, cold(op)).kernel_s for op in products]

    assert sorted(seconds) == seconds


def test_tiny_model_is_launch_bound() -> None:
    cost = calibrated()
    run = compile_run(scenario_of(PlacementSpec(num_gpus=1), model=TINY, num_steps=1))

    assert {"launch"} == {
        cost.local(placed.op, cold(placed.op)).bound
        for placed in run[0].programs[0]
        if isinstance(placed.op, ops.Norm)
    }

"""The published constants give back the published measurements they were taken from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.sim.cost.kinds import KINDS
from layerwise.sim.cost.model import Calibrated, Traffic
from layerwise.sim.cost.uncalibrated import published_profile
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.hardware import GPUS, GpuSpec, LinkSpec, dgx_cluster
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.ops import Buffer, Matmul
from layerwise.sim.plan.placement import tensor_pipeline
from layerwise.sim.plan.scenario import paper_scenario
from layerwise.sim.plan.workload import prefill_steps
from layerwise.sim.predict import predict
from tests.synthetic import synthetic_profile

CLUSTER = dgx_cluster(GPUS["h100-sxm"], 16)
PROFILE = published_profile(CLUSTER)
COST = Calibrated(CLUSTER, PROFILE, belief="uncalibrated")
OWN_GPU = GpuSpec(
    name="own",
    num_sms=100,
    peak_flops_per_s=5e14,
    hbm_bytes=64 * 10**9,
    hbm_bytes_per_s=2e12,
    l2_bytes=30 * 2**20,
    l2_bytes_per_s=4e12,
    source="made up",
)


def seconds(op: ops.LocalOp) -> float:
    demand = demand_of(op)
    cost = COST.local(op, Traffic(demand.read_bytes, 0, demand.written_bytes))
    return cost.launch_s + cost.kernel_s


def matmul(rows: int, columns: int, inner: int) -> Matmul:
    return Matmul(
        name="m",
        source=Buffer("s", "activation", (rows, inner), "bfloat16"),
        weight=Buffer("w", "weight", (columns, inner), "bfloat16"),
        output=Buffer("o", "activation", (rows, columns), "bfloat16"),
        rows=rows,
        columns=columns,
        inner=inner,
    )


# Source of the expected times: see GEMM and PREFILL in the module under test.
@pytest.mark.parametrize(
    ("rows", "columns", "inner", "published_s"),
    [
        (1, 8192, 8192, 51.6e-6),
        (128, 8192, 8192, 48.7e-6),
        (256, 8192, 8192, 51.3e-6),
        (1024, 8192, 8192, 2 * 1024 * 8192**2 / 838e12),
        (4096, 4096, 4096, 2 * 4096**3 / 828e12),
    ],
)
def test_matmul_takes_what_was_published(
    rows: int, columns: int, inner: int, published_s: float
) -> None:
    assert published_s == pytest.approx(seconds(matmul(rows, columns, inner)), rel=0.15)


@pytest.mark.parametrize(
    ("tokens", "published_flops_per_s"),
    [(512, 98e12), (1024, 242e12), (2048, 386e12), (4096, 520e12), (8192, 603e12), (16384, 664e12)],
)
def test_prefill_attention_takes_what_was_published(
    tokens: int, published_flops_per_s: float
) -> None:
    model = replace(MODELS["paper-16"], num_layers=1)
    step = prefill_steps((1,), tokens, tokens)[0]
    program = compile_step(model, tensor_pipeline(model), step, KernelChoice()).programs[0]
    op = next(placed.op for placed in program if isinstance(placed.op, ops.Attention))

    # 32 heads of 128, half of the score matrix.
    published_s = 2 * 32 * 128 * tokens**2 / published_flops_per_s
    assert published_s == pytest.approx(seconds(op), rel=0.06)


@pytest.mark.parametrize(
    ("ranks", "payload_bytes", "published_s"),
    [
        (2, 2**16, 7.3e-6),
        (2, 2**26, 253e-6),
        (4, 2**19, 14.6e-6),
        (8, 2**10, 15.6e-6),
        (8, 2**19, 19.6e-6),
        (8, 2**26, 324e-6),
    ],
)
def test_nccl_takes_what_was_published(ranks: int, payload_bytes: int, published_s: float) -> None:
    table = PROFILE.transfers[f"all_reduce.nccl.{ranks}"]

    assert published_s == pytest.approx(table.seconds(payload_bytes), rel=0.1)


@pytest.mark.parametrize(("kib", "published_s"), [(64, 4.8e-6), (1024, 13.5e-6), (4096, 33.3e-6)])
def test_one_shot_goes_through_published_points(kib: int, published_s: float) -> None:
    table = PROFILE.transfers["all_reduce.one_shot.8"]

    assert published_s == pytest.approx(table.seconds(kib * 1024))
    assert published_s == pytest.approx(table.seconds(kib * 1024 - 1), rel=1e-3)


@pytest.mark.parametrize("payload_bytes", [2**13, 2**19, 2**24])
def test_group_of_unpublished_size_lies_near_its_neighbours(payload_bytes: int) -> None:
    four, six, eight = (
        PROFILE.transfers[f"all_reduce.nccl.{n}"].seconds(payload_bytes) for n in (4, 6, 8)
    )

    assert 0.8 * four < six < 1.2 * eight


def test_decode_attention_reads_kv_at_the_published_rate() -> None:
    constants = PROFILE.fits["decode_attention"].values

    # Published: each 256 MiB of KV more cost 86 us.
    assert 86e-6 == pytest.approx(256 * 2**20 / constants["hbm_bytes_per_s"], rel=0.1)


def test_every_kind_of_op_has_constants_and_each_constant_a_source() -> None:
    constants = [constant for fit in PROFILE.fits.values() for constant in fit.constants.values()]

    assert {kind.name for kind in KINDS.values() if not kind.else_priced_as} == set(PROFILE.fits)
    assert all(constant.source for constant in (*constants, *PROFILE.machine.values()))
    assert all(transfer.source for transfer in PROFILE.transfers.values())


def test_nothing_is_corrected_by_a_measurement() -> None:
    assert {()} == {fit.residuals for fit in PROFILE.fits.values()}


def test_form_constants_are_those_of_a_calibrated_profile() -> None:
    expected = {kind: set(fit.constants) for kind, fit in synthetic_profile().fits.items()}

    assert expected == {kind: set(fit.constants) for kind, fit in PROFILE.fits.items()}


def test_rates_are_shares_of_the_datasheets() -> None:
    fast = replace(GPUS["h100-sxm"], hbm_bytes_per_s=2 * GPUS["h100-sxm"].hbm_bytes_per_s)
    doubled = published_profile(replace(CLUSTER, gpu=fast))
    rates = [profile.fits["matmul"].values["hbm_bytes_per_s"] for profile in (PROFILE, doubled)]

    assert 2 * rates[0] == rates[1]


def test_wire_of_half_the_rate_halves_rates_and_keeps_latencies() -> None:
    half = LinkSpec(name="own", bytes_per_s=CLUSTER.nvlink.bytes_per_s / 2, source="made up")
    slow = published_profile(replace(CLUSTER, nvlink=half)).transfers
    own, usual = slow["send.own"].regimes[0], PROFILE.transfers["send.nvlink4"].regimes[0]

    assert (usual.latency_s, usual.bytes_per_s / 2) == (own.latency_s, own.bytes_per_s)
    assert (
        slow["all_reduce.nccl.8"].regimes[-1].bytes_per_s
        == PROFILE.transfers["all_reduce.nccl.8"].regimes[-1].bytes_per_s / 2
    )


@pytest.mark.parametrize("gpu", [*GPUS.values(), OWN_GPU], ids=lambda gpu: gpu.name)
def test_every_gpu_is_predicted_and_slower_than_the_speed_of_light(gpu: GpuSpec) -> None:
    scenario = paper_scenario("tensor-pipeline").with_microbatches(2)
    model = replace(scenario.model, num_layers=2).with_vocabulary(32_000)
    scenario = replace(scenario, cluster=dgx_cluster(gpu, 16), model=model)
    rates = [
        predict(scenario, None, belief).tokens_per_s
        for belief in ("uncalibrated", "speed_of_light")
    ]

    assert 0 < rates[0] < rates[1]

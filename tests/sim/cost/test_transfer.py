from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerwise.sim.cost.model import Calibrated, Traffic
from layerwise.sim.cost.transfer import moved_profile, profile_for
from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.errors import ProfileMismatchError
from layerwise.sim.plan.hardware import (
    GPUS,
    NDR400,
    NVLINK4,
    PCIE5,
    ClusterSpec,
    GpuSpec,
    dgx_cluster,
    usual_wires,
)
from layerwise.sim.plan.overrides import with_values
from layerwise.sim.plan.scenario import PlacementSpec, compile_run
from layerwise.sim.profile import Constant, OpFit, Profile, Regime, TransferFit
from tests.sim.scenes import CLUSTER, H100, scenario_of
from tests.synthetic import synthetic_profile

PROFILE = synthetic_profile()
WIRES = (NVLINK4, NDR400)
TIMES = (
    "launch_s",
    "prologue_s",
    "miss_s",
    "tile_s",
    "block_s",
    "split_s",
    "seconds_per_logit",
)
HOST_TIMES = (
    "eager_issue_s",
    "graph_gap_s",
    "graph_launch_s",
    "interleaved_s",
    "interleaved_code_s",
    "interleaved_hbm_s",
)
RATES = ("peak_flops_per_s", "hbm_bytes_per_s", "l2_bytes_per_s")


def times_two(gpu: GpuSpec, *keys: str) -> GpuSpec:
    changes: dict[str, Any] = {key: 2 * getattr(gpu, key) for key in keys}
    return replace(gpu, **changes)


def doubled(cluster: ClusterSpec) -> ClusterSpec:
    nvlink, nic = (
        replace(link, bytes_per_s=2 * link.bytes_per_s) for link in (cluster.nvlink, cluster.nic)
    )
    return replace(cluster, gpu=times_two(cluster.gpu, *RATES), nvlink=nvlink, nic=nic)


def with_zeros(constants: dict[str, Constant], names: tuple[str, ...]) -> dict[str, Constant]:
    return {
        name: replace(constant, value=0.0) if name in names else constant
        for name, constant in constants.items()
    }


def without_launches(profile: Profile) -> Profile:
    """The profile with every time that is no rate at zero."""

    def fit(given: OpFit) -> OpFit:
        return replace(given, constants=with_zeros(given.constants, TIMES))

    return replace(
        profile,
        fits={kind: fit(given) for kind, given in profile.fits.items()},
        transfers={name: with_latency(table, 0.0) for name, table in profile.transfers.items()},
        machine=with_zeros(profile.machine, HOST_TIMES),
    )


def with_latency(fit: TransferFit, latency_s: float) -> TransferFit:
    return replace(fit, regimes=tuple(replace(r, latency_s=latency_s) for r in fit.regimes))


def half_warm(op: ops.LocalOp) -> Traffic:
    demand = demand_of(op)
    hits = demand.read_bytes // 2
    return Traffic(demand.read_bytes - hits, hits, demand.written_bytes)


def op_seconds(op: ops.Op, rank: int, cost: Calibrated) -> float:
    match op:
        case ops.AllReduce() | ops.AllGather():
            timed = cost.collective(op)
        case ops.Send() | ops.Recv():
            moved = cost.transfer(op.payload_bytes, cost.cluster.link_between(rank, op.peer))
            return moved.latency_s + op.payload_bytes / moved.bytes_per_s
        case _:
            timed = cost.local(op, half_warm(op))
    return timed.launch_s + timed.kernel_s


def program_seconds(placement: PlacementSpec, cost: Calibrated) -> float:
    run = compile_run(scenario_of(placement, num_steps=1))
    return sum(
        op_seconds(placed.op, program.rank, cost)
        for program in run[0].programs
        for placed in program
    )


@pytest.mark.parametrize(
    "placement",
    [
        PlacementSpec(num_gpus=8),
        PlacementSpec(strategy="tensor-pipeline", tensor_parallel=8, pipeline_parallel=2),
        PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2, pipeline_parallel=8),
    ],
)
def test_twice_every_rate_takes_half_the_time(placement: PlacementSpec) -> None:
    profile = without_launches(PROFILE)
    before = program_seconds(placement, Calibrated(CLUSTER, profile))
    after = program_seconds(placement, Calibrated.about(doubled(CLUSTER), profile))

    assert before == pytest.approx(2 * after, rel=1e-12)


def test_launches_do_not_get_faster() -> None:
    placement = PlacementSpec(num_gpus=8)
    before = program_seconds(placement, Calibrated(CLUSTER, PROFILE))
    after = program_seconds(placement, Calibrated.about(doubled(CLUSTER), PROFILE))

    assert before / 2 < after < before


def constant_values(profile: Profile) -> dict[str, float]:
    fits = {f"{k}.{n}": c for k, fit in profile.fits.items() for n, c in fit.constants.items()}
    sends = {
        f"{name}.rate": regime.bytes_per_s
        for name, table in profile.transfers.items()
        for regime in table.regimes
    }
    machine = {f"machine.{name}": c for name, c in profile.machine.items()}
    return {name: c.value for name, c in (fits | machine).items()} | sends


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        (("hbm_bytes_per_s",), (".hbm_bytes_per_s",)),
        (("l2_bytes_per_s",), (".l2_bytes_per_s", ".reduction_bytes_per_s")),
        (("peak_flops_per_s",), (".sm_bytes_per_s", ".epilogue_bytes_per_s")),
        (("num_sms", "peak_flops_per_s"), ()),
        (("l2_bytes", "hbm_bytes"), ()),
    ],
)
def test_a_datasheet_value_moves_its_own_constants_and_no_others(
    changes: tuple[str, ...], ends: tuple[str, ...]
) -> None:
    gpu = times_two(H100, *changes)
    before, after = (
        constant_values(profile)
        for profile in (PROFILE, moved_profile(PROFILE, H100, gpu, WIRES, WIRES))
    )

    expected = {
        name: value * (2 if ends and name.endswith(ends) else 1) for name, value in before.items()
    }
    assert expected == after


def test_a_wire_moves_its_messages_and_the_collectives_of_a_node() -> None:
    faster = replace(NVLINK4, bytes_per_s=2 * NVLINK4.bytes_per_s)
    moved = moved_profile(PROFILE, H100, H100, WIRES, (faster, NDR400)).transfers

    rates = {
        name: moved[name].regimes[0].bytes_per_s / fit.regimes[0].bytes_per_s
        for name, fit in PROFILE.transfers.items()
    }
    assert {name: 1.0 if name == "send.ndr400" else 2.0 for name in PROFILE.transfers} == rates


def test_a_moved_constant_says_how_far_and_keeps_its_relative_error() -> None:
    fit = PROFILE.fits["norm"]
    exact = replace(fit.constants["hbm_bytes_per_s"], standard_error=1e10)
    profile = replace(
        PROFILE,
        fits=PROFILE.fits
        | {"norm": replace(fit, constants=fit.constants | {"hbm_bytes_per_s": exact})},
    )
    gpu = times_two(H100, "hbm_bytes_per_s")
    moved = moved_profile(profile, H100, gpu, WIRES, WIRES).fits["norm"]

    assert moved.constants["hbm_bytes_per_s"] == Constant(
        value=2 * exact.value,
        standard_error=2e10,
        unit=exact.unit,
        source="synthetic; moved x 2 (hbm_bytes_per_s: 3.35e+12 -> 6.7e+12)",
    )


def test_nothing_to_move_is_the_profile_itself() -> None:
    assert profile_for(CLUSTER, PROFILE) is PROFILE


def test_other_sizes_leave_rates_but_are_on_record() -> None:
    gpu = replace(H100, l2_bytes=10**11, persisting_l2_bytes=0)

    assert profile_for(replace(CLUSTER, gpu=gpu), PROFILE) is PROFILE


@given(st.sampled_from(sorted(set(GPUS) - {"h100-sxm"})))
def test_a_profile_moves_to_another_gpu_only_when_asked(name: str) -> None:
    cluster = dgx_cluster(GPUS[name], 8)

    with pytest.raises(ProfileMismatchError):
        profile_for(cluster, PROFILE)
    moved = profile_for(cluster, PROFILE, moved=True)
    assert (name, f"{name}, moved from synthetic") == (moved.gpu, moved.name)


def test_a_moved_profile_is_believed_on_its_gpu() -> None:
    cluster = dgx_cluster(GPUS["h200"], 8)
    cost = Calibrated(cluster, profile_for(cluster, PROFILE, moved=True))

    assert cost.profile.machine["hbm_bytes_per_s"].value == pytest.approx(3.1e12 * 4.8 / 3.35)


def test_a_moved_profile_is_not_moved_twice() -> None:
    cluster = replace(CLUSTER, gpu=times_two(H100, "hbm_bytes_per_s"))
    moved = profile_for(cluster, PROFILE)

    assert profile_for(cluster, moved) is moved


def test_a_moved_profile_is_refused_on_other_values() -> None:
    moved = profile_for(replace(CLUSTER, gpu=times_two(H100, "hbm_bytes_per_s")), PROFILE)

    with pytest.raises(ProfileMismatchError, match="was derived for h100-sxm .*give the measured"):
        profile_for(CLUSTER, moved)


def test_another_wire_takes_over_the_table_of_the_one_it_replaces() -> None:
    moved = profile_for(replace(CLUSTER, nvlink=PCIE5), PROFILE).transfers

    rate = PROFILE.transfers["send.nvlink4"].regimes[0].bytes_per_s
    assert "send.nvlink4" not in moved
    assert moved["send.pcie5"].regimes[0].bytes_per_s == pytest.approx(
        rate * PCIE5.bytes_per_s / NVLINK4.bytes_per_s
    )


def test_a_wire_that_was_measured_keeps_its_own_table() -> None:
    own = TransferFit(
        regimes=(Regime(from_bytes=0, latency_s=1e-5, bytes_per_s=5e10),), source="measured"
    )
    profile = replace(PROFILE, transfers=PROFILE.transfers | {"send.pcie5": own})

    assert own == profile_for(replace(CLUSTER, nvlink=PCIE5), profile).transfers["send.pcie5"]


def test_a_profile_of_a_gpu_that_nobody_lists_is_taken_as_it_is() -> None:
    mine = replace(H100, name="mine")
    profile = synthetic_profile("mine")

    assert profile_for(dgx_cluster(mine, 8), profile) is profile


def test_a_what_if_by_key_reaches_the_calibrated_belief() -> None:
    scenario = with_values(
        scenario_of(PlacementSpec(num_gpus=8)), {"cluster.gpu.hbm_bytes_per_s": "6.7TB/s"}
    )

    moved = Calibrated.about(scenario.cluster, PROFILE).profile

    assert moved.machine["hbm_bytes_per_s"].value == pytest.approx(6.2e12)


def test_provenance_names_where_it_came_from_and_what_moved() -> None:
    moved = profile_for(dgx_cluster(GPUS["h200"], 8), PROFILE, moved=True).provenance

    steps = ("hbm_bytes_per_s: 3.35e+12 -> 4.8e+12", "l2_bytes_per_s: 1.014e+13 -> 1.217e+13")
    assert ("h100-sxm", "; ".join(steps)) == (moved["moved_from"], moved["moved_by"])


def test_usual_wires_of_a_listed_gpu_are_its_clusters() -> None:
    for gpu in GPUS.values():
        cluster = dgx_cluster(gpu, 8)

        assert usual_wires(gpu.name) == (cluster.nvlink, cluster.nic)

"""What a slow GPU and a slow port do to the cost of an op, a message and a collective."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.sim.cost import slowed
from layerwise.sim.cost.following import FOLLOWS
from layerwise.sim.cost.model import Calibrated, SpeedOfLight, Traffic
from layerwise.sim.cost.transfer import profile_for
from layerwise.sim.plan import ops
from layerwise.sim.plan.hardware import FULL_SPEED, SlowParts, Speed
from layerwise.sim.plan.ops import Buffer
from tests.sim.scenes import CLUSTER, calibrated, matmul_op
from tests.synthetic import synthetic_profile

MIB = 2**20
PROFILE = synthetic_profile()
HALF_CLOCK, HALF_HBM = Speed(clock_share=0.5), Speed(hbm_share=0.5)
GROUP = tuple(range(8))
ALGORITHMS = ("nccl", "one_shot")


def slow_ports(nvlink: float = 1.0, nic: float = 1.0, rank: int = 3) -> Calibrated:
    parts = SlowParts(ports=(rank,), nvlink_share=nvlink, nic_share=nic)
    return calibrated(replace(CLUSTER, slow=parts))


def all_reduce(
    payload_bytes: int, group: tuple[int, ...], algorithm: str = "nccl"
) -> ops.AllReduce:
    buffer = Buffer("b", "communication", (payload_bytes // 2,), "bfloat16")
    return ops.AllReduce(
        name="r",
        buffer=buffer,
        payload_bytes=payload_bytes,
        group=group,
        algorithm=algorithm,  # type: ignore[arg-type]
    )


def kernel_s(cost: Calibrated | SpeedOfLight, rows: int) -> float:
    """A matmul whose weights come from HBM."""
    op = matmul_op("m", 64 * MIB, rows=rows)
    return cost.local(op, Traffic(64 * MIB, 0, 0)).kernel_s


def test_at_full_speed_a_model_is_itself() -> None:
    light, cost = SpeedOfLight(CLUSTER), calibrated()

    assert light is light.at_speed(FULL_SPEED)
    assert cost is cost.at_speed(FULL_SPEED)


def test_there_is_one_model_for_each_speed() -> None:
    cost = calibrated()

    assert cost.at_speed(HALF_HBM) is cost.at_speed(Speed(hbm_share=0.5))
    assert cost.at_speed(HALF_HBM) is not cost.at_speed(HALF_CLOCK)


@pytest.mark.parametrize(
    ("rows", "speed", "factor"),
    [(1, HALF_HBM, 2), (1, HALF_CLOCK, 1), (4096, HALF_HBM, 1), (4096, HALF_CLOCK, 2)],
)
def test_by_the_speed_of_light_an_op_slows_with_what_bounds_it(
    rows: int, speed: Speed, factor: int
) -> None:
    light = SpeedOfLight(CLUSTER)

    assert factor * kernel_s(light, rows) == kernel_s(light.at_speed(speed), rows)


@pytest.mark.parametrize(
    ("rows", "speed", "low", "high"),
    [
        (1, HALF_HBM, 1.7, 2.0),
        (1, HALF_CLOCK, 1.0, 1.6),
        (4096, HALF_HBM, 1.0, 1.1),
        (4096, HALF_CLOCK, 1.9, 2.0),
    ],
)
def test_calibrated_an_op_slows_with_what_bounds_it_but_for_its_launch(
    rows: int, speed: Speed, low: float, high: float
) -> None:
    cost = calibrated()

    assert low <= kernel_s(cost.at_speed(speed), rows) / kernel_s(cost, rows) <= high


def test_every_constant_of_a_profile_is_listed_with_what_it_follows() -> None:
    named = {name for fit in PROFILE.fits.values() for name in fit.constants} | {*PROFILE.machine}

    assert set() == named - FOLLOWS.keys()


@pytest.mark.parametrize(
    ("name", "speed", "factor"),
    [
        ("hbm_bytes_per_s", HALF_HBM, 0.5),
        ("hbm_bytes_per_s", HALF_CLOCK, 1.0),
        ("l2_bytes_per_s", HALF_CLOCK, 0.5),
        ("sm_bytes_per_s", HALF_CLOCK, 0.5),
        ("prologue_s", HALF_CLOCK, 2.0),
        ("launch_s", HALF_CLOCK, 1.0),
    ],
)
def test_constants_move_with_their_clock(name: str, speed: Speed, factor: float) -> None:
    found = calibrated().at_speed(speed).profile.fits["matmul"].values[name]

    assert factor * PROFILE.fits["matmul"].values[name] == pytest.approx(found)


def test_a_profile_that_was_moved_before_is_slowed_as_well() -> None:
    faster = replace(CLUSTER, gpu=replace(CLUSTER.gpu, hbm_bytes_per_s=6.7e12))
    given = Calibrated(faster, profile_for(faster, PROFILE))
    found = given.at_speed(HALF_HBM)

    assert (
        kernel_s(found, 1)
        == Calibrated.about(faster, PROFILE)
        .at_speed(HALF_HBM)
        .local(matmul_op("m", 64 * MIB), Traffic(64 * MIB, 0, 0))
        .kernel_s
    )
    assert kernel_s(found, 1) > kernel_s(given, 1)


def test_a_slowed_gpu_says_so() -> None:
    gpu = slowed.slowed_gpu(CLUSTER.gpu, Speed(0.7, 0.9))

    assert gpu.source.endswith("; slowed: clock_share=0.7, hbm_share=0.9")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_all_reduce_goes_at_the_pace_of_its_slowest_port(algorithm: str) -> None:
    op, empty = (all_reduce(size, GROUP, algorithm) for size in (64 * MIB, 0))
    plain, slow = (cost.collective(op).kernel_s for cost in (calibrated(), slow_ports(0.25)))
    latency = calibrated().collective(empty).kernel_s

    assert latency == slow_ports(0.25).collective(empty).kernel_s
    assert 4 * (plain - latency) == pytest.approx(slow - latency)


def test_a_slow_port_outside_the_group_does_not_matter() -> None:
    op = all_reduce(64 * MIB, GROUP)

    assert calibrated().collective(op) == slow_ports(0.25, rank=8).collective(op)


def test_across_nodes_the_slowest_nic_sets_the_pace() -> None:
    op = all_reduce(64 * MIB, tuple(range(16)))
    plain, slow = (cost.collective(op).kernel_s for cost in (calibrated(), slow_ports(nic=0.5)))

    assert plain < slow < 2 * plain


def test_no_wire_is_faster_than_its_slowest_port_by_the_speed_of_light() -> None:
    op = all_reduce(64 * MIB, GROUP)
    plain, slow = (
        SpeedOfLight(cost.cluster).collective(op).kernel_s
        for cost in (calibrated(), slow_ports(0.25))
    )

    assert 4 * plain == slow


def test_collectives_do_not_depend_on_a_members_clock() -> None:
    op = all_reduce(64 * MIB, GROUP)

    assert slow_ports(0.5).collective(op) == slow_ports(0.5).at_speed(HALF_CLOCK).collective(op)

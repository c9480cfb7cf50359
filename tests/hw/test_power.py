"""Power beside a measurement: windows, the energy counter's steps, ranks together, what is missing."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.instrument.energy import (
    MIN_ENERGY_WINDOW_S,
    RankPower,
    Sample,
    Window,
    WindowPower,
    combined,
    window_power,
)
from layerwise.hw.instrument.power import Gauge, NvmlGauge, PowerMeter, PowerOptions, nvml_gauge
from layerwise.hw.measure import measure
from layerwise.hw.options import Options
from layerwise.hw.ranks.launch import launch
from layerwise.hw.ranks.session import alone
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.trace import Trace
from tests.hw.scenes import scenario

CPU = torch.device("cpu")
POWER_CAP, HOT = 0x4, 0x40


class Stub:
    """A GPU that draws 400 W for ever; its counter moves each 10 ms."""

    def read(self) -> Sample:
        at_s = time.perf_counter()
        return Sample(
            at_s=at_s,
            power_w=400.0,
            sm_clock_hz=1.5e9,
            temperature_c=50.0,
            throttle_reasons=POWER_CAP,
            energy_j=400.0 * (at_s // 0.01) * 0.01,
        )


class Lost:
    """A GPU that fell off its bus after the first reading."""

    def __init__(self) -> None:
        self.num_reads = 0

    def read(self) -> Sample:
        self.num_reads += 1
        if self.num_reads > 1:
            raise RuntimeError("GPU is lost")
        return Stub().read()


def stub_gauge(device: torch.device) -> Gauge:
    return Stub()


SAMPLED = PowerOptions(open_gauge=stub_gauge, period_s=0.005)


def samples(
    watts: Any, *, until_s: float, every_s: float = 0.02, counter_step_s: float = 0.1, **fields: Any
) -> list[Sample]:
    """What a GPU with power `watts(at_s)` would say; its counter stands still between steps."""
    found: list[Sample] = []
    joules = shown = 0.0
    for number in range(int(until_s / every_s) + 1):
        at_s = number * every_s
        joules += watts(at_s) * every_s if number else 0.0
        if number % round(counter_step_s / every_s) == 0:
            shown = joules
        values = {
            "power_w": watts(at_s),
            "sm_clock_hz": 1.9e9,
            "temperature_c": 60.0,
            "throttle_reasons": 0,
            "energy_j": shown,
        }
        found.append(Sample(at_s=at_s, **(values | fields)))
    return found


def test_the_energy_counter_gives_joules_per_step() -> None:
    found = window_power(samples(lambda at_s: 500.0, until_s=3), [Window(0.5, 2.5, 1000)])
    assert found is not None
    assert found.energy_per_step_j == pytest.approx(1.0)
    assert found.has_counter
    assert found.energy_uncertainty == pytest.approx(0.02 / 1.8, rel=0.2)


def test_what_is_drawn_outside_the_window_is_left_out() -> None:
    def watts(at_s: float) -> float:
        return 500.0 if 1 <= at_s <= 3 else 90.0

    found = window_power(samples(watts, until_s=4), [Window(1.0, 3.0, 100)])
    assert found is not None
    assert found.energy_per_step_j == pytest.approx(10.0, rel=0.03)
    assert (500.0, 500.0) == (found.mean_power_w, found.max_power_w)


def test_without_a_counter_power_is_integrated() -> None:
    taken = samples(lambda at_s: 300.0, until_s=2, energy_j=None)
    found = window_power(taken, [Window(0.0, 2.0, 10)])
    assert found is not None
    assert found.energy_per_step_j == pytest.approx(60.0)
    assert not found.has_counter


def test_a_short_window_has_clocks_and_no_energy() -> None:
    taken = samples(lambda at_s: 300.0, until_s=1)
    found = window_power(taken, [Window(0.505, 0.515, 10)])
    assert found is not None
    assert (1, 1.9e9) == (found.num_samples, found.mean_sm_clock_hz)
    assert (None, None) == (found.energy_per_step_j, found.mean_power_w)
    measured, notes = combined([RankPower(untraced=found)], 8)
    assert {
        "mean_sm_clock_hz",
        "min_sm_clock_hz",
        "max_temperature_c",
        "throttled_share",
    } == measured.keys()
    assert "too short to measure: 0.01 s of repeats" in notes["energy"]


def test_a_counter_that_hardly_moves_says_no_energy() -> None:
    taken = samples(lambda at_s: 300.0, until_s=1, counter_step_s=0.6)
    found = window_power(taken, [Window(0.1, 0.9, 10)])
    assert found is not None
    assert found.energy_per_step_j is None
    assert "too few new values" in combined([RankPower(untraced=found)], 8)[1]["energy"]


def test_windows_next_to_each_other_are_one() -> None:
    taken = samples(lambda at_s: 200.0, until_s=2)
    windows = [Window(0.1 + 0.1 * n, 0.198 + 0.1 * n, 49) for n in range(10)]
    found = window_power(taken, windows)
    assert found is not None
    assert found.energy_per_step_j == pytest.approx(200 * 0.002, rel=0.05)
    apart = window_power(taken, [windows[0], Window(1.2, 2.0, 400)])
    assert apart is not None
    assert 0.8 == pytest.approx(apart.energy_window_s)


def test_no_sample_is_no_answer() -> None:
    assert window_power([], [Window(0, 1, 1)]) is None
    measured, notes = combined([RankPower()], 8)
    assert ({}, {"power": "not sampled: no sample in the timed repeats"}) == (measured, notes)


def test_throttling_is_a_share_by_reason() -> None:
    taken = samples(lambda at_s: 700.0, until_s=1)
    hot = [
        replace(s, throttle_reasons=POWER_CAP | (HOT if s.at_s > 0.9 else 0)) if s.at_s > 0.5 else s
        for s in taken
    ]
    found = window_power(hot, [Window(0.01, 0.99, 10)])
    assert found is not None
    assert found.throttled_share == pytest.approx(0.5, abs=0.03)
    assert found.throttled["hardware thermal"] == pytest.approx(0.1, abs=0.03)
    _, notes = combined([RankPower(untraced=found)], 8)
    assert (
        "software power cap (50% of samples), hardware thermal (10% of samples)"
        == notes["throttled"]
    )


def one_gpu(**fields: Any) -> WindowPower:
    values: dict[str, Any] = {
        "num_samples": 5,
        "span_s": 1.0,
        "mean_sm_clock_hz": 1.9e9,
        "min_sm_clock_hz": 1.8e9,
        "max_temperature_c": 60.0,
        "throttled_share": 0.0,
        "throttled": {},
        "mean_power_w": 500.0,
        "max_power_w": 600.0,
        "energy_per_step_j": 2.0,
        "energy_window_s": 1.0,
        "energy_uncertainty": 0.02,
        "has_counter": True,
    }
    return WindowPower(**(values | fields))


def test_energy_is_summed_over_gpus_and_clocks_are_not() -> None:
    slow = one_gpu(
        mean_sm_clock_hz=1.7e9,
        min_sm_clock_hz=1.2e9,
        energy_per_step_j=3.0,
        throttled_share=0.4,
        throttled={"software power cap": 0.4},
    )
    measured, notes = combined([RankPower(untraced=one_gpu()), RankPower(untraced=slow)], 10)
    assert (5.0, 0.5) == (measured["energy_per_step_j"], measured["energy_per_token_j"])
    assert 1.8e9 == pytest.approx(measured["mean_sm_clock_hz"])
    assert (1.2e9, 500.0, 0.4) == tuple(
        measured[key] for key in ("min_sm_clock_hz", "mean_power_w", "throttled_share")
    )
    assert "energy counter of 2 GPUs over 1 s" == notes["energy"]
    assert "software power cap (40% of samples)" == notes["throttled"]


def test_one_gpu_without_a_reading_leaves_no_sum() -> None:
    ranks = [RankPower(untraced=one_gpu()), RankPower(problem="RuntimeError: GPU is lost")]
    assert ({}, {"power": "not sampled: RuntimeError: GPU is lost"}) == combined(ranks, 10)


def test_the_thread_samples_while_a_stream_runs_and_is_gone_after() -> None:
    meter = PowerMeter(SAMPLED, CPU)
    with meter.sampling(traced=False):
        start_s = time.perf_counter()
        time.sleep(MIN_ENERGY_WINDOW_S + 0.05)
        end_s = time.perf_counter()
        meter.window_ended(end_s, end_s - start_s, 100)
    assert "layerwise power" not in {thread.name for thread in threading.enumerate()}
    found = meter.report().untraced
    assert found is not None
    assert found.energy_per_step_j == pytest.approx(400 * (end_s - start_s) / 100, rel=0.1)


def test_a_window_shorter_than_a_period_has_the_sample_of_its_end() -> None:
    meter = PowerMeter(replace(SAMPLED, period_s=60.0), CPU)
    with meter.sampling(traced=True):
        time.sleep(0.05)
        meter.window_ended(time.perf_counter(), 0.001, 1)
    found = meter.report().traced
    assert found is not None
    assert 1 == found.num_samples


def test_the_thread_ends_with_a_failing_measurement() -> None:
    meter = PowerMeter(SAMPLED, CPU)
    with pytest.raises(ZeroDivisionError), meter.sampling(traced=False):
        raise ZeroDivisionError
    assert "layerwise power" not in {thread.name for thread in threading.enumerate()}


def test_a_gpu_that_is_lost_is_a_reason_and_no_error() -> None:
    meter = PowerMeter(PowerOptions(open_gauge=lambda device: Lost(), period_s=0.001), CPU)
    with meter.sampling(traced=False):
        time.sleep(0.05)
        meter.window_ended(time.perf_counter(), 0.04, 1)
    assert "RuntimeError: GPU is lost" == meter.report().problem


def test_extra_repeats_last_at_least_what_was_asked() -> None:
    meter = PowerMeter(replace(SAMPLED, energy_s=2.0), CPU)
    assert 734 == meter.extra_repeats(alone("cpu"), 0.003, 0.0)
    assert 734 == meter.extra_repeats(alone("cpu"), 0.003, 1.99)
    assert 0 == meter.extra_repeats(alone("cpu"), 0.003, 2.0)
    assert 0 == PowerMeter(SAMPLED, CPU).extra_repeats(alone("cpu"), 0.003, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy_s": 2.0, "sample": False}, "--energy-s=2.0 is given with --no-power"),
        ({"energy_s": 0.1}, "--energy-s=0.1 is too short for the power sensor"),
        ({"energy_s": -1.0}, "--energy-s=-1.0 is too short"),
        ({"energy_s": float("nan")}, "--energy-s=nan is too short"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        PowerOptions(**options)


def test_an_energy_asked_for_by_name_is_refused_without_a_gauge() -> None:
    with pytest.raises(NotAvailableError, match="--energy-s 1.0 needs a GPU's power: NVML reads"):
        measure(scenario(), device="cpu", power=PowerOptions(energy_s=1.0))


def test_the_cpu_has_no_power_and_says_so() -> None:
    trace = measure(scenario(), device="cpu", traced_repeats=1)
    assert trace is not None
    assert {} == trace.measured
    assert "not sampled: NVML reads GPUs, and this ran on the CPU" == trace.environment["power"]


def test_no_power_asks_no_gauge() -> None:
    def refuse(device: torch.device) -> Gauge:
        raise AssertionError

    options = PowerOptions(sample=False, open_gauge=refuse)
    trace = measure(scenario(), device="cpu", traced_repeats=1, power=options)
    assert trace is not None
    assert "not sampled: not asked for (--no-power)" == trace.environment["power"]


@pytest.fixture(scope="module")
def sampled() -> Trace:
    options = replace(SAMPLED, energy_s=MIN_ENERGY_WINDOW_S)
    trace = measure(scenario(), device="cpu", traced_repeats=2, power=options)
    assert trace is not None
    return trace


def test_extra_repeats_are_not_step_times(sampled: Trace) -> None:
    assert (4, 2) == (len(sampled.untraced_step_s), len(sampled.traced_step_s))
    assert sampled.measured["energy_window_s"] >= MIN_ENERGY_WINDOW_S


def test_joules_are_power_times_the_step(sampled: Trace) -> None:
    measured = sampled.measured
    assert measured["energy_per_step_j"] == pytest.approx(4 * measured["energy_per_token_j"])
    # The repeats of the energy are not the timed ones, and a shared processor is uneven.
    steps_s = sampled.untraced_step_s
    assert min(steps_s) / 50 < measured["energy_per_step_j"] / 400 < 50 * max(steps_s)
    assert 400.0 == measured["mean_power_w"]


def test_both_streams_say_their_clocks_and_throttling(sampled: Trace) -> None:
    assert 1.5e9 == sampled.measured["mean_sm_clock_hz"]
    assert 1.5e9 == sampled.measured["traced_mean_sm_clock_hz"]
    assert "software power cap (100% of samples)" == sampled.environment["throttled"]
    assert "samples, one each 5 ms; a sample took" in sampled.environment["power"]
    assert any("throttled in the timed repeats" in each for each in sampled.cautions())


def test_ranks_agree_on_how_long_to_go_on() -> None:
    options = Options(device="cpu", traced_repeats=1, sampling=SAMPLED, energy_s=0.5)
    trace = launch(scenario(pipeline_parallel=2), options)
    assert trace is not None
    assert trace.environment["energy"].startswith("energy counter of 2 GPUs over")
    assert 400.0 == trace.measured["mean_power_w"]


@dataclass
class Value:
    """NVML's answer to one field."""

    nvmlReturn: int  # noqa: N815
    value: Any


class FakeNvml:
    """Answers as pynvml does: mW, mJ, MHz. Without `modern`, as an old driver would."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU, NVML_FI_DEV_POWER_INSTANT, NVML_SUCCESS = 1, 0, 186, 0
    NVMLError = RuntimeError

    def __init__(self, *, modern: bool) -> None:
        self.modern = modern

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:  # noqa: N802
        if not self.modern:
            raise self.NVMLError(3)
        return 7_000

    def nvmlDeviceGetFieldValues(self, handle: object, fields: list[int]) -> list[Value]:  # noqa: N802
        assert [186] == fields
        return [Value(0 if self.modern else 3, type("Union", (), {"uiVal": 650_000}))]

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:  # noqa: N802
        return 500_000

    def nvmlDeviceGetClockInfo(self, handle: object, clock: int) -> int:  # noqa: N802
        return 1980

    def nvmlDeviceGetTemperature(self, handle: object, sensor: int) -> int:  # noqa: N802
        return 61

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object) -> int:  # noqa: N802
        return POWER_CAP


@pytest.mark.parametrize(("modern", "expected"), [(True, (7.0, 650.0)), (False, (None, 500.0))])
def test_nvml_is_read_in_si_units(modern: bool, expected: tuple[float | None, float]) -> None:
    found = NvmlGauge(FakeNvml(modern=modern), object()).read()
    assert expected == (found.energy_j, found.power_w)
    assert (1.98e9, 61, POWER_CAP) == (
        found.sm_clock_hz,
        found.temperature_c,
        found.throttle_reasons,
    )


def test_missing_pynvml_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: torch.device) -> Any:
        raise ImportError("No module named 'pynvml'", name="pynvml")

    monkeypatch.setattr("layerwise.hw.instrument.power._nvml", missing)
    with pytest.raises(NotAvailableError, match="pynvml is not installed"):
        nvml_gauge(torch.device("cuda", 0))

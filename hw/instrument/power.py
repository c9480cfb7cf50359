"""Power, energy, clocks, temperature and throttling of a GPU, sampled beside a measurement by NVML.

A daemon thread reads the gauge every PERIOD_S while a stream of repeats runs; what it read is cut
to the timed windows afterwards, so that nothing waits for it. NVML's calls run outside the GIL
(pynvml is ctypes); what the thread does in Python, some tens of us a sample, is all that an eager
host can notice, and it is counted: `PowerMeter.report` says what a sample cost.

Source: NVML API reference. nvmlDeviceGetTotalEnergyConsumption is in mJ since the driver was
loaded, on Volta and newer. nvmlDeviceGetPowerUsage is a 1 s average on Ampere (except GA100) and
newer; the field NVML_FI_DEV_POWER_INSTANT is not.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.host.environment import _nvml
from layerwise.hw.instrument.energy import (
    MIN_ENERGY_WINDOW_S,
    RankPower,
    Sample,
    Window,
    window_power,
)
from layerwise.hw.ranks.agreement import agree
from layerwise.hw.ranks.session import Session
from layerwise.sim.plan.errors import SpecError

PERIOD_S = 0.02
# Steps of a long run may be faster than the timed ones.
EXTRA_MARGIN = 1.1


class Gauge(Protocol):
    """Reads one GPU; called from a thread of its own, and from the one that measures."""

    def read(self) -> Sample: ...


class NvmlGauge:
    """A GPU by NVML. Raises whatever NVML does where a reading is not supported."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._has_counter = _supports(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        self._has_instant = _supports(self._instant_power_w)
        self.read()

    def read(self) -> Sample:
        """All readings now; some of them take a millisecond."""
        nvml, handle = self._nvml, self._handle
        energy_j = None
        if self._has_counter:
            energy_j = nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        return Sample(
            at_s=time.perf_counter(),
            energy_j=energy_j,
            power_w=self._instant_power_w()
            if self._has_instant
            else nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            sm_clock_hz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6,
            temperature_c=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            throttle_reasons=nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        )

    def _instant_power_w(self) -> float:
        nvml = self._nvml
        (found,) = nvml.nvmlDeviceGetFieldValues(self._handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
        if found.nvmlReturn != nvml.NVML_SUCCESS:
            raise nvml.NVMLError(found.nvmlReturn)
        return found.value.uiVal / 1e3


def nvml_gauge(device: torch.device) -> Gauge:
    """The gauge of a CUDA device. Raises NotAvailableError, with what is missing."""
    if device.type != "cuda":
        raise NotAvailableError("NVML reads GPUs, and this ran on the CPU")
    try:
        return NvmlGauge(*_nvml(device))
    except ImportError as error:
        raise NotAvailableError("pynvml is not installed; pip install nvidia-ml-py") from error
    except Exception as error:
        raise NotAvailableError(f"NVML cannot read it: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class PowerOptions:
    """Whether to sample, and for how long to repeat the untraced body for its energy alone.

    `energy_s` 0 asks for the energy of the timed repeats, if they last long enough to have one.
    """

    sample: bool = True
    energy_s: float = 0.0
    period_s: float = PERIOD_S
    open_gauge: Callable[[torch.device], Gauge] = nvml_gauge

    def __post_init__(self) -> None:
        if self.energy_s and not self.sample:
            raise SpecError(
                "--energy-s", self.energy_s, "is given with --no-power", "leave one of them out"
            )
        if self.energy_s and not self.energy_s >= MIN_ENERGY_WINDOW_S:
            raise SpecError(
                "--energy-s",
                self.energy_s,
                "is too short for the power sensor",
                f"use {MIN_ENERGY_WINDOW_S} or more, or 0 for the timed repeats alone",
            )


class Sampling:
    """Samples that come in while a stream runs, and the windows that were timed meanwhile."""

    def __init__(self, gauge: Gauge | None, period_s: float) -> None:
        self._gauge, self._period_s = gauge, period_s
        self.samples: list[Sample] = []
        self.windows: list[Window] = []
        self.problem = ""
        self.wall_s = self.cpu_s = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="layerwise power", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        if self._gauge:
            self._thread.start()

    def stop(self) -> None:
        """Cease to sample; the thread is gone afterwards."""
        self._stopped.set()
        if self._gauge:
            self._thread.join()

    def window_ended(self, end_s: float, span_s: float, num_steps: int) -> None:
        """Repeats that took `span_s` on the device have ended, as the host saw at `end_s`.

        One more sample is taken here: clocks and throttling of a window shorter than a period.
        """
        self.windows.append(Window(end_s - span_s, end_s, num_steps))
        self._read()

    def _run(self) -> None:
        while not self._stopped.is_set():
            wall_s, cpu_s = time.perf_counter(), time.thread_time()
            self._read()
            self.wall_s += time.perf_counter() - wall_s
            self.cpu_s += time.thread_time() - cpu_s
            self._stopped.wait(self._period_s)

    def _read(self) -> None:
        if self._gauge is None or self.problem:
            return
        try:
            self.samples.append(self._gauge.read())
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"


@dataclass
class PowerMeter:
    """One rank's GPU: sampled beside the untraced repeats, and again beside the traced ones.

    Raises NotAvailableError when an energy was asked for by name and there is no gauge.
    """

    options: PowerOptions
    device: torch.device
    _gauge: Gauge | None = None
    _problem: str = ""
    _taken: dict[bool, Sampling] = field(default_factory=dict)
    _current: Sampling | None = None

    def __post_init__(self) -> None:
        if not self.options.sample:
            self._problem = "not asked for (--no-power)"
            return
        try:
            self._gauge = self.options.open_gauge(self.device)
        except NotAvailableError as error:
            if self.options.energy_s:
                raise NotAvailableError(
                    f"--energy-s {self.options.energy_s} needs a GPU's power: {error}; "
                    "leave --energy-s out"
                ) from error
            self._problem = str(error)

    @contextmanager
    def sampling(self, *, traced: bool) -> Iterator[None]:
        """Sample while it lasts, for the windows that end meanwhile."""
        self._current = self._taken[traced] = Sampling(self._gauge, self.options.period_s)
        self._current.start()
        try:
            yield
        finally:
            self._current.stop()
            self._current = None

    def window_ended(self, end_s: float, span_s: float, num_steps: int) -> None:
        """See Sampling; outside `sampling` nothing is noted."""
        if self._current:
            self._current.window_ended(end_s, span_s, num_steps)

    def extra_repeats(self, session: Session, repeat_s: float, lasted_s: float) -> int:
        """How many more repeats last `energy_s` on the fastest rank: the same on every rank.

        `repeat_s`: how long one took just now. 0 once the last ones, `lasted_s`, were enough.
        """
        return repeats_for(session, "energy", self.options.energy_s, repeat_s, lasted_s)

    def report(self) -> RankPower:
        """What was read in the windows of both streams, and what reading it cost."""
        found = {traced: window_power(s.samples, s.windows) for traced, s in self._taken.items()}
        problems = [self._problem, *(s.problem for s in self._taken.values())]
        return RankPower(
            problem=next(filter(None, problems), ""),
            cost=self._cost(),
            untraced=found.get(False),
            traced=found.get(True),
        )

    def _cost(self) -> str:
        taken = self._taken.values()
        num = sum(len(sampling.samples) for sampling in taken)
        if not num:
            return ""
        wall_s, cpu_s = (sum(getattr(s, key) for s in taken) / num for key in ("wall_s", "cpu_s"))
        return (
            f"{num} samples, one each {1e3 * self.options.period_s:.0f} ms; a sample took "
            f"{1e3 * wall_s:.2f} ms, {1e3 * cpu_s:.2f} ms of them on a processor of the host"
        )


def repeats_for(
    session: Session, name: str, wanted_s: float, repeat_s: float, lasted_s: float = 0.0
) -> int:
    """How many more repeats last `wanted_s` on the fastest rank: the same on every rank.

    `repeat_s`: how long one took just now. 0 once the last ones, `lasted_s`, were enough.
    """
    if not wanted_s:
        return 0

    def decide(ranks: list[tuple[float, float]]) -> int:
        fastest_s, least_s = (min(values) for values in zip(*ranks, strict=True))
        return 0 if least_s >= wanted_s else math.ceil(EXTRA_MARGIN * wanted_s / fastest_s)

    return agree(session, name, (repeat_s, lasted_s), decide)


def _supports(read: Callable[[], object]) -> bool:
    try:
        read()
    except Exception:
        return False
    return True

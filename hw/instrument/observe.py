"""Who watches an engine: called before and after each launch, on the stream of the launch."""

from __future__ import annotations

import time
import warnings
from typing import Any, Literal

import torch

from layerwise.sim.plan.program import PlacedOp

Lane = Literal["compute", "send", "recv"]
DOMAIN = "layerwise"


class Observer:
    """Watches nothing. `arrived`: the host knows that a posted receive has come in."""

    def begin(self, placed: PlacedOp, lane: Lane) -> None:
        """The op is about to be launched."""

    def end(self, placed: PlacedOp, lane: Lane) -> None:
        """The op has been launched."""

    def arrived(self, placed: PlacedOp) -> None:
        """Whoever reads the received buffer may go on."""


class NvtxRanges(Observer):
    """One NVTX range per op, named after it, in the domain `layerwise`."""

    def __init__(self) -> None:
        import nvtx

        self._domain: Any = nvtx.get_domain(DOMAIN)
        self._attributes: dict[str, Any] = {}

    def begin(self, placed: PlacedOp, lane: Lane) -> None:
        attributes = self._attributes.get(placed.name)
        if attributes is None:
            attributes = self._domain.get_event_attributes(message=placed.name)
            self._attributes[placed.name] = attributes
        self._domain.push_range(attributes)

    def end(self, placed: PlacedOp, lane: Lane) -> None:
        self._domain.pop_range()


def nvtx_ranges() -> tuple[Observer, ...]:
    """NVTX ranges when nvtx is installed; otherwise nothing, and a warning of what is lost."""
    try:
        return (NvtxRanges(),)
    except ImportError:
        warnings.warn(
            "nvtx is not installed: eager runs carry no NVTX ranges, so Nsight Systems and CUPTI "
            "cannot name ops; `pip install nvtx`. Timing by events, and graphs, still work.",
            stacklevel=2,
        )
        return ()


class HostClock(Observer):
    """Spans by the host's clock, for the CPU. A receive lasts from its post to its arrival."""

    def __init__(self) -> None:
        self._begin_s: dict[str, float] = {}
        self._spans_s: dict[str, tuple[float, float]] = {}

    def begin(self, placed: PlacedOp, lane: Lane) -> None:
        self._begin_s[placed.name] = time.perf_counter()

    def end(self, placed: PlacedOp, lane: Lane) -> None:
        self._spans_s[placed.name] = (self._begin_s[placed.name], time.perf_counter())

    def arrived(self, placed: PlacedOp) -> None:
        # A replaced receive had no device work at its post, and has none now.
        self.end(placed, "recv")

    def take(self) -> dict[str, tuple[float, float]]:
        """(start, end) seconds by op name since the last call."""
        spans, self._spans_s = self._spans_s, {}
        return spans


class EventTimer(Observer):
    """Spans by CUDA events on each op's own stream; inside a capture the events are nodes.

    The events between ops cost about a microsecond each: the ratio of traced to untraced step
    time tells how much.
    """

    def __init__(self, *, external: bool) -> None:
        self._external = external
        self._events: dict[str, tuple[torch.cuda.Event, torch.cuda.Event]] = {}

    def begin(self, placed: PlacedOp, lane: Lane) -> None:
        events = self._events.get(placed.name)
        if events is None:
            events = (self._event(), self._event())
            self._events[placed.name] = events
        events[0].record()

    def end(self, placed: PlacedOp, lane: Lane) -> None:
        self._events[placed.name][1].record()

    def take(self) -> dict[str, tuple[float, float]]:
        """(start, end) seconds since the first launch by op name; the device must be idle."""
        zero = next(iter(self._events.values()))[0]
        return {
            name: (zero.elapsed_time(start) / 1e3, zero.elapsed_time(end) / 1e3)
            for name, (start, end) in self._events.items()
        }

    def _event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True, external=self._external)

"""Time what a device repeats: several things in turns, so that one clock and one heat serve all.

A ratio of two times is only worth something when both were taken in the same seconds: a GPU that
meets its power cap runs slower for everything that comes after. So each round times each of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

Body = Callable[[], object]
"""Launches something; what it returns is not looked at."""
Replay = Callable[[], None]
Timer = Callable[[Replay, int], list[float]]
"""(what to repeat, how often) -> the seconds of each repeat."""

MIN_REPLAYS, MAX_REPLAYS = 5, 2000
WARM_UPS = 3
# Eager launches that fit a GPU's queue of 1024 by far: issuing them waits for nothing.
ISSUES_PER_SAMPLE = 4


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of several readings of one quantity."""

    median: float
    low: float
    high: float


def spread_of(readings: Sequence[float], divisor: float = 1.0) -> Spread:
    """The spread of readings, each divided by `divisor`: repeats that one reading holds."""
    values = [each / divisor for each in readings]
    return Spread(median(values), min(values), max(values))


def timer_of(device: torch.device) -> Timer:
    """CUDA events around each repeat; the host's clock on the CPU."""
    return time_by_events if device.type == "cuda" else _time_by_clock


def time_by_events(replay: Replay, count: int) -> list[float]:
    """Seconds of each of `count` repeats, one after another, by CUDA events between them."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        replay()
        mark.record()
    marks[-1].synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in zip(marks[:-1], marks[1:], strict=True)]


def graphed(body: Body, device: torch.device) -> Replay:
    """What `body` launches, as a CUDA graph's replay; on the CPU a call of `body`.

    `body` writes into tensors that live on, and launches on the current stream only. No garbage is
    collected before the capture, which would take half a second a time beside a compiler's heap.
    """
    for _ in range(WARM_UPS):
        body()
    if device.type != "cuda":
        return lambda: _once(body)
    torch.cuda.synchronize(device)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            body()
        finally:
            graph.capture_end()
    return graph.replay


def in_turns(
    replays: Mapping[str, Replay], timer: Timer, *, rounds: int, round_s: float, settle: int = 1
) -> dict[str, list[float]]:
    """The median seconds of each in each of `rounds`, after `settle` rounds that do not count.

    In a round each is repeated for about `round_s` seconds, one after the other.
    """
    counts = {name: _count(replay, timer, round_s) for name, replay in replays.items()}
    found: dict[str, list[float]] = {name: [] for name in replays}
    for index in range(settle + rounds):
        for name, replay in replays.items():
            taken_s = median(timer(replay, counts[name]))
            if index >= settle:
                found[name].append(taken_s)
    return found


def issue_seconds(issue: Body, device: torch.device, *, samples: int) -> list[float]:
    """Host seconds that `issue` takes to return, per call, while the device has room to queue.

    The device is drained before each sample of ISSUES_PER_SAMPLE calls, so that no launch waits
    for the queue. On the CPU the work itself is in the time.
    """
    for _ in range(WARM_UPS):
        issue()
    taken_s: list[float] = []
    for _ in range(samples):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started_s = time.perf_counter()
        for _ in range(ISSUES_PER_SAMPLE):
            issue()
        taken_s.append((time.perf_counter() - started_s) / ISSUES_PER_SAMPLE)
    return taken_s


def _once(body: Body) -> None:
    body()


def _count(replay: Replay, timer: Timer, round_s: float) -> int:
    timer(replay, 1)
    (one_s,) = timer(replay, 1)
    return min(MAX_REPLAYS, max(MIN_REPLAYS, math.ceil(round_s / max(one_s, 1e-6))))


def _time_by_clock(replay: Replay, count: int) -> list[float]:
    seconds: list[float] = []
    for _ in range(count):
        started_s = time.perf_counter()
        replay()
        seconds.append(time.perf_counter() - started_s)
    return seconds

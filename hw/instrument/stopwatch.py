"""Marks in time, in the order of the stream: CUDA events, or the host's clock on the CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch


class Stopwatch:
    """Collects marks and gives the seconds between them when asked, not before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._times_s: list[float] = []

    def mark(self) -> None:
        """Now, behind what the current stream holds."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times_s.append(time.perf_counter())

    def over(self, after: int, *, end_to_end: bool) -> list[float]:
        """Seconds of the repeats from number `after` on that are over by now. Does not wait."""
        found: list[float] = []
        for end in self._ends(after, end_to_end=end_to_end):
            if self._events and not self._events[end].query():
                break
            found.append(self._between(end - 1, end))
        return found

    def repeats(self, after: int, *, end_to_end: bool) -> Iterator[float]:
        """Seconds of the repeats from number `after` on, each once it is over; then starts anew.

        Of marks: one to begin with, then (start, end) per repeat. `end_to_end` times from the end
        of one repeat to the end of the next; then a repeat has no mark but its end.
        """
        for end in self._ends(after, end_to_end=end_to_end):
            yield self._between(end - 1, end)
        self._events, self._times_s = [], []

    def _ends(self, after: int, *, end_to_end: bool) -> range:
        num_marks = len(self._events) + len(self._times_s)
        return range(1 + after, num_marks) if end_to_end else range(2 + 2 * after, num_marks, 2)

    def _between(self, start: int, end: int) -> float:
        if self._times_s:
            return self._times_s[end] - self._times_s[start]
        self._events[end].synchronize()
        return self._events[start].elapsed_time(self._events[end]) / 1e3

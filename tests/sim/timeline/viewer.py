"""A timeline read back as a viewer reads it, refused where the Trace Event Format is not kept."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = dict[str, Any]
# What each phase that we write must carry, beside its phase.
REQUIRED = {
    "M": {"name", "pid", "tid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur", "args"},
    "C": {"name", "pid", "ts", "args"},
    "s": {"name", "cat", "id", "pid", "tid", "ts"},
    "f": {"name", "cat", "id", "pid", "tid", "ts", "bp"},
}
INTEGERS = ("pid", "tid", "id")
TIMES = ("ts", "dur")


@dataclass
class Viewed:
    """Times are whole nanoseconds. Slices by process name and lane name, in order of time."""

    other: dict[str, Any]
    processes: list[str]
    slices: dict[tuple[str, str], list[Event]] = field(default_factory=dict)
    arrows: list[tuple[Event, Event]] = field(default_factory=list)
    counters: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=dict)

    def area(self, process: str, counter: str) -> float:
        """A rate over time, added up."""
        values = self.counters[process, counter]
        return sum(
            value * (after - at) * 1e-9
            for (at, value), (after, _) in zip(values, values[1:], strict=False)
        )

    def under(self, process: str, lane: str, at_ns: int) -> Event:
        """The slice that an arrow's end is bound to."""
        for one in self.slices[process, lane]:
            if one["ts"] <= at_ns < one["ts"] + one["dur"]:
                return one
        raise AssertionError(f"nothing is drawn at {at_ns} in {lane} of {process}")


def view(path: Path) -> Viewed:
    """Read a file. AssertionError where it is not in the format, or slices of a lane overlap."""
    packed = path.read_bytes()
    data = json.loads(gzip.decompress(packed) if path.suffix == ".gz" else packed)
    events: list[Event] = data["traceEvents"]
    for event in events:
        _check(event)
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    order = {e["pid"]: e["args"]["sort_index"] for e in events if e["name"] == "process_sort_index"}
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert len(processes) == len(set(processes.values())) == len(order)
    viewed = Viewed(data["otherData"], [processes[pid] for pid in sorted(processes, key=order.get)])
    ends: dict[int, dict[str, Event]] = defaultdict(dict)
    for event in events:
        if event["ph"] == "M":
            continue
        for key in TIMES:
            if key in event:
                event[key] = round(event[key] * 1e3)
        event["process"] = processes[event["pid"]]
        if event["ph"] == "X":
            viewed.slices.setdefault((event["process"], lanes[event["tid"]]), []).append(event)
        elif event["ph"] == "C":
            (value,) = event["args"].values()
            key = (event["process"], event["name"])
            viewed.counters.setdefault(key, []).append((event["ts"], value))
        else:
            event["lane"] = lanes[event["tid"]]
            assert event["ph"] not in ends[event["id"]]
            ends[event["id"]][event["ph"]] = event
    for slices in viewed.slices.values():
        slices.sort(key=lambda e: e["ts"])
        for one, following in zip(slices, slices[1:], strict=False):
            assert one["ts"] + one["dur"] <= following["ts"]
    viewed.arrows = [(both["s"], both["f"]) for both in ends.values()]
    return viewed


def _check(event: Event) -> None:
    assert event.keys() >= REQUIRED[event["ph"]]
    assert all(
        type(event[key]) is int and event[key] > 0
        for key in INTEGERS
        if key in event and not (event["ph"] == "M" and key == "tid")
    )
    assert all(event[key] >= 0 for key in TIMES if key in event)
    if event["ph"] == "C":
        assert all(value >= 0 for value in event["args"].values())

"""Rows -> a timeline in Chrome's trace-event JSON, which ui.perfetto.dev opens. Pure.

One process per rank, one thread per stream, a slice per op, an arrow per message.
Source: "Trace Event Format" (Google, 2016), phases X, M, s and f; times in microseconds.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.plan import ops
from sim.plan.program import StepPrograms
from sim.trace import Row

MAX_SLICES = 300_000
STREAMS = ("compute", "send", "recv")
# Process ids of one run are its rank numbers above a multiple of this.
RANKS_PER_RUN = 10_000

MessageEnd = tuple[int, int, str]
"""(step, rank, op name) of a send or of a receive."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """One run to draw: its name, its rows, and which receive takes each send."""

    name: str
    rows: Sequence[Row]
    messages: Mapping[MessageEnd, MessageEnd]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The events, and how many slices were left out to stay under MAX_SLICES."""

    data: dict[str, Any]
    num_slices: int
    num_left_out: int


def message_pairs(run: Sequence[StepPrograms]) -> dict[MessageEnd, MessageEnd]:
    """Send -> receive: the n-th on one directed edge and channel is taken by the n-th there."""
    waiting: dict[tuple[int, int, str], deque[MessageEnd]] = defaultdict(deque)
    receives: list[tuple[tuple[int, int, str], MessageEnd]] = []
    for step, compiled in enumerate(run):
        for program in compiled.programs:
            for placed in program:
                end = (step, program.rank, placed.name)
                if isinstance(placed.op, ops.Send):
                    edge = (program.rank, placed.op.peer, placed.op.channel)
                    waiting[edge].append(end)
                elif isinstance(placed.op, ops.Recv):
                    edge = (placed.op.peer, program.rank, placed.op.channel)
                    receives.append((edge, end))
    return {waiting[edge].popleft(): end for edge, end in receives if waiting[edge]}


def export(timelines: Sequence[Timeline], max_slices: int = MAX_SLICES) -> Exported:
    """All runs in one file, each on processes of its own; the latest slices are dropped first."""
    drawn: list[tuple[int, Timeline, Row]] = sorted(
        ((index, timeline, row) for index, timeline in enumerate(timelines)
         for row in timeline.rows),
        key=lambda item: item[2].start_s,
    )  # fmt: skip
    kept, left_out = drawn[:max_slices], max(0, len(drawn) - max_slices)
    events: list[dict[str, Any]] = []
    for index, timeline in enumerate(timelines):
        rows = [row for place, _, row in kept if place == index]
        events += _names(index, timeline.name, rows)
        events += [_slice(index, row) for row in rows]
        events += _flows(index, timeline.messages, rows)
    data = {
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {"num_slices": len(kept), "num_slices_left_out": left_out},
    }
    return Exported(data=data, num_slices=len(kept), num_left_out=left_out)


def _names(index: int, name: str, rows: Iterable[Row]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for rank in sorted({row.rank for row in rows}):
        process = index * RANKS_PER_RUN + rank
        events.append(_metadata("process_name", process, 0, {"name": f"{name}, rank {rank}"}))
        events.append(_metadata("process_sort_index", process, 0, {"sort_index": process}))
        for thread, stream in enumerate(STREAMS):
            events.append(_metadata("thread_name", process, thread, {"name": stream}))
    return events


def _metadata(kind: str, process: int, thread: int, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": arguments}


def _slice(index: int, row: Row) -> dict[str, Any]:
    return {
        "ph": "X", "name": row.op, "cat": row.kind, **_place(index, row),
        # Ends are rounded, not lengths: neighbours that touch must not overlap.
        "dur": round(_microseconds(row.end_s) - _microseconds(row.start_s), 6),
        "args": {
            "step": row.step, "bound": row.bound,
            "wait_us": round(_microseconds(row.start_s) - _microseconds(row.ready_s), 6),
            "replaced": row.replaced,
        },
    }  # fmt: skip


def _place(index: int, row: Row) -> dict[str, Any]:
    return {
        "pid": index * RANKS_PER_RUN + row.rank, "tid": STREAMS.index(row.stream),
        "ts": _microseconds(row.start_s),
    }  # fmt: skip


def _flows(
    index: int, messages: Mapping[MessageEnd, MessageEnd], rows: Iterable[Row]
) -> list[dict[str, Any]]:
    by_end = {(row.step, row.rank, row.op): row for row in rows if row.stream != "compute"}
    events: list[dict[str, Any]] = []
    for number, (send, receive) in enumerate(messages.items()):
        if send in by_end and receive in by_end:
            common = {"name": "message", "cat": "message", "id": index * 10**9 + number}
            taken = _place(index, by_end[receive]) | {"ts": _microseconds(by_end[receive].end_s)}
            events.append({"ph": "s", **common, **_place(index, by_end[send])})
            events.append({"ph": "f", "bp": "e", **common, **taken})
    return events


def _microseconds(value_s: float) -> float:
    """Seconds as microseconds, to the picosecond."""
    return round(value_s * 1e6, 6)

"""Pieces -> events of Chrome's trace-event format: slices on lanes, arrows, counters. Pure.

Source: "Trace Event Format" (Google, 2016), phases M, X, s, f and C; times in microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from layerwise.sim.timeline.sides import Piece
from layerwise.sim.traffic import Moved

Event = dict[str, Any]
Interval = tuple[int, int, float]
"""(begin, end, bytes/s), begin and end in nanoseconds."""

STREAMS = ("compute", "send", "recv")
LANES_PER_PROCESS = 1000
# Kernels of one stream overlap by this much at most where one starts as the last one drains.
DRAIN_NS = 1_000
WAIT, COUNTER = "wait", "counter"
# A name of the viewer's palette; Perfetto colours by name, so that waits have one colour there too.
WAIT_COLOUR = "grey"


class Drawn(NamedTuple):
    """A piece in its lane; where it overlaps the one before it by a little, cut off there."""

    piece: Piece
    lane: int
    begin_ns: int
    end_ns: int

    @property
    def split_ns(self) -> int:
        """When its wait ends, inside what is drawn."""
        return min(max(self.begin_ns, self.piece.split_ns), self.end_ns)


def in_lanes(pieces: Iterable[Piece], free_ns: dict[int, int]) -> Iterator[Drawn]:
    """Give each piece a lane of its stream; `free_ns` of each lane so far is kept up to date.

    Streams take turns in numbering their lanes: the second one of `compute` is len(STREAMS).
    """
    for piece in pieces:
        for lane in count(STREAMS.index(piece.row.stream), len(STREAMS)):
            late_ns = max(0, free_ns.get(lane, 0) - piece.begin_ns)
            if late_ns <= DRAIN_NS:
                begin = piece.begin_ns + late_ns
                free_ns[lane] = end = max(piece.end_ns, begin + (late_ns > 0))
                yield Drawn(piece, lane, begin, end)
                break


def process_events(process: int, name: str) -> list[Event]:
    """Its name, and its place beside the others."""
    return [
        _metadata("process_name", process, 0, {"name": name}),
        _metadata("process_sort_index", process, 0, {"sort_index": process}),
    ]


def lane_events(process: int, lanes: Iterable[int]) -> list[Event]:
    """The names of its lanes, and their order."""
    found: list[Event] = []
    for lane in sorted(lanes):
        beside, stream = divmod(lane, len(STREAMS))
        thread = thread_of(process, lane)
        name = STREAMS[stream] + (f", {beside} beside it" if beside else "")
        found.append(_metadata("thread_name", process, thread, {"name": name}))
        found.append(
            _metadata(
                "thread_sort_index",
                process,
                thread,
                {"sort_index": stream * LANES_PER_PROCESS + lane},
            )
        )
    return found


def thread_of(process: int, lane: int) -> int:
    """Threads are numbered across processes: viewers take a number for one thread."""
    return process * LANES_PER_PROCESS + lane


def _metadata(kind: str, process: int, thread: int, arguments: dict[str, Any]) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": arguments}


def slices_of(process: int, drawn: Drawn) -> Iterator[Event]:
    """The wait for another rank, if any, and after it the op.

    Beside each other, not one in the other: Perfetto takes what begins first for an arrow's tail,
    and a receive that waits begins before its send.
    """
    row, arguments = (
        drawn.piece.row,
        {"step": drawn.piece.row.step, "repeat": drawn.piece.row.repeat},
    )
    if drawn.split_ns > drawn.begin_ns:
        yield {
            "ph": "X",
            "name": WAIT,
            "cat": WAIT,
            "cname": WAIT_COLOUR,
            **_place(process, drawn.lane, drawn.begin_ns),
            "dur": (drawn.split_ns - drawn.begin_ns) / 1e3,
            "args": {**arguments, "op": row.op},
        }
    of_op: dict[str, Any] = {**arguments, **({"bound": row.bound} if row.bound else {})}
    if (cut_ns := drawn.begin_ns - drawn.piece.begin_ns) > 0:
        of_op["overlaps_the_one_before_by_us"] = cut_ns / 1e3
    yield {
        "ph": "X",
        "name": row.op,
        "cat": row.kind,
        **_place(process, drawn.lane, drawn.split_ns),
        "dur": (drawn.end_ns - drawn.split_ns) / 1e3,
        "args": of_op,
    }


def arrow_start(process: int, drawn: Drawn) -> Event:
    """Where a message leaves: as its send begins, after the wait."""
    return {"ph": "s", **_place(process, drawn.lane, drawn.split_ns)}


def arrow_end(process: int, drawn: Drawn) -> Event:
    """Where it arrives: in the last nanosecond of its receive."""
    return {"ph": "f", "bp": "e", **_place(process, drawn.lane, drawn.end_ns - 1)}


def arrow(number: int, start: Event, end: Event) -> list[Event]:
    """Both ends."""
    common = {"name": "message", "cat": "message", "id": number}
    return [{**start, **common}, {**end, **common}]


def hbm_intervals(drawn: Iterable[Drawn], moved: Mapping[str, Moved]) -> list[Interval]:
    """What each op moves to and from HBM while it runs."""
    return [
        _interval(one, moved[one.piece.row.op].traffic.hbm_bytes)
        for one in drawn
        if one.piece.row.op in moved
    ]


def link_intervals(
    drawn: Iterable[Drawn], wire_bytes: Mapping[str, Mapping[str, int]]
) -> dict[str, list[Interval]]:
    """By wire: what each message and collective puts onto it, once it waits no more."""
    found: dict[str, list[Interval]] = {}
    for one in drawn:
        for wire, sent in wire_bytes.get(one.piece.row.op, {}).items():
            found.setdefault(wire, []).append(_interval(one, sent))
    return found


def _interval(one: Drawn, num_bytes: int) -> Interval:
    """At the rate that its own times give, whatever rounding to nanoseconds makes of them."""
    seconds = one.piece.row.end_s - one.piece.split_s
    return (one.split_ns, one.end_ns, num_bytes / seconds if seconds > 0 else 0.0)


def occupancy(drawn: Iterable[Drawn], moved: Mapping[str, Moved]) -> list[tuple[int, int]]:
    """(nanosecond, bytes in the L2) at the end of each op."""
    return [
        (one.end_ns, moved[one.piece.row.op].l2_bytes) for one in drawn if one.piece.row.op in moved
    ]


def rates(intervals: Iterable[Interval]) -> list[tuple[int, int]]:
    """(nanosecond, bytes/s from then on): of all intervals that are open, together."""
    changes: dict[int, list[tuple[int, float]]] = {}
    for number, (begin, end, rate) in enumerate(intervals):
        if rate and end > begin:
            changes.setdefault(begin, []).append((number, rate))
            changes.setdefault(end, []).append((number, 0.0))
    # Summed again at each change, so that nothing is left over when all have closed.
    running: dict[int, float] = {}
    found: list[tuple[int, int]] = []
    for at_ns, each in sorted(changes.items()):
        running.update(each)
        running = {number: rate for number, rate in running.items() if rate}
        found.append((at_ns, round(sum(running.values()))))
    return found


def counter_events(
    process: int, name: str, unit: str, values: Sequence[tuple[int, int]]
) -> Iterator[Event]:
    """A track of one value over time: said when it changes, and at the end."""
    said = None
    for number, (at_ns, value) in enumerate(values, 1):
        if value != said or number == len(values):
            yield {
                "ph": "C",
                "name": name,
                "cat": COUNTER,
                "pid": process,
                "ts": at_ns / 1e3,
                "args": {unit: value},
            }
            said = value


def _place(process: int, lane: int, at_ns: int) -> Event:
    return {"pid": process, "tid": thread_of(process, lane), "ts": at_ns / 1e3}

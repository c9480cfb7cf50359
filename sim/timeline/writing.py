"""A timeline -> a file that ui.perfetto.dev and Chrome's trace viewer open, written as it is made.

What is held at a time is one rank's step, what its counters say, and the messages of one side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerwise.sim.timeline import events
from layerwise.sim.timeline.chosen import MAX_SLICES, Chosen, Panel, choose
from layerwise.sim.timeline.clocks import StepKey
from layerwise.sim.timeline.events import Drawn, Event, Interval
from layerwise.sim.timeline.messages import MessageEnd, message_pairs, wire_bytes_of
from layerwise.sim.timeline.sides import Side
from layerwise.sim.trace import appearing
from layerwise.sim.traffic import Moved

CLOCKS = (
    "Measured times are those of each rank's own clock, and there is none in common. Each measured "
    "step is laid so that its first op that waits for nobody starts with the predicted one of the "
    "same rank and step, or later where a message would else arrive before it was sent: compare "
    "lengths and order, not instants of different ranks."
)
# One for all events: it is slow to make.
COMPACT = json.JSONEncoder(separators=(",", ":"))
COUNTERS = (
    "Link use is what a rank puts onto a wire. HBM and L2 are the simulation's; a trace has none."
)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What went into a file. `left_out` and `notes` are for the reader, a phrase each."""

    num_slices: int
    num_arrows: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def write_timeline(panels: Sequence[Panel], path: Path, max_slices: int = MAX_SLICES) -> Written:
    """Write every panel; compressed when the name ends in `.gz`, whole or not at all.

    Raises SpecError when `max_slices` are not enough for one step of one rank, FileFormatError
    when the path cannot be written.
    """
    chosen = choose(panels, max_slices)
    picture = _Picture(panels, chosen)
    with appearing(path) as file:
        file.write(b'{"displayTimeUnit": "ns", "traceEvents": [\n')
        separator = ""
        for event in picture.events():
            file.write(f"{separator}{COMPACT.encode(event)}".encode())
            separator = ",\n"
        written = picture.written()
        other = json.dumps(_other_data(panels, written))
        file.write(f'\n], "otherData": {other}}}\n'.encode())
    return written


def _other_data(panels: Sequence[Panel], written: Written) -> dict[str, Any]:
    """What the picture does not show of itself."""
    is_measured = any(side.name == "measured" for panel in panels for side in panel.sides)
    return {
        "num_slices": written.num_slices,
        "num_arrows": written.num_arrows,
        "left_out": list(written.left_out),
        "notes": list(written.notes),
        "counters": COUNTERS,
        **({"clocks": CLOCKS} if is_measured else {}),
    }


@dataclass
class _Picture:
    """Makes the events, rank by rank, and counts them."""

    panels: Sequence[Panel]
    chosen: Chosen
    num_slices: int = 0
    num_arrows: int = 0
    num_backward: int = 0
    ends: dict[tuple[StepKey, int, str], Event] = field(
        default_factory=dict[tuple[StepKey, int, str], Event]
    )

    def written(self) -> Written:
        """Once all events were made."""
        notes = [note for panel in self.panels for side in panel.sides for note in side.notes]
        if self.num_backward:
            notes.append(
                f"{self.num_backward} arrows are not drawn: by the clocks of their ranks they "
                "arrive before they leave"
            )
        return Written(
            num_slices=self.num_slices,
            num_arrows=self.num_arrows,
            left_out=self.chosen.left_out,
            notes=tuple(notes),
        )

    def events(self) -> Iterator[Event]:
        """Of every panel, side and rank; then its arrows."""
        first = 1  # viewers keep process 0 for themselves
        for index, panel in enumerate(self.panels):
            num_sides = len(panel.sides)
            for number, side in enumerate(panel.sides):
                self.ends.clear()
                for rank in self._by_source(side, (index, number)):
                    process = first + rank * num_sides + number
                    name = ", ".join(filter(None, (panel.name, f"rank {rank} {side.name}")))
                    yield from events.process_events(process, name)
                    yield from self._rank_events(side, (index, number), rank, process)
                yield from self._arrows(side, (index, number))
            first += num_sides * (1 + max(rank for side in panel.sides for rank in side.ranks))

    def _by_source(self, side: Side, at: tuple[int, int]) -> list[int]:
        """Ranks that one stands for follow each other, so that it is walked once."""
        return sorted(self.chosen.ranks[at], key=lambda rank: (side.source_of(rank), rank))

    def _rank_events(
        self, side: Side, at: tuple[int, int], rank: int, process: int
    ) -> Iterator[Event]:
        free_ns: dict[int, int] = {}
        hbm: list[Interval] = []
        links: dict[str, list[Interval]] = {}
        held: list[tuple[int, int]] = []
        moved = self._moved(side, at, rank)
        for key in self.chosen.steps[at]:
            drawn = list(events.in_lanes(side.pieces(key, rank), free_ns))
            for one in drawn:
                for each in events.slices_of(process, one):
                    self.num_slices += 1
                    yield each
                self._keep_ends(key, rank, process, one)
            of_step = moved.get(key.step, {})
            hbm += events.hbm_intervals(drawn, of_step)
            held += events.occupancy(drawn, of_step)
            sent = wire_bytes_of(side.run[key.step].template[rank], side.cluster)
            for wire, intervals in events.link_intervals(drawn, sent).items():
                links.setdefault(wire, []).extend(intervals)
        yield from events.lane_events(process, free_ns)
        for wire, intervals in sorted(links.items()):
            yield from events.counter_events(
                process, f"{wire} out", "bytes/s", events.rates(intervals)
            )
        yield from events.counter_events(process, "HBM", "bytes/s", events.rates(hbm))
        yield from events.counter_events(process, "L2 held", "bytes", held)

    def _moved(
        self, side: Side, at: tuple[int, int], rank: int
    ) -> Mapping[int, Mapping[str, Moved]]:
        """Walked once for all ranks that one stands for."""
        source = (at, side.source_of(rank))
        if not self._walked or self._walked[0] != source:
            self._walked = (source, side.moved(rank))
        return self._walked[1]

    _walked: tuple[object, Mapping[int, Mapping[str, Moved]]] | None = None

    def _keep_ends(self, key: StepKey, rank: int, process: int, one: Drawn) -> None:
        row = one.piece.row
        if row.kind == "Send":
            self.ends[key, rank, row.op] = events.arrow_start(process, one)
        elif row.kind == "Recv":
            self.ends[key, rank, row.op] = events.arrow_end(process, one)

    def _arrows(self, side: Side, at: tuple[int, int]) -> Iterator[Event]:
        pairs = message_pairs(side.run)
        for repeat in sorted({key.repeat for key in self.chosen.steps[at]}):
            for send, receive in pairs.items():
                start = self.ends.get(_end_key(repeat, send))
                end = self.ends.get(_end_key(repeat, receive))
                if not (start and end):
                    continue
                if start["ts"] > end["ts"]:
                    self.num_backward += 1
                    continue
                self.num_arrows += 1
                yield from events.arrow(self.num_arrows, start, end)


def _end_key(repeat: int, end: MessageEnd) -> tuple[StepKey, int, str]:
    step, rank, op = end
    return StepKey(repeat, step), rank, op

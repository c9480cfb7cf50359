"""Times of clocks that have nothing in common, laid side by side so that they can be read.

Each step of each rank was timed from its own first op. It is laid where something else says that
it begins, and later where that cannot be: a message would arrive before it was sent, or a rank
would begin a step before it ended the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from layerwise.sim.timeline.messages import MessageEnd
from layerwise.sim.trace import Row


class StepKey(NamedTuple):
    """One step of a run; a prediction has no repeats."""

    repeat: int
    step: int


Place = tuple[StepKey, int]
"""(step, rank)"""

Bound = tuple[Place, Place, float]
"""The second place lies at least so many seconds after the first one."""


def lay_out(
    rows: Mapping[Place, Sequence[Row]],
    begins_s: Mapping[Place, float],
    messages: Mapping[MessageEnd, MessageEnd],
) -> dict[Place, float]:
    """What to add to the times of each place: `begins_s`, or as much more as the bounds ask for.

    Clocks that contradict each other all round are left as they are after as many rounds as there
    are places.
    """
    offsets_s = dict(begins_s)
    bounds = [*_steps_in_turn(rows), *_messages_in_time(rows, messages)]
    for _ in rows:
        moved = False
        for before, after, least_s in bounds:
            if offsets_s[before] + least_s > offsets_s[after]:
                offsets_s[after] = offsets_s[before] + least_s
                moved = True
        if not moved:
            break
    return offsets_s


def _steps_in_turn(rows: Mapping[Place, Sequence[Row]]) -> Iterator[Bound]:
    for rank in {rank for _, rank in rows}:
        places = sorted(place for place in rows if place[1] == rank)
        for before, after in pairwise(places):
            end_s = max(row.end_s for row in rows[before])
            yield before, after, end_s - min(row.start_s for row in rows[after])


def _messages_in_time(
    rows: Mapping[Place, Sequence[Row]], messages: Mapping[MessageEnd, MessageEnd]
) -> Iterator[Bound]:
    """A receive ends no earlier than its send."""
    ends = {
        (row.repeat, (row.step, row.rank, row.op)): row.end_s
        for each in rows.values()
        for row in each
        if row.kind in ("Send", "Recv")
    }
    for (repeat, send), end_s in ends.items():
        receive = messages.get(send)
        if receive is not None and (repeat, receive) in ends:
            before = (StepKey(repeat, send[0]), send[1])
            after = (StepKey(repeat, receive[0]), receive[1])
            yield before, after, end_s - ends[repeat, receive]

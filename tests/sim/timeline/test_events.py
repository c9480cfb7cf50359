"""Pieces in lanes, waits, rates."""

from __future__ import annotations

import pytest

from layerwise.sim.timeline.events import DRAIN_NS, Drawn, in_lanes, lane_events, rates, slices_of
from layerwise.sim.timeline.sides import Piece
from layerwise.sim.trace import Row


def piece(
    start_ns: int,
    end_ns: int,
    *,
    wait_from_ns: int | None = None,
    kind: str = "Norm",
    stream: str = "compute",
) -> Piece:
    begin_ns = start_ns if wait_from_ns is None else wait_from_ns
    row = Row(
        repeat=0,
        step=0,
        rank=0,
        op=f"at {start_ns}",
        kind=kind,
        stream=stream,
        ready_s=begin_ns * 1e-9,
        start_s=start_ns * 1e-9,
        end_s=end_ns * 1e-9,
    )
    return Piece(row, begin_ns * 1e-9, start_ns * 1e-9)


def laid(*pieces: Piece) -> list[tuple[int, int, int]]:
    return [(one.lane, one.begin_ns, one.end_ns) for one in in_lanes(pieces, {})]


def test_ops_that_follow_each_other_share_a_lane() -> None:
    assert [(0, 0, 10), (0, 10, 20)] == laid(piece(0, 10), piece(10, 20))


def test_streams_have_lanes_of_their_own() -> None:
    pieces = (piece(0, 10), piece(0, 10, stream="send"), piece(0, 10, stream="recv"))
    assert [0, 1, 2] == [lane for lane, _, _ in laid(*pieces)]


def test_an_op_that_starts_while_the_last_one_drains_is_cut_off() -> None:
    assert [(0, 0, 5000), (0, 5000, 9000)] == laid(piece(0, 5000), piece(4900, 9000))


def test_what_was_cut_off_is_said() -> None:
    *_, drawn = in_lanes([piece(0, 5000), piece(4900, 9000)], {})
    (event,) = slices_of(1, drawn)
    assert event["args"]["overlaps_the_one_before_by_us"] == 0.1


def test_ops_beside_each_other_get_a_lane_each() -> None:
    late = 5000 - DRAIN_NS - 1
    assert [(0, 0, 5000), (3, late, 9000)] == laid(piece(0, 5000), piece(late, 9000))


def test_a_second_lane_is_named_after_its_stream() -> None:
    names = [e["args"].get("name") for e in lane_events(1, [0, 3]) if e["name"] == "thread_name"]
    assert ["compute", "compute, 1 beside it"] == names


def test_a_wait_stands_before_its_op() -> None:
    drawn = next(in_lanes([piece(7, 9, wait_from_ns=2, kind="Recv", stream="recv")], {}))
    wait, op = slices_of(1, drawn)
    assert ("wait", 0.002, 0.005) == (wait["name"], wait["ts"], wait["dur"])
    assert ("at 7", 0.007, 0.002) == (op["name"], op["ts"], op["dur"])


def test_a_message_that_had_arrived_is_drawn_with_a_nanosecond() -> None:
    (drawn,) = in_lanes([piece(5, 5, kind="Recv", stream="recv")], {})
    assert Drawn(drawn.piece, 2, 5, 6) == drawn


def test_rates_of_open_intervals_are_summed() -> None:
    found = rates([(0, 10, 5.0), (4, 6, 2.0), (10, 20, 5.0)])
    assert [(0, 5), (4, 7), (6, 5), (10, 5), (20, 0)] == found


@pytest.mark.parametrize("interval", [(3, 3, 5.0), (3, 9, 0.0)])
def test_what_takes_no_time_or_moves_nothing_has_no_rate(interval: tuple[int, int, float]) -> None:
    assert [] == rates([interval])


def test_nothing_is_left_when_all_have_ended() -> None:
    found = rates([(i, i + 7, 0.1 + i / 3) for i in range(100)])
    assert (106, 0) == found[-1]

"""Clocks with nothing in common, laid side by side."""

from __future__ import annotations

from layerwise.sim.timeline.clocks import Place, StepKey, lay_out
from layerwise.sim.trace import Row

SEND, RECV = "P0.act.send@m0", "P1.act.recv@m0"


def row(op: str, kind: str, rank: int, start_s: float, end_s: float, step: int = 0) -> Row:
    return Row(
        repeat=0,
        step=step,
        rank=rank,
        op=op,
        kind=kind,
        stream="compute",
        ready_s=start_s,
        start_s=start_s,
        end_s=end_s,
    )


def place(rank: int, step: int = 0) -> Place:
    return StepKey(0, step), rank


def test_places_stay_where_they_are_told_to_be() -> None:
    rows = {place(r): [row("a", "Norm", r, 0.0, 1.0)] for r in (0, 1)}
    begins = {place(0): 5.0, place(1): 3.0}
    assert begins == lay_out(rows, begins, {})


def test_a_message_arrives_no_earlier_than_it_was_sent() -> None:
    rows = {place(0): [row(SEND, "Send", 0, 4.0, 6.0)], place(1): [row(RECV, "Recv", 1, 0.0, 1.0)]}
    laid = lay_out(rows, {place(0): 10.0, place(1): 0.0}, {(0, 0, SEND): (0, 1, RECV)})
    assert {place(0): 10.0, place(1): 15.0} == laid


def test_a_message_that_arrives_late_moves_nobody() -> None:
    rows = {place(0): [row(SEND, "Send", 0, 0.0, 1.0)], place(1): [row(RECV, "Recv", 1, 8.0, 9.0)]}
    begins = {place(0): 0.0, place(1): 0.0}
    assert begins == lay_out(rows, begins, {(0, 0, SEND): (0, 1, RECV)})


def test_a_rank_begins_a_step_when_it_has_ended_the_one_before() -> None:
    rows = {place(0, step): [row("a", "Norm", 0, 0.0, 2.0, step)] for step in (1, 2)}
    laid = lay_out(rows, {place(0, 1): 0.0, place(0, 2): 1.5}, {})
    assert {place(0, 1): 0.0, place(0, 2): 2.0} == laid


def test_what_one_moves_moves_the_next() -> None:
    rows = {
        place(0): [row(SEND, "Send", 0, 0.0, 1.0)],
        place(1): [row(RECV, "Recv", 1, 0.0, 0.5), row("b", "Send", 1, 1.0, 2.0)],
        place(2): [row("c", "Recv", 2, 0.0, 0.5)],
    }
    messages = {(0, 0, SEND): (0, 1, RECV), (0, 1, "b"): (0, 2, "c")}
    laid = lay_out(rows, dict.fromkeys(rows, 0.0), messages)
    assert {place(0): 0.0, place(1): 0.5, place(2): 2.0} == laid


def test_clocks_that_contradict_each_other_come_to_an_end() -> None:
    rows = {
        place(0): [row(SEND, "Send", 0, 0.0, 2.0), row("back", "Recv", 0, 0.0, 1.0)],
        place(1): [row(RECV, "Recv", 1, 0.0, 1.0), row("there", "Send", 1, 0.0, 2.0)],
    }
    messages = {(0, 0, SEND): (0, 1, RECV), (0, 1, "there"): (0, 0, "back")}
    laid = lay_out(rows, dict.fromkeys(rows, 0.0), messages)
    assert rows.keys() == laid.keys()

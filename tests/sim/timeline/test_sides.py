"""What is drawn of a measurement: where its steps lie, and when its messages waited."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.sim.timeline.clocks import StepKey
from layerwise.sim.timeline.sides import MeasuredSide, PredictedSide
from tests.sim.timeline.test_writing import PIPELINE, STEADY, measured, simulated


@pytest.fixture(scope="module")
def side() -> PredictedSide:
    return PredictedSide(simulated())


def own_starts(side: PredictedSide | MeasuredSide, rank: int, repeat: int = 0) -> float:
    pieces = side.pieces(StepKey(repeat, STEADY), rank)
    return min(piece.row.start_s for piece in pieces if piece.row.stream == "compute")


def test_a_measured_step_begins_where_the_predicted_one_does(side: PredictedSide) -> None:
    assert own_starts(side, 0) == pytest.approx(own_starts(measured(side), 0), abs=1e-12)


def test_it_is_later_where_a_message_would_arrive_unsent(side: PredictedSide) -> None:
    assert own_starts(side, 3) < own_starts(measured(side, slower=2.0), 3)


def test_measured_lengths_are_left_as_they_are(side: PredictedSide) -> None:
    own = measured(side)
    expected = {row.op: row.duration_s for row in own.rows if row.rank == 1}
    found = {piece.row.op: piece.row.duration_s for piece in own.pieces(StepKey(0, STEADY), 1)}
    assert expected == pytest.approx(found, abs=1e-12)


def test_a_kernel_waits_as_long_as_it_does_not_transfer(side: PredictedSide) -> None:
    own = measured(side)
    row = next(r for r in own.rows if r.kind == "Send")
    part = replace(own, transfers_s={(row.step, row.rank, row.op): row.duration_s / 4})
    pieces = part.pieces(StepKey(0, STEADY), row.rank)
    (piece,) = [piece for piece in pieces if piece.row.op == row.op]
    assert 0.75 * row.duration_s == pytest.approx(piece.split_s - piece.begin_s)


def test_replaced_rows_are_not_drawn(side: PredictedSide) -> None:
    own = measured(side)
    rows = [replace(row, replaced=row.kind == "Send") for row in own.rows]
    pieces = replace(own, rows=rows).pieces(StepKey(0, STEADY), 1)
    assert "Send" not in {piece.row.kind for piece in pieces}


def test_steady_step_of_a_stream_is_the_last_but_one(side: PredictedSide) -> None:
    assert StepKey(0, PIPELINE.run.num_steps - 2) == side.steady


def test_a_trace_says_nothing_about_bytes(side: PredictedSide) -> None:
    assert {} == measured(side).moved(0)

"""Spans become rows: when an op was ready follows from streams and buffers."""

from __future__ import annotations

import pytest

from layerwise.hw.errors import UnmeasuredOpError
from layerwise.hw.rows import rows_of
from layerwise.sim.plan.program import Program
from layerwise.sim.trace import Row
from tests.hw.test_schedule import program


def spans_of(stage: Program) -> dict[str, tuple[float, float]]:
    """Each op a second long and a second after the one before, from 100 s on."""
    return {p.name: (100.0 + 2 * i, 101.0 + 2 * i) for i, p in enumerate(stage)}


def rows(stage: Program, *, replaced: bool = False) -> dict[str, Row]:
    found = rows_of(stage, spans_of(stage), repeat=1, step=2, replaced=replaced)
    return {row.op: row for row in found}


def test_times_count_from_the_first_op() -> None:
    first = rows(program(1))["P1.act.recv@m0"]
    assert (0.0, 1.0) == (first.start_s, first.end_s)


def test_an_op_is_ready_when_the_one_before_it_on_its_stream_ended() -> None:
    found = rows(program(1))
    assert found["L02.attn.norm@m0"].end_s == found["L02.attn.qkv@m0"].ready_s


def test_a_receive_is_ready_when_its_stream_is_free_not_when_the_compute_is() -> None:
    found = rows(program(1))
    assert found["P1.act.recv@m0"].end_s == found["P1.act.recv@m1"].ready_s


def test_the_reader_of_a_received_buffer_is_ready_when_it_arrived() -> None:
    found = rows(program(1))
    assert found["P1.act.recv@m0"].end_s == found["L02.attn.norm@m0"].ready_s


def test_a_send_is_ready_when_its_buffer_was_written() -> None:
    found = rows(program(0))
    assert found["P0.out.residual@m0"].end_s == found["P0.act.send@m0"].ready_s


def test_streams_are_named_after_what_travels() -> None:
    assert {"compute", "send", "recv"} == {row.stream for row in rows(program(0)).values()}


def test_replaced_messages_have_no_length() -> None:
    found = rows(program(0), replaced=True)
    send = found["P0.act.send@m0"]
    assert send.replaced and found["P0.out.residual@m0"].end_s == send.start_s == send.end_s


def test_an_op_without_a_span_is_an_error() -> None:
    stage = program(1)
    spans = spans_of(stage)
    del spans["L02.attn.sdpa@m1"]
    with pytest.raises(UnmeasuredOpError, match="L02.attn.sdpa@m1 ran and no kernel"):
        rows_of(stage, spans, repeat=0, step=0, replaced=False)

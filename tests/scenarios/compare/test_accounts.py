"""Waits told from transfers, and a step taken apart without losing any of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.scenarios.compare.accounts import (
    measured_accounts,
    measured_transfers,
    members_of,
    predicted_accounts,
)
from layerwise.sim.plan.scenario import compile_run
from layerwise.sim.profile import Profile
from layerwise.sim.trace import Row
from tests.scenarios.fakes import LAYER_WISE, TENSORS, two_gpus


def row(op: str, begin_s: float, end_s: float, *, kind: str = "Matmul", rank: int = 0) -> Row:
    return Row(
        repeat=0,
        step=2,
        rank=rank,
        op=op,
        kind=kind,
        stream="compute",
        ready_s=begin_s,
        start_s=begin_s,
        end_s=end_s,
    )


PAIR = {(2, 0, "all"): ((2, 1, "all"),), (2, 1, "all"): ((2, 0, "all"),)}


def test_wait_of_a_member_is_its_span_less_the_shortest() -> None:
    rows = (row("all", 0, 10, kind="AllReduce"), row("all", 0, 4, kind="AllReduce", rank=1))
    found = measured_accounts(rows, PAIR)
    assert {"all": 4.0} == found[2, 0][0].work_s == found[2, 1][0].work_s
    assert ({"all": 6.0}, {"all": 0.0}) == (found[2, 0][0].wait_s, found[2, 1][0].wait_s)


def test_wait_behind_compute_is_no_wait() -> None:
    rows = (
        row("recv", 0, 10, kind="Recv"),
        row("busy", 0, 5),
        row("send", 8, 10, kind="Send", rank=1),
    )
    members = {(2, 0, "recv"): ((2, 1, "send"),), (2, 1, "send"): ((2, 0, "recv"),)}
    account = measured_accounts(rows, members)[2, 0][0]
    assert {"recv": 3.0} == account.wait_s
    assert {"recv": 2.0, "busy": 5.0} == account.work_s
    assert (10.0, 0.0, 0.0) == (account.span_s, account.overlapped_s, account.between_s)


def test_two_waits_at_a_time_count_once() -> None:
    rows = (row("a", 0, 6, kind="Recv"), row("b", 0, 9, kind="Recv"))
    partners = (row("sa", 0, 2, kind="Send", rank=1), row("sb", 0, 2, kind="Send", rank=1))
    members = {(2, 0, "a"): ((2, 1, "sa"),), (2, 0, "b"): ((2, 1, "sb"),)}
    account = measured_accounts((*rows, *partners), members)[2, 0][0]
    # a waits 0-4 and transfers 4-6; b waits to 7, of which 6-7 is not a's, and transfers 7-9.
    assert {"a": 4.0, "b": 1.0} == account.wait_s
    assert 9.0 == account.span_s == sum(account.work_s.values()) + sum(account.wait_s.values())


def test_parts_of_a_step_add_up() -> None:
    rows = (row("a", 0, 4), row("b", 3, 6), row("c", 8, 9))
    account = measured_accounts(rows, {})[2, 0][0]
    assert (9.0, 1.0, 2.0) == (account.span_s, account.overlapped_s, account.between_s)


def test_token_is_told_from_what_was_sent_in_the_repeat_before() -> None:
    recv, send = row("recv", 0, 9, kind="Recv"), row("send", 0, 3, kind="Send", rank=1)
    later = (replace(recv, repeat=1, end_s=8.0), replace(send, repeat=1, end_s=5.0))
    found = measured_transfers((recv, send, *later), {(2, 0, "recv"): ((1, 1, "send"),)})
    assert 3.0 == found[1, (2, 0, "recv")]
    # Nobody traced what the first repeat received: this repeat's sender stands in.
    assert 3.0 == found[0, (2, 0, "recv")]


def test_members_of_messages_and_collectives(profile: Profile) -> None:
    layers = members_of(compile_run(two_gpus(profile, LAYER_WISE)), (0, 1), (2,))
    assert ((2, 0, "P0.act.send@m3"),) == layers[2, 1, "P1.act.recv@m3"]
    assert ((1, 1, "P1.token.send@m0"),) == layers[2, 0, "P0.token.recv@m0"]
    assert ((3, 0, "P0.token.recv@m0"),) == layers[2, 1, "P1.token.send@m0"]
    tensors = members_of(compile_run(two_gpus(profile, TENSORS, 1)), (0, 1), (2,))
    assert ((2, 1, "L00.attn.all_reduce@m0"),) == tensors[2, 0, "L00.attn.all_reduce@m0"]


@pytest.mark.parametrize(
    ("ready_s", "sent_s", "wait_s", "overlapped_s"), [(3.0, 2.0, 5.0, 0.0), (9.0, 4.0, 0.0, 3.0)]
)
def test_predicted_message_may_be_on_its_way_before_it_is_due(
    ready_s: float, sent_s: float, wait_s: float, overlapped_s: float
) -> None:
    before = row("before", 0, ready_s)
    recv = replace(
        row("recv", 0, 10, kind="Recv"), ready_s=ready_s, start_s=max(ready_s, 10 - sent_s)
    )
    send = row("send", 10 - sent_s, 10, kind="Send", rank=1)
    members = {(2, 0, "recv"): ((2, 1, "send"),)}
    account = predicted_accounts((before, recv, send), members, {2})[2, 0]
    assert (sent_s, wait_s) == (account.work_s["recv"], account.wait_s["recv"])
    assert overlapped_s == account.overlapped_s

"""Who is at fault: the rank that died, the silent one, the one that all wait for in the end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from layerwise.hw.engine.schedule import actions_of
from layerwise.hw.ranks.progress import Progress, read_slate
from layerwise.hw.ranks.watchdog import Fault, State, Watchdog, _Seen, find_stalled
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.placement import tensor_pipeline
from tests.hw.scenes import TINY
from tests.hw.test_collectives import STEP

THERE = State(pid=0, space="elsewhere", started="", beat=1, where="L00.mlp.down@m0")


def states(*waits: tuple[int, ...], stalled: tuple[int, ...]) -> dict[int, State]:
    return {
        rank: replace(THERE, waits_for=waits_for, stalled=rank in stalled)
        for rank, waits_for in enumerate(waits)
    }


def test_the_rank_that_all_wait_for_in_the_end_is_at_fault() -> None:
    found = states((1,), (2,), (), stalled=(0, 1, 2))
    expected = Fault(
        2,
        "rank 2 made no progress for 30 s at L00.mlp.down@m0; rank 1 waits for it; "
        "raise --stall-s if one op may take that long",
    )
    assert [expected] * 3 == [find_stalled(rank, found, 30) for rank in range(3)]


def test_waiting_for_a_rank_that_gets_on_is_no_fault() -> None:
    assert find_stalled(0, states((1,), (), stalled=(0,)), 30) is None
    assert find_stalled(1, states((1,), (), stalled=(0,)), 30) is None


def test_ranks_that_wait_for_each_other_are_all_named() -> None:
    fault = find_stalled(0, states((1,), (0,), stalled=(0, 1)), 30)
    assert fault is not None
    assert (-1, True, True) == (fault.rank, "rank 0 at" in fault.text, "rank 1 at" in fault.text)


def test_a_rank_that_has_yet_to_come_is_waited_for() -> None:
    assert find_stalled(0, states((1,), stalled=(0,)), 30) is None


def test_a_rank_that_is_done_is_waited_for_by_nobody() -> None:
    found = states((1,), (), stalled=(0,))
    found[1] = replace(found[1], done=True)
    fault = find_stalled(0, found, 30)
    assert fault is not None and -1 == fault.rank


def silent(watchdog: Watchdog, state: State | None, beats: int) -> Fault | None:
    return watchdog._find_lost(1, _Seen(state, beats))


@pytest.fixture
def watchdog() -> Watchdog:
    watched = Watchdog(dist.HashStore(), 0, 2, Progress(), lambda fault: None, 30.0)
    watched._me = State(os.getpid(), "here", "")
    return watched


def test_a_rank_elsewhere_is_lost_after_the_stall_limit(watchdog: Watchdog) -> None:
    assert silent(watchdog, THERE, 14) is None
    expected = "rank 1 gave no sign of life for 30 s; last seen at L00.mlp.down@m0"
    assert Fault(1, expected) == silent(watchdog, THERE, 15)


def test_a_process_that_is_gone_here_is_lost_at_the_next_beat(watchdog: Watchdog) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    gone = replace(THERE, pid=process.pid, space="here")
    fault = silent(watchdog, gone, 1)
    assert Fault(1, "rank 1 died at L00.mlp.down@m0 (its process is gone)") == fault
    assert silent(watchdog, replace(gone, done=True), 100) is None


def test_a_rank_that_never_came_is_named(watchdog: Watchdog) -> None:
    assert silent(watchdog, None, 24) is None
    assert Fault(1, "rank 1 did not come within 50 s of rank 0") == silent(watchdog, None, 25)


def pair(store: dist.Store, told: dict[int, Fault]) -> list[Watchdog]:
    heard = threading.Event()

    def watch(rank: int) -> Watchdog:
        def on_fault(fault: Fault) -> None:
            told[rank] = fault
            heard.set()

        return Watchdog(store, rank, 2, Progress(), on_fault, stall_s=1.5)

    return [watch(0), watch(1)]


def wait_for(told: dict[int, Any], count: int) -> None:
    deadline_s = time.monotonic() + 30
    while len(told) < count and time.monotonic() < deadline_s:
        time.sleep(0.01)


def test_what_one_rank_explains_all_others_hear() -> None:
    told: dict[int, Fault] = {}
    first, second = pair(dist.HashStore(), told)
    first.start()
    second.start()
    assert Fault(1, "out of memory") == second.explain("out of memory", own=True)
    wait_for(told, 1)
    assert {0: Fault(1, "out of memory")} == told
    assert Fault(1, "out of memory") == first.explain("its peer is gone", own=False)
    second.stop()


def test_a_rank_that_stands_still_is_told_on_both_and_idle_ones_are_left_alone() -> None:
    told: dict[int, Fault] = {}
    first, second = pair(dist.HashStore(), told)
    first.start()
    second.start()
    time.sleep(2.5)
    assert {} == told
    first.progress.enter("gathering", waits=True)
    second.progress.enter("the untraced run")
    second.progress.make("L01.mlp.down@m0")
    wait_for(told, 2)
    assert {1} == {fault.rank for fault in told.values()}
    text = "rank 1 made no progress for 2 s at L01.mlp.down@m0 (the untraced run)"
    assert all(fault.text.startswith(text) for fault in told.values())


def test_progress_knows_whom_an_op_waits_for() -> None:
    placement = tensor_pipeline(TINY, tensor_parallel=2, pipeline_parallel=2)
    program = compile_step(TINY, placement, STEP, KernelChoice()).programs[0]
    progress, found = Progress(), set[tuple[str, tuple[int, ...]]]()
    for action in actions_of(program):
        progress.at = action
        found.add((type(action.placed.op).__name__, progress.waits_for(0, 4)))
    assert {("Matmul", ()), ("AllReduce", (1,)), ("Send", (2,)), ("Recv", (2,))} <= found


def test_a_slate_can_be_read_when_its_process_is_no_more(tmp_path: Path) -> None:
    progress = Progress()
    progress.keep_on(tmp_path / "rank-0.at")
    progress.enter("the untraced run")
    progress.make("L01.mlp.down@m0")
    progress.step = 2
    progress.begin_repeat(7)
    expected = "L01.mlp.down@m0 (step 2 of the untraced run, repeat 7)"
    assert expected == progress.where() == read_slate(progress.slate_path)

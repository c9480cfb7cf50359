"""Ranks that stay for one task after another, and are replaced when one has failed."""

from __future__ import annotations

import os
import time

import pytest

from layerwise.hw.errors import RankFailedError
from layerwise.hw.pool import rank_pool
from layerwise.hw.ranks.session import Session
from tests.hw.scenes import scenario


def process_of(session: Session) -> int:
    return os.getpid()


def fail(session: Session) -> None:
    if session.rank == 1:
        raise ValueError("no")
    time.sleep(60)


def sleep(session: Session) -> None:
    time.sleep(60)


def test_tasks_run_on_the_same_ranks() -> None:
    with rank_pool(2, "cpu") as pool:
        first, second = (pool.call(process_of, timeout_s=60) for _ in range(2))

        assert (first, 1) == (second, pool.num_starts)


def test_no_rank_is_started_before_a_task() -> None:
    with rank_pool(2, "cpu") as pool:
        pass

    assert 0 == pool.num_starts


def test_after_a_failure_the_next_task_has_new_ranks() -> None:
    with rank_pool(2, "cpu") as pool:
        before = pool.call(process_of, timeout_s=60)
        with pytest.raises(RankFailedError, match="rank 1 failed.*ValueError: no"):
            pool.call(fail, timeout_s=60)
        after = pool.call(process_of, timeout_s=60)

    assert (2, True) == (pool.num_starts, before != after)


def test_a_task_that_hangs_is_ended_in_time() -> None:
    with rank_pool(2, "cpu") as pool:
        pool.call(process_of, timeout_s=60)
        begun_s = time.monotonic()
        with pytest.raises(RankFailedError, match="no answer in time"):
            pool.call(sleep, timeout_s=0.5)

    assert time.monotonic() - begun_s < 10


def test_a_scenario_is_measured_on_all_ranks() -> None:
    with rank_pool(2, "cpu") as pool:
        trace = pool.measure(scenario(tensor_parallel=2), timeout_s=60, traced_repeats=2)

    assert ({0, 1}, {0, 1}) == ({r.rank for r in trace.rows}, {r.repeat for r in trace.rows})

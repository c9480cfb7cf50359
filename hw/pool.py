"""Ranks of this machine, started once for one task after another.

What fails or hangs ends its ranks, as it must; the next task is given new ones. So a long series
pays for processes and communicators once, and one bad measurement costs no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from layerwise.hw.measure import TRACED_REPEATS, measure
from layerwise.hw.options import DeviceType
from layerwise.hw.ranks.local import LocalRanks, Task, local_ranks
from layerwise.hw.ranks.session import Session
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.trace import Trace


class RankPool:
    """`num_ranks` processes on this machine's devices; `num_starts` says how often they began."""

    def __init__(self, num_ranks: int, device: DeviceType) -> None:
        self.num_ranks, self.num_starts = num_ranks, 0
        self.device: DeviceType = device
        self._stack: ExitStack | None = None
        self._ranks: LocalRanks | None = None

    def call(self, task: Task, *arguments: Any, timeout_s: float) -> Any:
        """`task(session, *arguments)` on every rank; what the first one returns.

        Raises RankFailedError when one fails or `timeout_s` pass; then all of them are ended.
        """
        ranks = self._ranks or self._start()
        try:
            return ranks.call(task, *arguments, timeout_s=timeout_s)[0]
        except BaseException:
            self.end()
            raise

    def measure(
        self, scenario: Scenario, *, timeout_s: float, traced_repeats: int = TRACED_REPEATS
    ) -> Trace:
        """The trace of a scenario that takes all ranks. Raises what `call` raises."""
        return self.call(measure_on, scenario, traced_repeats, timeout_s=timeout_s)

    def end(self) -> None:
        """Let all processes go; none is left."""
        stack, self._stack, self._ranks = self._stack, None, None
        if stack is not None:
            stack.close()

    def _start(self) -> LocalRanks:
        self.num_starts += 1
        self._stack = ExitStack()
        self._ranks = self._stack.enter_context(local_ranks(self.num_ranks, self.device))
        return self._ranks


@contextmanager
def rank_pool(num_ranks: int, device: DeviceType) -> Iterator[RankPool]:
    """A pool whose ranks end with the context; none is started before the first task."""
    pool = RankPool(num_ranks, device)
    try:
        yield pool
    finally:
        pool.end()


def measure_on(session: Session, scenario: Scenario, traced_repeats: int) -> Trace | None:
    """One rank's part of a measurement."""
    return measure(
        scenario, device=session.device.type, session=session, traced_repeats=traced_repeats
    )

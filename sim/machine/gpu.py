"""One GPU's kernels beside each other: an op of the compute stream, and messages of others.

Measured on two H200s (calibration/traces/two-h200/overlap.json): a message's kernel gets its SMs
when the running op ends; beside an op that HBM bounds it is slowed by nearly half, and takes a
little of that op's bandwidth; beside one that the SMs bound it keeps its speed, and its SMs are
lost to the op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import simpy

from layerwise.sim.cost.kinds import Bound
from layerwise.sim.cost.model import CostModel
from layerwise.sim.machine.fluid import Activity, Demand, FluidShare

if TYPE_CHECKING:
    from layerwise.sim.machine.rank import RankProcess


class PlannedBlock(NamedTuple):
    """A block as the stream meets it: per op the gap before it, how long both take, its bound.

    `ports`: what those ops draw on that have any.
    """

    gaps_ps: list[int]
    durations_ps: list[int]
    bounds: list[Bound]
    ports: dict[int, tuple[Demand, ...]]


class Gpu:
    """What runs on one GPU now: the op of its compute stream, if any, and messages beside it."""

    __slots__ = ("_share", "_speeds", "messages", "stream", "waiting")

    def __init__(self, cost: CostModel, share: FluidShare) -> None:
        self._share = share
        self._speeds: Callable[[Bound], tuple[float, float]] = cost.speeds_beside_messages
        self.stream: OpStream | None = None
        self.messages: list[Activity] = []
        self.waiting: list[Callable[[], None]] = []

    @property
    def speed(self) -> float:
        """How fast messages run beside the running op."""
        return self._speeds(self.stream.bound)[1] if self.stream is not None else 1.0

    def op_speed(self, bound: Bound) -> float:
        """How fast an op runs beside the messages there are."""
        return self._speeds(bound)[0] if self.messages else 1.0

    def at_boundary(self, call: Callable[[], None]) -> None:
        """Call when the running op ends; now, when none runs."""
        if self.stream is None:
            call()
        else:
            self.waiting.append(call)

    def hand_over(self) -> None:
        """The running op has ended, and whoever waited for its SMs gets them."""
        self.stream = None
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()

    def refresh(self) -> None:
        """Another op runs: messages beside it may run at another speed."""
        self._share.refresh(self.messages)

    def idle(self) -> None:
        """No op follows: messages have the GPU to themselves."""
        self.stream = None
        if self.messages:
            self.refresh()

    def join(self, activity: Activity) -> None:
        """A message starts here."""
        self.messages.append(activity)
        if self.stream is not None:
            self.stream.retime()

    def leave(self, activity: Activity) -> None:
        """A message is over."""
        self.messages.remove(activity)
        if self.stream is not None:
            self.stream.retime()


class OpStream:
    """Ops of one block, one after the other: bare timeouts, timed again when messages come and go.

    A collective among them draws on its ports like any activity.
    """

    __slots__ = (
        "_at",
        "_done",
        "_ends",
        "_env",
        "_gpu",
        "_left_ps",
        "_num_ops",
        "_plan",
        "_process",
        "_since_ps",
        "_speed",
        "_timer",
        "_wake",
    )

    def __init__(
        self, process: RankProcess, gpu: Gpu, plan: PlannedBlock, done: simpy.Event
    ) -> None:
        self._process, self._gpu, self._plan, self._done = process, gpu, plan, done
        self._env, self._ends = process.machine.env, process.log.op_ends
        self._at, self._num_ops = -1, len(plan.durations_ps)
        self._timer: simpy.Event | None = None
        self._wake = self._on_timer
        self._since_ps = 0
        self._left_ps: float = 0
        self._speed = 1.0

    @property
    def bound(self) -> Bound:
        """What limits the running op."""
        return self._plan.bounds[self._at]

    def begin(self, now: int) -> None:
        """Start the next op, or be done."""
        at = self._at = self._at + 1
        gpu, plan = self._gpu, self._plan
        if at == self._num_ops:
            gpu.idle()
            self._done.succeed()
            return
        duration = plan.durations_ps[at]
        if self._process.is_eager:
            process = self._process
            process.host_ps += process.issue_ps
            duration += max(0, process.host_ps - now - plan.gaps_ps[at])
        if at in plan.ports:
            gpu.idle()
            self._process.machine.share.start(duration, plan.ports[at], self._end)
            return
        gpu.stream = self
        self._since_ps, self._left_ps = now, duration
        if gpu.messages:
            gpu.refresh()
            self._speed = gpu.op_speed(plan.bounds[at])
        self._schedule()

    def retime(self) -> None:
        """Messages came or went: what is left of the op goes on at another speed."""
        speed = self._gpu.op_speed(self.bound)
        if speed != self._speed:
            now = int(self._env.now)
            self._left_ps -= (now - self._since_ps) * self._speed
            self._since_ps, self._speed = now, speed
            self._schedule()

    def _schedule(self) -> None:
        delay = self._left_ps
        if self._speed != 1.0:
            delay = max(0, delay / self._speed)
        timer = self._timer = simpy.Timeout(self._env, round(delay))
        timer.callbacks.append(self._wake)  # type: ignore[union-attr]

    def _on_timer(self, event: simpy.Event) -> None:
        if event is self._timer:  # else its speed changed meanwhile
            self._speed = 1.0
            self._end()

    def _end(self) -> None:
        now = int(self._env.now)
        self._ends.append(now)
        if self._gpu.waiting:
            self._gpu.hand_over()
        self.begin(now)

"""Messages between GPUs: one queue per directed edge, ports shared by all that use them.

A message moves when it is offered and the one before it on its edge has arrived. It takes a
latency and its bytes, and draws on its ports at its mean rate meanwhile. Where nobody disturbs it
and it disturbs nobody, that is arithmetic; elsewhere it is an activity.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

import simpy

from layerwise.sim.machine.fluid import Demand, FluidShare
from layerwise.sim.machine.gpu import Gpu

# A string: arrays take no subscript at run time before Python 3.12.
SpanLog: TypeAlias = "array[int]"


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """What a message is to the machine: its time alone, and the ports it draws on meanwhile.

    `gpus`: those whose ops it disturbs.
    """

    duration_ps: int
    demands: tuple[Demand, ...] = ()
    gpus: tuple[Gpu, ...] = ()


@dataclass(slots=True)
class Message:
    """One message under way. Its sender's row waits in `log` at `position` for start and end."""

    log: SpanLog
    position: int
    load: Load
    start_ps: int = 0


@dataclass(slots=True, eq=False)
class Channel:
    """Messages from one rank to another, in order, one at a time (NCCL keeps a stream per pair).

    `arrived` holds (start, end) of messages that no receive has taken yet.
    """

    env: simpy.Environment
    share: FluidShare
    is_shared: bool
    arrived: deque[tuple[int, int]] = field(default_factory=deque[tuple[int, int]])
    waiting: simpy.Event | None = None
    free_ps: int = 0
    queue: deque[Message] = field(default_factory=deque[Message])

    def send(self, now_ps: int, load: Load, log: SpanLog) -> None:
        """Offer the next message at `now_ps`, which is now or later. Logs (ready, start, end)."""
        if self.is_shared:
            message = Message(log, len(log) + 1, load)
            log.extend((now_ps, 0, 0))
            if now_ps > self.env.now:
                _call_at(self.env, now_ps, lambda: self._offer(message))
            else:
                self._offer(message)
            return
        start = max(self.free_ps, now_ps)
        self.free_ps = end = start + load.duration_ps
        log.extend((now_ps, start, end))
        self._arrive(start, end)

    def _offer(self, message: Message) -> None:
        self.queue.append(message)
        if len(self.queue) == 1:
            self._move(message)

    def _move(self, message: Message) -> None:
        """A kernel at either end needs SMs: it gets them when the op that runs there ends."""
        gpus = message.load.gpus
        if not gpus:
            self._flow(message)
            return
        source, target = gpus
        source.at_boundary(lambda: target.at_boundary(lambda: self._flow(message)))

    def _flow(self, message: Message) -> None:
        message.start_ps = int(self.env.now)
        load = message.load
        self.share.start(load.duration_ps, load.demands, lambda: self._finish(message), load.gpus)

    def _finish(self, message: Message) -> None:
        end = int(self.env.now)
        message.log[message.position] = message.start_ps
        message.log[message.position + 1] = end
        self.queue.popleft()
        self._arrive(message.start_ps, end)
        if self.queue:
            self._move(self.queue[0])

    def _arrive(self, start_ps: int, end_ps: int) -> None:
        self.arrived.append((start_ps, end_ps))
        if self.waiting is not None:
            self.waiting.succeed()
            self.waiting = None

    def wait(self) -> simpy.Event:
        """An event for the receiver: the next message is known about."""
        self.waiting = self.env.event()
        return self.waiting


def _call_at(env: simpy.Environment, time_ps: int, call: object) -> None:
    timeout = env.timeout(time_ps - int(env.now))
    assert timeout.callbacks is not None
    timeout.callbacks.append(lambda _: call())  # type: ignore[operator]

"""Messages between GPUs: one queue per directed edge, ports shared by all that use them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import simpy

from sim.cost.model import CostModel
from sim.machine.blocks import seconds_to_ps
from sim.machine.fluid import FluidShare, Resource
from sim.plan.hardware import ClusterSpec


@dataclass(slots=True)
class Message:
    """One message under way: when it was offered, when it moved, and the event of its arrival."""

    payload_bytes: int
    arrived: simpy.Event
    ready_ps: int = 0
    start_ps: int = 0
    end_ps: int = 0


@dataclass(slots=True)
class Channel:
    """Messages from one rank to another, in order, one at a time (NCCL keeps a stream per pair)."""

    env: simpy.Environment
    cost: CostModel
    share: FluidShare
    cluster: ClusterSpec
    source: int
    target: int
    sent: int = 0
    received: int = 0
    queue: deque[Message] = field(default_factory=deque)
    half_known: dict[int, Message] = field(default_factory=dict)

    def send(self, payload_bytes: int) -> Message:
        """Offer the next message; it moves when those before it have arrived."""
        message = self._message(self.sent, payload_bytes)
        self.sent += 1
        message.ready_ps = int(self.env.now)
        self.queue.append(message)
        if len(self.queue) == 1:
            self._start(message)
        return message

    def receive(self, payload_bytes: int) -> Message:
        """The next message to arrive here (its event may already have fired)."""
        message = self._message(self.received, payload_bytes)
        self.received += 1
        return message

    def _message(self, number: int, payload_bytes: int) -> Message:
        """Both ends ask for each message once; whoever comes first makes it."""
        message = self.half_known.pop(number, None)
        if message is None:
            message = self.half_known[number] = Message(payload_bytes, self.env.event())
        return message

    def _start(self, message: Message) -> None:
        link = self.cluster.link_between(self.source, self.target)
        cost = self.cost.transfer(message.payload_bytes, link)
        message.start_ps = int(self.env.now)
        latency = self.env.timeout(seconds_to_ps(cost.latency_s))
        assert latency.callbacks is not None
        latency.callbacks.append(lambda _: self._flow(message, cost.bytes_per_s, link.name))

    def _flow(self, message: Message, bytes_per_s: float, wire: str) -> None:
        demands: dict[Resource, float] = {
            (wire, "out", self.source): bytes_per_s,
            (wire, "in", self.target): bytes_per_s,
            ("hbm", self.source): bytes_per_s,
            ("hbm", self.target): bytes_per_s,
        }
        duration = seconds_to_ps(message.payload_bytes / bytes_per_s)
        done = self.share.run(duration, demands)
        assert done.callbacks is not None
        done.callbacks.append(lambda _: self._arrive(message))

    def _arrive(self, message: Message) -> None:
        message.end_ps = int(self.env.now)
        self.queue.popleft()
        message.arrived.succeed()
        if self.queue:
            self._start(self.queue[0])

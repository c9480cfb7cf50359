from __future__ import annotations

from array import array

import pytest
import simpy

from layerwise.sim.machine.fluid import Demand, FluidShare, Resource
from layerwise.sim.machine.links import Channel, Load

US = 1_000_000
RATE = 1e12


class Wires:
    """Channels whose messages of n microseconds draw a whole port each."""

    def __init__(self, *, is_shared: bool) -> None:
        self.env = simpy.Environment()
        self.share = FluidShare(self.env)
        self.is_shared = is_shared
        self.log = array("q")

    def channel(self) -> Channel:
        return Channel(self.env, self.share, self.is_shared)

    def send(self, channel: Channel, duration_us: int, *ports: Resource, now_us: int = 0) -> None:
        demands: list[Demand] = [(port, RATE) for port in ports]
        channel.send(now_us * US, Load(duration_us * US, tuple(demands)), self.log)

    def spans_us(self) -> list[tuple[int, ...]]:
        """(ready, start, end) of each message sent, in the order of their sending."""
        self.env.run()
        times = [time // US for time in self.log]
        return [tuple(times[i : i + 3]) for i in range(0, len(times), 3)]


@pytest.fixture(params=[True, False], ids=["shared", "alone"])
def wires(request: pytest.FixtureRequest) -> Wires:
    return Wires(is_shared=request.param)


def test_message_takes_its_time(wires: Wires) -> None:
    wires.send(wires.channel(), 3)

    assert [(0, 0, 3)] == wires.spans_us()


def test_messages_keep_their_order(wires: Wires) -> None:
    channel = wires.channel()
    for duration in (3, 0, 2):
        wires.send(channel, duration)

    assert [(0, 0, 3), (0, 3, 3), (0, 3, 5)] == wires.spans_us()


def test_message_offered_later_starts_later(wires: Wires) -> None:
    channel = wires.channel()
    wires.send(channel, 1)
    wires.send(channel, 1, now_us=4)

    assert [(0, 0, 1), (4, 4, 5)] == wires.spans_us()


def test_receive_takes_messages_in_their_order(wires: Wires) -> None:
    channel = wires.channel()
    wires.send(channel, 1)
    wires.send(channel, 2)
    wires.env.run()

    assert [(0, US), (US, 3 * US)] == list(channel.arrived)


def test_receive_that_comes_first_is_woken(wires: Wires) -> None:
    channel = wires.channel()
    waiting = channel.wait()
    wires.send(channel, 1)
    wires.env.run()

    assert waiting.processed


def test_two_channels_share_a_port() -> None:
    wires, port = Wires(is_shared=True), Resource(RATE)
    for _ in range(2):
        wires.send(wires.channel(), 1, port)

    assert [(0, 0, 2), (0, 0, 2)] == wires.spans_us()


def test_other_ports_are_ports_of_their_own() -> None:
    wires = Wires(is_shared=True)
    for _ in range(2):
        wires.send(wires.channel(), 1, Resource(RATE))

    assert [(0, 0, 1), (0, 0, 1)] == wires.spans_us()

from __future__ import annotations

import simpy

from sim.machine.fluid import FluidShare
from sim.machine.links import Channel
from tests.sim.scenes import CLUSTER, FlatCost

COST = FlatCost(latency_s=1e-9, bytes_per_s=1e12, port_bytes_per_s=1e12)
US = 1_000_000
LATENCY_PS = 1000


class Wires:
    """Channels between ranks over shared ports."""

    def __init__(self) -> None:
        self.env = simpy.Environment()
        rates = {
            (wire, way, rank): 1e12
            for wire in ("nvlink4", "ndr400") for way in ("in", "out") for rank in range(16)
        }  # fmt: skip
        memory = {("hbm", rank): 1e15 for rank in range(16)}
        self.share = FluidShare(self.env, {**rates, **memory})

    def channel(self, source: int, target: int) -> Channel:
        return Channel(self.env, COST, self.share, CLUSTER, source, target)


def test_message_takes_latency_and_bytes() -> None:
    wires = Wires()
    message = wires.channel(0, 1).send(10**6)
    wires.env.run()

    assert LATENCY_PS + US == message.end_ps


def test_messages_keep_their_order() -> None:
    wires = Wires()
    channel = wires.channel(0, 1)
    sent = [channel.send(size) for size in (10**6, 0, 2 * 10**6)]
    wires.env.run()

    assert [LATENCY_PS + US, 2 * LATENCY_PS + US, 3 * LATENCY_PS + 3 * US] == [
        message.end_ps for message in sent
    ]


def test_message_waits_for_the_one_before_it() -> None:
    wires = Wires()
    channel = wires.channel(0, 1)
    first, second = channel.send(10**6), channel.send(10**6)
    wires.env.run()

    assert (0, first.end_ps) == (second.ready_ps, second.start_ps)


def test_receive_finds_the_message_of_its_number() -> None:
    wires = Wires()
    channel = wires.channel(0, 1)
    early = channel.receive(8)
    sent = [channel.send(8), channel.send(8)]
    late = channel.receive(8)

    assert [id(message) for message in sent] == [id(early), id(late)]


def test_two_channels_share_the_port_out() -> None:
    wires = Wires()
    sent = [wires.channel(0, target).send(10**6) for target in (1, 2)]
    wires.env.run()

    assert [LATENCY_PS + 2 * US] * 2 == [message.end_ps for message in sent]


def test_two_channels_share_the_port_in() -> None:
    wires = Wires()
    sent = [wires.channel(source, 2).send(10**6) for source in (0, 1)]
    wires.env.run()

    assert [LATENCY_PS + 2 * US] * 2 == [message.end_ps for message in sent]


def test_nvlink_and_nic_are_ports_of_their_own() -> None:
    wires = Wires()
    sent = [wires.channel(0, target).send(10**6) for target in (1, 8)]
    wires.env.run()

    assert [LATENCY_PS + US] * 2 == [message.end_ps for message in sent]


def test_both_directions_of_a_wire_are_independent() -> None:
    wires = Wires()
    sent = [wires.channel(0, 1).send(10**6), wires.channel(1, 0).send(10**6)]
    wires.env.run()

    assert [LATENCY_PS + US] * 2 == [message.end_ps for message in sent]

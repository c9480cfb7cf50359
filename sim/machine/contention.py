"""Which ranks and edges can run short of something they share, told before anything runs.

What cannot is arithmetic: a rank's ops follow one another, a message takes its own time. Small
messages pass through the L2 and draw little on their ports, so decode folds; a prefill's, larger
than the L2, meet the ops beside them, and then every op is an event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from layerwise.sim.cost.model import CostModel
from layerwise.sim.machine.blocks import seconds_to_ps
from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import wire_bytes_by_link
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.ops import Op
from layerwise.sim.plan.program import Program

Edge = tuple[int, int, str]
Port = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Flow:
    """A message: its wire, its time alone, the mean rate it draws meanwhile.

    `disturbs`: ops at its ends notice. What fits the L2 never reaches HBM and is soon over.
    """

    wire: str
    duration_ps: int
    wire_bytes_per_s: float
    disturbs: bool


def flow_of(op: ops.Send, source: int, cost: CostModel, cluster: ClusterSpec) -> Flow:
    """What a message asks for; the slower of its two ports sets its rate."""
    link = cluster.link_between(source, op.peer)
    transfer = cost.transfer(op.payload_bytes, link)
    bytes_per_s = transfer.bytes_per_s * cluster.port_share(link.name, (source, op.peer))
    seconds = transfer.latency_s + op.payload_bytes / bytes_per_s
    duration = seconds_to_ps(seconds)
    if not duration:
        return Flow(link.name, 0, 0.0, disturbs=False)
    disturbs = cost.hit_fraction(op.payload_bytes) < 1 and cost.is_disturbed_by_messages
    return Flow(link.name, duration, op.payload_bytes / seconds, disturbs)


def collective_rates(
    op: ops.CollectiveOp, cost: CostModel, cluster: ClusterSpec
) -> dict[str, float]:
    """Mean bytes/s that one member of a collective puts onto each wire.

    Never more than the port has: a switch that reduces takes fewer bytes than a ring would.
    """
    seconds = cost.collective(op).kernel_s
    if not seconds:
        return {}
    return {
        wire: min(sent / seconds, port_bytes_per_s(wire, op.group, cost, cluster))
        for wire, sent in wire_bytes_by_link(op, cluster).items()
        if sent
    }


def port_bytes_per_s(
    wire: str, ranks: Sequence[int], cost: CostModel, cluster: ClusterSpec
) -> float:
    """What the slowest of these ranks' ports onto a wire delivers."""
    return cost.link_bytes_per_s(cluster.link_named(wire)) * cluster.port_share(wire, ranks)


@dataclass(slots=True)
class Contention:
    """`ranks`: whose ops are events. `edges`: whose messages are activities."""

    ranks: set[int] = field(default_factory=set[int])
    edges: set[Edge] = field(default_factory=set[Edge])


def find_contention(
    programs: Iterable[Program], cost: CostModel, cluster: ClusterSpec
) -> Contention:
    """Look for ports and memories that may be asked for more than they have."""
    found = Contention()
    ports: dict[Port, dict[Edge, float]] = {}
    reducing: dict[Port, float] = {}
    for program in programs:
        rank = program.rank
        for op in meetings_of(program):
            if isinstance(op, ops.Send):
                flow = flow_of(op, rank, cost, cluster)
                edge = (rank, op.peer, op.channel)
                if flow.disturbs:
                    found.ranks |= {rank, op.peer}
                    found.edges.add(edge)
                for port in ((flow.wire, "out", rank), (flow.wire, "in", op.peer)):
                    rates = ports.setdefault(port, {})
                    rates[edge] = max(rates.get(edge, 0.0), flow.wire_bytes_per_s)
            elif isinstance(op, ops.CollectiveOp):
                for wire, rate in collective_rates(op, cost, cluster).items():
                    for way in ("out", "in"):
                        port = (wire, way, rank)
                        reducing[port] = max(reducing.get(port, 0.0), rate)
    for port, rates in ports.items():
        wire, _, rank = port
        # One message alone is never too much: it was timed on this very port.
        users = len(rates) + (port in reducing)
        capacity = port_bytes_per_s(wire, (rank,), cost, cluster)
        if users > 1 and sum(rates.values()) + reducing.get(port, 0.0) > capacity:
            found.edges |= set(rates)
            found.ranks |= {rank} if port in reducing else set()
    return found


def meetings_of(program: Program) -> Iterator[Op]:
    """Every distinct message and collective of a program."""
    for segment in {part.segment for part in program.parts}:
        for op in segment.ops:
            if isinstance(op, (ops.Send, ops.AllReduce, ops.AllGather)):
                yield op

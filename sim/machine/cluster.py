"""The simulated cluster: ranks as SimPy processes over shared bandwidths and links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import simpy

from sim.cost.model import CostModel
from sim.machine.blocks import Block, BlockCache, seconds_to_ps
from sim.machine.fluid import FluidShare, Process, Resource
from sim.machine.l2 import L2State
from sim.machine.links import Channel, Message
from sim.machine.work import Work, cut_into_work, wires_of
from sim.plan import ops
from sim.plan.demand import wire_bytes_by_link
from sim.plan.hardware import ClusterSpec
from sim.plan.program import Part, Program, StepPrograms
from sim.plan.scenario import Launch


@dataclass(frozen=True, slots=True)
class Executed:
    """A block or a message of one rank as it ran: enough to write its rows later.

    `ends_ps`: in eager mode, each op's end from the block's start, as the host issued them.
    """

    rank: int
    step: int
    parts: tuple[Part, ...]
    block: Block | None
    ready_ps: int
    start_ps: int
    end_ps: int
    message: Message | None = None
    ends_ps: tuple[int, ...] = ()


@dataclass(slots=True)
class StepAccount:
    """What one rank did in one step: time by bottleneck, and when its last op ended."""

    bound_ps: dict[str, int] = field(default_factory=dict)
    end_ps: int = 0
    wire_bytes: dict[str, int] = field(default_factory=dict)
    num_extrapolated: int = 0

    def add(self, bound_ps: dict[str, int], scale: float) -> None:
        """Add a block's time, stretched by what it lost to others."""
        for bound, time_ps in bound_ps.items():
            stretched = time_ps if scale == 1.0 else round(time_ps * scale)
            self.bound_ps[bound] = self.bound_ps.get(bound, 0) + stretched


@dataclass(slots=True)
class Rendezvous:
    """A collective of ranks that are simulated one by one: it starts when the last one arrives."""

    group_size: int
    done: simpy.Event
    arrived: int = 0

    def finish(self, _: simpy.Event) -> None:
        """Let every member go on."""
        self.done.succeed()


@dataclass
class SimulatedCluster:
    """Runs compiled steps. `alone` >= 0: that rank only, its peers replaced by nothing.

    `folded`: ranks of one tensor-parallel group, and replicas, do the same at the same time, so
    one stands for all, and a collective starts when that one arrives.
    """

    run: Sequence[StepPrograms]
    cost: CostModel
    cluster: ClusterSpec
    launch: Launch = "graph"
    alone: int = -1
    folded: bool = True
    keep_rows: bool = False

    def __post_init__(self) -> None:
        # A rank alone has nobody to meet: its collectives are replaced like its messages.
        self.folded = self.folded and self.alone < 0 and self._is_symmetric()
        self.env = simpy.Environment()
        self.share = FluidShare(self.env, {})
        self.channels: dict[tuple[int, int, str], Channel] = {}
        self.blocks = BlockCache(self.cost)
        self.executed: list[Executed] = []
        self.accounts: dict[tuple[int, int], StepAccount] = {}
        self._work: dict[int, list[Work]] = {}
        self._rendezvous: dict[tuple[int, str, tuple[int, ...]], Rendezvous] = {}

    @property
    def ranks(self) -> list[int]:
        """The ranks that are simulated (all, one per group, or one alone)."""
        programs = self.run[0].programs
        if self.alone >= 0:
            return [self.alone]
        if not self.folded:
            return [program.rank for program in programs]
        return [p.rank for p in programs if p.tensor_rank == 0 and p.replica == 0]

    def _is_symmetric(self) -> bool:
        """Do all ranks of a stage meet their peers over the same wires?

        Not where a group straddles a node, or replicas lie differently on the nodes.
        """
        for compiled in {id(step): step for step in self.run}.values():
            wires: dict[int, tuple[str, ...]] = {}
            for program in compiled.programs:
                found = wires_of(program, self.cluster)
                if wires.setdefault(program.stage, found) != found:
                    return False
        return True

    def execute(self) -> None:
        """Run every step of every simulated rank to the end."""
        for rank in self.ranks:
            self.share.capacity["hbm", rank] = self.cost.hbm_bytes_per_s
            for link in (self.cluster.nvlink, self.cluster.nic):
                for direction in ("out", "in"):
                    rate = self.cost.link_bytes_per_s(link)
                    self.share.capacity[link.name, direction, rank] = rate
            self.env.process(_RankProcess(self, rank).live())
        self.env.run()

    def channel(self, source: int, target: int, name: str) -> Channel:
        """The queue from one rank to another."""
        key = (source, target, name)
        if key not in self.channels:
            self.channels[key] = Channel(
                self.env, self.cost, self.share, self.cluster, source, target
            )
        return self.channels[key]

    def work_of(self, program: Program) -> list[Work]:
        """The program cut where ranks meet: blocks of local parts, messages, collectives."""
        found = self._work.get(id(program))
        if found is None:
            found = self._work[id(program)] = cut_into_work(program)
        return found

    def meet(self, step: int, part: Part, op: ops.CollectiveOp) -> simpy.Event:
        """Arrive at a collective; the event fires when it is over for everyone."""
        key = (step, part.name_of(op), op.group)
        members = 1 if self.folded else len(op.group)
        place = self._rendezvous.setdefault(key, Rendezvous(members, self.env.event()))
        place.arrived += 1
        if place.arrived == place.group_size:
            cost = self.cost.collective(op)
            timeout = self.env.timeout(seconds_to_ps(cost.launch_s) + seconds_to_ps(cost.kernel_s))
            assert timeout.callbacks is not None
            timeout.callbacks.append(place.finish)
        return place.done


@dataclass
class _RankProcess:
    """One rank's life: its compute stream in order, sends on a stream of their own."""

    machine: SimulatedCluster
    rank: int
    host_ps: int = 0

    def __post_init__(self) -> None:
        self.l2 = L2State(self.machine.cost)

    def live(self) -> Process:
        for step, compiled in enumerate(self.machine.run):
            account = self.machine.accounts.setdefault((self.rank, step), StepAccount())
            yield from self._launch_graph(account)
            for kind, parts in self.machine.work_of(compiled.programs[self.rank]):
                if kind == "block":
                    yield from self._block(step, parts, account)
                elif self.machine.alone >= 0:
                    self._record(step, parts, int(self.machine.env.now))
                elif kind == "send":
                    yield from self._send(step, parts, account)
                elif kind == "recv":
                    yield from self._receive(step, parts)
                else:
                    yield from self._collective(step, parts, account)
            account.end_ps = int(self.machine.env.now)

    def _launch_graph(self, account: StepAccount) -> Process:
        """Graph mode: one launch a step, paid before its first op."""
        launch = seconds_to_ps(self.machine.cost.graph_launch_s)
        if self.machine.launch == "graph" and launch:
            yield self.machine.env.timeout(launch)
            account.add({"launch": launch}, 1.0)

    def _block(self, step: int, parts: tuple[Part, ...], account: StepAccount) -> Process:
        machine = self.machine
        block = machine.blocks.run(parts, self.l2)
        begin = int(machine.env.now)
        issued: tuple[int, ...] = ()
        duration = block.duration_ps
        if machine.launch == "eager":
            issued, duration = self._issue(block, begin)
        rate = block.hbm_bytes / max(duration, 1) * 1e12
        demand: dict[Resource, float] = {
            ("hbm", self.rank): min(rate, machine.cost.hbm_bytes_per_s)
        }
        yield machine.share.run(duration, demand)
        end = int(machine.env.now)
        scale = (end - begin) / duration if duration else 1.0
        account.add(block.bound_ps, scale)
        if duration > block.duration_ps:
            account.add({"launch": duration - block.duration_ps}, scale)
        account.num_extrapolated += block.num_extrapolated
        if machine.keep_rows:
            machine.executed.append(
                Executed(self.rank, step, parts, block, begin, begin, end, ends_ps=issued)
            )

    def _issue(self, block: Block, begin: int) -> tuple[tuple[int, ...], int]:
        """Eager mode: an op starts when the stream is free and the host has issued it.

        Returns each op's end, from the block's start, and the block's duration.
        """
        issue = seconds_to_ps(self.machine.cost.issue_s)
        now, ends = begin, []
        for timed in block.ops:
            self.host_ps += issue
            kernel = timed.end_ps - timed.start_ps
            gap = seconds_to_ps(timed.cost.launch_s)
            now = max(now + gap, self.host_ps) + kernel
            ends.append(now - begin)
        return tuple(ends), now - begin

    def _await_host(self) -> Process:
        """Eager mode: what is no part of a block is issued by the host as well."""
        if self.machine.launch == "eager":
            self.host_ps += seconds_to_ps(self.machine.cost.issue_s)
            late = self.host_ps - int(self.machine.env.now)
            if late > 0:
                yield self.machine.env.timeout(late)

    def _send(self, step: int, parts: tuple[Part, ...], account: StepAccount) -> Process:
        op = parts[0].segment.ops[0]
        assert isinstance(op, ops.Send)
        yield from self._await_host()
        message = self.machine.channel(self.rank, op.peer, op.channel).send(op.payload_bytes)
        self._count_wire(op, account)
        self._record(step, parts, message.ready_ps, message)

    def _receive(self, step: int, parts: tuple[Part, ...]) -> Process:
        op = parts[0].segment.ops[0]
        assert isinstance(op, ops.Recv)
        yield from self._await_host()
        message = self.machine.channel(op.peer, self.rank, op.channel).receive(op.payload_bytes)
        ready = int(self.machine.env.now)
        if not message.arrived.processed:
            yield message.arrived
        self._record(step, parts, ready, message)

    def _collective(self, step: int, parts: tuple[Part, ...], account: StepAccount) -> Process:
        op = parts[0].segment.ops[0]
        assert isinstance(op, (ops.AllReduce, ops.AllGather))
        self.l2.traffic_of(op, parts[0].layer, parts[0].microbatch)
        yield from self._await_host()
        ready = int(self.machine.env.now)
        cost = self.machine.cost.collective(op)
        yield self.machine.meet(step, parts[0], op)
        account.add({"link": seconds_to_ps(cost.launch_s) + seconds_to_ps(cost.kernel_s)}, 1.0)
        self._count_wire(op, account)
        self._record(step, parts, ready)

    def _count_wire(self, op: ops.Send | ops.CollectiveOp, account: StepAccount) -> None:
        cluster = self.machine.cluster
        if isinstance(op, ops.Send):
            wires = {cluster.link_between(self.rank, op.peer).name: op.payload_bytes}
        else:
            wires = wire_bytes_by_link(op, cluster)
        for wire, sent in wires.items():
            account.wire_bytes[wire] = account.wire_bytes.get(wire, 0) + sent

    def _record(
        self, step: int, parts: tuple[Part, ...], ready: int, message: Message | None = None
    ) -> None:
        if self.machine.keep_rows:
            now = int(self.machine.env.now)
            self.machine.executed.append(
                Executed(self.rank, step, parts, None, ready, ready, now, message)
            )

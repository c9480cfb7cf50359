"""One rank's life: its compute stream in order, its sends on a stream of their own.

A rank keeps a clock of its own and runs ahead on it, by arithmetic, to where it needs something
that nobody has sent yet. It meets the simulation's clock only where it can be disturbed: then each
of its ops is an event.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import simpy

from layerwise.sim.machine.blocks import Timed, seconds_to_ps
from layerwise.sim.machine.contention import collective_rates
from layerwise.sim.machine.fluid import Demand
from layerwise.sim.machine.gpu import OpStream, PlannedBlock
from layerwise.sim.machine.links import Channel, Load, SpanLog
from layerwise.sim.machine.route import Traveller
from layerwise.sim.machine.work import Work, WorkKind
from layerwise.sim.plan import ops
from layerwise.sim.plan.program import Program, Segment

if TYPE_CHECKING:
    from layerwise.sim.machine.cluster import SimulatedCluster

Process = Generator[simpy.Event, Any, None]


class Mark(NamedTuple):
    """Where a step begins in a rank's log, and when the one before it ended."""

    spans: int
    blocks: int
    op_ends: int
    begin_ps: int


@dataclass(slots=True)
class RankLog:
    """What one rank did, in program order: enough to write its rows and accounts later.

    `spans`: (ready, start, end) of each message and collective, (start, end) of each block.
    `op_ends`: the end of each op of those blocks whose ops are not at fixed offsets.
    """

    rank: int
    steps: list[tuple[Program, list[Work]]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    spans: SpanLog = field(default_factory=lambda: array("q"))
    blocks: list[Timed] = field(default_factory=list)
    op_ends: SpanLog = field(default_factory=lambda: array("q"))

    def close(self, now_ps: int) -> None:
        """The end of the last step."""
        self.marks.append(Mark(len(self.spans), len(self.blocks), len(self.op_ends), now_ps))

    def begin_step(self, program: Program, work: list[Work], now_ps: int) -> None:
        """A step begins where the one before it ended."""
        self.steps.append((program, work))
        self.marks.append(Mark(len(self.spans), len(self.blocks), len(self.op_ends), now_ps))


class Task(NamedTuple):
    """A piece of work in one run: messages of all microbatches go through one channel.

    `work` and what it `meets`: of a collective.
    """

    kind: WorkKind
    channel: Channel | None = None
    load: Load | None = None
    work: Work | None = None
    meets: tuple[object, ...] = ()


BLOCK = Task("block")


class RankProcess:
    """Runs one rank's programs. `by_event`: each op is an event, for others may disturb it."""

    def __init__(self, machine: SimulatedCluster, rank: int, *, by_event: bool) -> None:
        self.machine, self.rank, self.by_event = machine, rank, by_event
        self.log = RankLog(rank)
        self.now_ps = 0
        self.host_ps = 0
        self.is_eager = machine.launch == "eager"
        self.issue_ps = seconds_to_ps(machine.cost.issue_s)
        blocks = machine.blocks.at_speed(machine.cluster.speed_of(rank))
        self._l2 = Traveller(machine.l2_of(rank), blocks, machine.setup.atlas, machine.passes)
        self._tasks: dict[int, list[Task]] = {}
        # By identity: the log keeps every block.
        self._plans: dict[int, PlannedBlock] = {}

    def live(self) -> Process:
        """All steps, one after the other: steps chain by data alone."""
        machine, log = self.machine, self.log
        launch_s = machine.cost.graph_launch_s / machine.steps_per_graph
        graph_launch = 0 if self.is_eager else seconds_to_ps(launch_s)
        is_folded = not (self.by_event or self.is_eager)
        for compiled in machine.run:
            program = compiled.template[self.rank]
            work = machine.work_of(program)
            log.begin_step(program, work, self.now_ps)
            self.now_ps += graph_launch
            route = machine.setup.route_of(program, self._l2)
            blocks = self._l2.travel(route, compiled.step.context_tokens)
            log.blocks += blocks
            following = iter(blocks)
            for task in self._tasks_of(program, work):
                kind = task.kind
                if kind == "block":
                    timed = next(following)
                    if is_folded:
                        begin = self.now_ps
                        self.now_ps = end = begin + timed.duration_ps
                        log.spans.extend((begin, end))
                    elif self.by_event:
                        yield from self._by_event(timed)
                    else:
                        self._issue(timed)
                elif machine.alone >= 0:
                    log.spans.extend((self.now_ps,) * 3)
                elif kind == "send":
                    self._await_host()
                    channel, load = task.channel, task.load
                    assert channel is not None
                    assert load is not None
                    channel.send(self.now_ps, load, log.spans)
                elif kind == "recv":
                    self._await_host()
                    channel = task.channel
                    assert channel is not None
                    if not channel.arrived:
                        yield channel.wait()
                    # A receive is over when its message has arrived and its stream is free.
                    start, end = channel.arrived.popleft()
                    ready = self.now_ps
                    if end > ready:
                        self.now_ps = end
                        log.spans.extend((ready, max(ready, start), end))
                    else:
                        log.spans.extend((ready, ready, ready))
                else:
                    yield from self._collective(task)
        log.close(self.now_ps)

    def _tasks_of(self, program: Program, work: list[Work]) -> list[Task]:
        tasks = self._tasks.get(id(program))
        if tasks is None:
            # A message was compiled once for all microbatches.
            messages: dict[Segment, Task] = {}
            tasks = self._tasks[id(program)] = []
            for one in work:
                if one.kind == "block":
                    tasks.append(BLOCK)
                    continue
                segment = one.parts[0].segment
                task = messages.get(segment)
                if task is None:
                    task = self._task(one)
                    if task.work is None:
                        messages[segment] = task
                tasks.append(task)
        return tasks

    def _task(self, one: Work) -> Task:
        op, machine = one.op, self.machine
        if machine.alone >= 0:
            return Task(one.kind)
        match op:
            case ops.Send():
                channel = machine.channel(self.rank, op.peer, op.channel)
                return Task("send", channel, self._load_of(op))
            case ops.Recv():
                return Task("recv", machine.channel(op.peer, self.rank, op.channel))
            case ops.AllReduce() | ops.AllGather():
                part = one.parts[0]
                meets = (op.group, op.name, part.layer, part.microbatch)
                return Task("collective", work=one, meets=meets)
            case _:
                raise AssertionError(f"{op.name} meets nobody")

    def _load_of(self, op: ops.Send) -> Load:
        machine = self.machine
        flow = machine.setup.flow_of(op, self.rank)
        ports = (("out", self.rank), ("in", op.peer))
        demands = tuple((machine.port(flow.wire, *port), flow.wire_bytes_per_s) for port in ports)
        gpus = (machine.gpu(self.rank), machine.gpu(op.peer)) if flow.disturbs else ()
        return Load(flow.duration_ps, demands, gpus)

    def _issue(self, timed: Timed) -> None:
        """Eager mode: an op starts when the stream is free and the host has issued it."""
        begin = now = self.now_ps
        for one in timed.ops:
            self.host_ps += self.issue_ps
            kernel = one.end_ps - one.start_ps
            now = max(now + seconds_to_ps(one.cost.launch_s), self.host_ps) + kernel
            self.log.op_ends.append(now)
        self.log.spans.extend((begin, now))
        self.now_ps = now

    def _await_host(self) -> None:
        """Eager mode: what is no part of a block is issued by the host as well."""
        if self.is_eager:
            self.host_ps += self.issue_ps
            self.now_ps = max(self.now_ps, self.host_ps)

    def _by_event(self, timed: Timed) -> Process:
        env = self.machine.env
        begin = self.now_ps
        if begin > env.now:
            yield env.timeout(begin - int(env.now))
        done = simpy.Event(env)
        OpStream(self, self.machine.gpu(self.rank), self._plan_of(timed), done).begin(begin)  # pyright: ignore[reportArgumentType] - installed, it is one class
        yield done
        self.now_ps = end = int(env.now)
        self.log.spans.extend((begin, end))

    def _plan_of(self, timed: Timed) -> PlannedBlock:
        plan = self._plans.get(id(timed))
        if plan is None:
            plan = self._plans[id(timed)] = self._plan(timed)
        return plan

    def _plan(self, timed: Timed) -> PlannedBlock:
        plan = PlannedBlock([], [], [], {})
        before = 0
        for index, one in enumerate(timed.ops):
            plan.gaps_ps.append(one.start_ps - before)
            plan.durations_ps.append(one.end_ps - before)
            plan.bounds.append(one.cost.bound)
            if isinstance(one.op, ops.CollectiveOp):
                plan.ports[index] = port_demands(self.machine, self.rank, one.op)
            before = one.end_ps
        return plan

    def _collective(self, task: Task) -> Process:
        """Members are simulated one by one: it starts when the last one arrives."""
        env = self.machine.env
        assert task.work is not None
        self._await_host()
        ready = self.now_ps
        if ready > env.now:
            yield env.timeout(ready - int(env.now))
        meeting = self.machine.meet((len(self.log.steps), task.meets), task.work)
        yield meeting.done
        self.now_ps = now = int(env.now)
        self.log.spans.extend((ready, meeting.start_ps, now))


def port_demands(machine: SimulatedCluster, rank: int, op: ops.CollectiveOp) -> tuple[Demand, ...]:
    """What one member of a collective draws on its ports."""
    return tuple(
        (machine.port(wire, way, rank), rate)
        for wire, rate in collective_rates(op, machine.cost, machine.cluster).items()
        for way in ("out", "in")
    )

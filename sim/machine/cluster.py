"""The simulated cluster: ranks as SimPy processes over shared bandwidths and links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import simpy

from layerwise.sim.cost.model import CostModel
from layerwise.sim.machine.blocks import BlockCache, seconds_to_ps
from layerwise.sim.machine.contention import port_bytes_per_s
from layerwise.sim.machine.fluid import Demand, FluidShare, Resource
from layerwise.sim.machine.gpu import Gpu
from layerwise.sim.machine.l2 import L2State
from layerwise.sim.machine.links import Channel
from layerwise.sim.machine.rank import RankLog, RankProcess, port_demands
from layerwise.sim.machine.route import Passes
from layerwise.sim.machine.setup import Setup
from layerwise.sim.machine.work import Work, ranks_that_stand, stages_are_alike
from layerwise.sim.plan import ops
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.program import Program, StepPrograms
from layerwise.sim.plan.residency import rank_weight_bytes, window_hit_ratio
from layerwise.sim.plan.scenario import Launch


@dataclass(slots=True, eq=False)
class Meeting:
    """A collective of ranks that are simulated one by one: it starts when the last one arrives."""

    done: simpy.Event
    num_members: int = 0
    start_ps: int = 0


@dataclass
class SimulatedCluster:
    """Runs compiled steps. `alone` >= 0: that rank only, its peers replaced by nothing.

    `steps_per_graph` steps share the launch of one graph. `persisting_weights`: windows over
    weights, as `RunSpec` says.

    `folded`: ranks of one tensor-parallel group, and replicas, do the same at the same time unless
    some of them are slow, so one stands for all alike (`twins`: those it stands for); and what
    nobody can disturb is arithmetic. Unfolded, every rank is there and every op is an event: the
    same times, to the picosecond, the long way round.
    """

    run: Sequence[StepPrograms]
    cost: CostModel
    cluster: ClusterSpec
    blocks: BlockCache
    launch: Launch = "graph"
    alone: int = -1
    folded: bool = True
    steps_per_graph: int = 1
    persisting_weights: bool = False

    def __post_init__(self) -> None:
        self.setup = self._find_setup()
        self.twins, self.contention = self.setup.twins, self.setup.contention
        self.env = simpy.Environment()
        self.share = FluidShare(self.env)
        self.logs: dict[int, RankLog] = {}
        self._channels: dict[tuple[int, int, str], Channel] = {}
        self._ports: dict[tuple[str, str, int], Resource] = {}
        self._gpus: dict[int, Gpu] = {}
        self._loads: dict[int, tuple[int, list[Demand]]] = {}
        self.passes: Passes = {}
        self._meetings: dict[tuple[int, tuple[object, ...]], Meeting] = {}

    @property
    def ranks(self) -> list[int]:
        """The ranks that are simulated (all, one per group, or one alone)."""
        return list(self.twins)

    def _find_setup(self) -> Setup:
        """What an earlier run of the same programs on the same machine found out, or nothing yet."""
        templates = tuple(id(step.template) for step in self.run)
        options = (self.alone, self.folded, self.persisting_weights)
        key = (self.cluster, options, templates)
        found = self.blocks.setups.get(key)
        if found is None:
            found = Setup(tuple(self.run), self.cost, self.cluster, self.alone, self._find_twins())
            self.blocks.setups[key] = found
        return found

    def _find_twins(self) -> dict[int, tuple[int, ...]]:
        """Each rank that is simulated, and the ranks it stands for."""
        placement = self.run[0].placement
        if self.alone >= 0:
            return {self.alone: ()}
        if self.folded and stages_are_alike(placement, self.cluster):
            return ranks_that_stand(placement, self.cluster)
        return dict.fromkeys(range(placement.num_ranks), ())

    def execute(self) -> None:
        """Run every step of every simulated rank to the end."""
        for rank in self.ranks:
            by_event = not self.folded or rank in self.contention.ranks
            process = RankProcess(self, rank, by_event=by_event)  # pyright: ignore[reportArgumentType] - installed, it is one class
            self.logs[rank] = process.log
            self.env.process(process.live())
        self.env.run()

    def l2_of(self, rank: int) -> L2State:
        """An empty L2, its set-aside for persisting windows as large as the hardware allows."""
        gpu = self.cluster.gpu
        if not (self.persisting_weights and gpu.persisting_l2_bytes):
            return L2State(self.cost)
        programs = [step.template[rank] for step in self.run[:2]]
        share = window_hit_ratio(rank_weight_bytes(programs), gpu)
        held = share * rank_weight_bytes(programs, self.cost.obeys_windows)
        left = 1 - min(held, gpu.persisting_l2_bytes) / gpu.l2_bytes
        return L2State(self.cost, persisting=share, left=left, set_aside=True)

    def work_of(self, program: Program) -> list[Work]:
        """The program cut where ranks meet: blocks of local parts, messages, collectives."""
        return self.setup.work_of(program)

    def channel(self, source: int, target: int, name: str) -> Channel:
        """The queue from one rank to another."""
        edge = (source, target, name)
        found = self._channels.get(edge)
        if found is None:
            is_shared = edge in self.contention.edges or not self.folded
            found = self._channels[edge] = Channel(self.env, self.share, is_shared)
        return found

    def port(self, wire: str, way: str, rank: int) -> Resource:
        """One direction of one GPU's port onto a wire."""
        key = (wire, way, rank)
        found = self._ports.get(key)
        if found is None:
            capacity = port_bytes_per_s(wire, (rank,), self.cost, self.cluster)
            found = self._ports[key] = Resource(capacity)
        return found

    def gpu(self, rank: int) -> Gpu:
        """What runs on one GPU."""
        found = self._gpus.get(rank)
        if found is None:
            found = self._gpus[rank] = Gpu(self.cost, self.share)
        return found

    def meet(self, key: tuple[int, tuple[object, ...]], one: Work) -> Meeting:
        """Arrive at the collective of this step and name; its event fires when it is over."""
        op = one.op
        assert isinstance(op, ops.CollectiveOp)
        meeting = self._meetings.get(key)
        if meeting is None:
            meeting = self._meetings[key] = Meeting(self.env.event())
        meeting.num_members += 1
        if meeting.num_members == self.setup.num_members(op):
            del self._meetings[key]
            meeting.start_ps = int(self.env.now)
            duration, demands = self._load_of(op)
            self.share.start(duration, demands, meeting.done.succeed)
        return meeting

    def _load_of(self, op: ops.CollectiveOp) -> tuple[int, list[Demand]]:
        """A collective as an activity on the ports of all its members."""
        found = self._loads.get(id(op))
        if found is None:
            cost = self.cost.collective(op)
            duration = seconds_to_ps(cost.launch_s) + seconds_to_ps(cost.kernel_s)
            demands = [d for rank in op.group for d in port_demands(self, rank, op)]  # pyright: ignore[reportArgumentType] - installed, it is one class
            found = self._loads[id(op)] = (duration, demands)
        return found

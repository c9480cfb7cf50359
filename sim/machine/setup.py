"""What a machine works out once about programs it is given, whatever context they are run at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from layerwise.sim.cost.model import CostModel
from layerwise.sim.machine.contention import Contention, Flow, find_contention, flow_of, meetings_of
from layerwise.sim.machine.route import Atlas, Route, Traveller
from layerwise.sim.machine.work import Work, cut_into_work
from layerwise.sim.plan import ops
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.program import Program, StepPrograms


@dataclass(eq=False)
class Setup:
    """Programs on a machine. `twins`: each rank that is simulated, and those it stands for.

    What is kept by an identity is kept alive by the templates of `run`.
    """

    run: tuple[StepPrograms, ...]
    cost: CostModel
    cluster: ClusterSpec
    alone: int
    twins: dict[int, tuple[int, ...]]
    atlas: Atlas = field(default_factory=Atlas)
    contention: Contention = field(init=False)
    _work: dict[int, list[Work]] = field(default_factory=dict[int, list[Work]])
    _routes: dict[int, Route] = field(default_factory=dict[int, Route])
    _flows: dict[tuple[int, int], Flow] = field(default_factory=dict[tuple[int, int], Flow])
    _members: dict[tuple[int, ...], int] = field(default_factory=dict[tuple[int, ...], int])

    def __post_init__(self) -> None:
        programs = self._programs() if self.alone < 0 else ()
        self.contention = find_contention(programs, self.cost, self.cluster)

    def _programs(self) -> Iterable[Program]:
        found = {id(p): p for step in self.run for p in map(step.template.__getitem__, self.twins)}
        return found.values()

    def work_of(self, program: Program) -> list[Work]:
        """The program cut where ranks meet: blocks of local parts, messages, collectives."""
        found = self._work.get(id(program))
        if found is None:
            meet = self.alone >= 0 or any(
                self.num_members(op) > 1
                for op in meetings_of(program)
                if isinstance(op, ops.CollectiveOp)
            )
            found = self._work[id(program)] = cut_into_work(program, collectives_meet=meet)
        return found

    def route_of(self, program: Program, traveller: Traveller) -> Route:
        """The route of a rank's program."""
        found = self._routes.get(id(program))
        if found is None:
            work = self.work_of(program)
            found = traveller.route_of(program, work, self.cluster, alone=self.alone >= 0)
            self._routes[id(program)] = found
        return found

    def num_members(self, op: ops.CollectiveOp) -> int:
        """Members of a collective that are simulated."""
        found = self._members.get(op.group)
        if found is None:
            found = self._members[op.group] = sum(rank in self.twins for rank in op.group)
        return found

    def flow_of(self, op: ops.Send, source: int) -> Flow:
        """What a message asks for."""
        found = self._flows.get((source, id(op)))
        if found is None:
            found = self._flows[source, id(op)] = flow_of(op, source, self.cost, self.cluster)
        return found

"""Compiled steps + a belief -> what happens: step times, accounts per rank, rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from layerwise.sim.cost.model import CostModel
from layerwise.sim.machine.account import Spell, StepAccount, spells_of
from layerwise.sim.machine.blocks import BlockCache, seconds_to_ps
from layerwise.sim.machine.cluster import SimulatedCluster
from layerwise.sim.machine.rank import RankLog
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.program import StepPrograms
from layerwise.sim.plan.scenario import Launch, Scenario
from layerwise.sim.power import at_held_clocks, power_fit_of
from layerwise.sim.trace import Row

PS = 1e-12


@dataclass(frozen=True)
class Simulation:
    """One simulated run: `machine` keeps what every rank did, in a few bytes an op.

    Rows and accounts are worked out when they are asked for.
    """

    machine: SimulatedCluster

    @cached_property
    def step_end_s(self) -> tuple[float, ...]:
        """When each step's last op ended on its last rank."""
        logs = self.machine.logs.values()
        return tuple(
            max(log.marks[step + 1].begin_ps for log in logs) * PS
            for step in range(len(self.machine.run))
        )

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that were simulated; each stands for its symmetric ones."""
        return tuple(self.machine.logs)

    def account(self, rank: int, step: int) -> StepAccount:
        """One simulated rank's step by bottleneck."""
        machine = self.machine
        return StepAccount(machine.logs[rank], step, machine.cluster, machine.launch == "eager")

    def num_alike(self, rank: int) -> int:
        """Ranks that a simulated one stands for, with itself."""
        return 1 + len(self.machine.twins[rank])

    @property
    def num_rows(self) -> int:
        """Ops of all ranks in all steps."""
        return sum(
            len(program) * self.num_alike(log.rank)
            for log in self.machine.logs.values()
            for program, _ in log.steps
        )

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every op of every rank, rank by rank. For long runs iterate `iter_rows` instead."""
        return tuple(self.iter_rows())

    def rows_of(self, rank: int, step: int) -> Iterator[Row]:
        """Every op of one simulated rank in one step."""
        return _step_rows(self.machine, self.machine.logs[rank], step)

    def iter_rows(self) -> Iterator[Row]:
        """Rows one by one, those of folded ranks copied from the one that stood for them."""
        machine = self.machine
        for rank, log in machine.logs.items():
            for twin in (rank, *machine.twins[rank]):
                for row in _rows_of(machine, log):
                    yield row if twin == rank else replace(row, rank=twin)

    @property
    def first_step_s(self) -> float:
        """One step from idle."""
        return self.step_end_s[0]

    @property
    def steady_step_s(self) -> float:
        """Time between the ends of two steps late in the stream.

        Not the last one: it hands no tokens back, so an eager host has less to issue.
        """
        ends = [0.0, *self.step_end_s]
        return ends[-2] - ends[-3] if len(ends) > 3 else ends[-1] - ends[-2]

    @property
    def is_steady(self) -> bool:
        """That interval and the one before it differ by less than 0.1 %."""
        if len(self.step_end_s) < 4:
            return False
        before = self.step_end_s[-3] - self.step_end_s[-4]
        return abs(self.steady_step_s - before) <= 1e-3 * self.steady_step_s


def simulate(
    run: Sequence[StepPrograms],
    cost: CostModel,
    cluster: ClusterSpec,
    *,
    launch: Launch = "graph",
    alone: int = -1,
    folded: bool = True,
    steps_per_graph: int = 1,
    persisting_weights: bool = False,
    blocks: BlockCache | None = None,
) -> Simulation:
    """Simulate compiled steps, chained by data alone, under one belief.

    `alone` simulates one rank whose peers are replaced by local buffers. `folded` lets one rank
    stand for its symmetric ones and arithmetic for what nobody disturbs; results are the same
    either way. `blocks` of an earlier simulation under the same belief save work where programs
    share segments. Deterministic.
    """
    machine = SimulatedCluster(
        run,
        cost,
        cluster,
        launch=launch,
        alone=alone,
        folded=folded,
        steps_per_graph=steps_per_graph,
        persisting_weights=persisting_weights,
        blocks=blocks or BlockCache(cost),
    )
    machine.execute()
    return Simulation(machine)


def simulate_scenario(
    scenario: Scenario,
    run: Sequence[StepPrograms],
    cost: CostModel,
    *,
    folded: bool = True,
    blocks: BlockCache | None = None,
) -> Simulation:
    """Simulate a scenario's compiled run the way its `run` table says.

    Sustained work runs at the clock that power limits hold, where the belief knows power.
    """
    spec, kept = scenario.run, blocks or BlockCache(cost)

    def on(cluster: ClusterSpec) -> Simulation:
        return simulate(
            run,
            cost,
            cluster,
            launch=spec.launch,
            alone=spec.only_rank,
            folded=folded,
            steps_per_graph=spec.steps_per_graph,
            persisting_weights=spec.persisting_weights,
            blocks=kept,
        )

    power = power_fit_of(cost)
    if power is None or spec.regime == "burst":
        return on(scenario.cluster)
    return at_held_clocks(on, scenario.cluster, power)  # pyright: ignore - installed, it is one class


def _rows_of(machine: SimulatedCluster, log: RankLog) -> Iterator[Row]:
    for step in range(len(log.steps)):
        yield from _step_rows(machine, log, step)


def _step_rows(machine: SimulatedCluster, log: RankLog, step: int) -> Iterator[Row]:
    for spell in spells_of(log, step):
        if spell.timed is None:
            yield _meeting_row(log.rank, step, spell, machine.alone >= 0)
        else:
            yield from _block_rows(log.rank, step, spell, is_eager=machine.launch == "eager")


def _block_rows(rank: int, step: int, spell: Spell, *, is_eager: bool) -> Iterator[Row]:
    assert spell.timed is not None
    ready = spell.start_ps
    for index, timed in enumerate(spell.timed.ops):
        start, end = spell.start_ps + timed.start_ps, spell.start_ps + timed.end_ps
        if spell.op_ends:
            end = spell.op_ends[index]
            start = end - (timed.end_ps - timed.start_ps)
            if not is_eager:
                # It started after its gap, and may have been slowed down since.
                start = min(ready + seconds_to_ps(timed.cost.launch_s), end)
        part = spell.work.parts[timed.part_index]
        yield Row(
            repeat=0,
            step=step,
            rank=rank,
            op=part.name_of(timed.op),
            kind=timed.op.kind,
            stream="compute",
            ready_s=ready * PS,
            start_s=start * PS,
            end_s=end * PS,
            bound=timed.cost.bound + (" extrapolated" if timed.cost.extrapolated else ""),
        )
        ready = end


def _meeting_row(rank: int, step: int, spell: Spell, alone: bool) -> Row:
    """A receive or a collective waits from when it was due; a send until it has arrived."""
    op = spell.work.op
    return Row(
        repeat=0,
        step=step,
        rank=rank,
        op=spell.work.parts[0].name_of(op),
        kind=op.kind,
        stream=op.stream,
        ready_s=spell.ready_ps * PS,
        start_s=spell.start_ps * PS,
        end_s=spell.end_ps * PS,
        bound="" if alone else "link",
        replaced=alone,
    )

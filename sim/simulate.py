"""Compiled steps + a belief -> what happens: step times, accounts per rank, rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sim.cost.model import CostModel
from sim.machine.cluster import Executed, SimulatedCluster, StepAccount
from sim.plan import ops
from sim.plan.hardware import ClusterSpec
from sim.plan.program import StepPrograms
from sim.plan.scenario import Launch
from sim.trace import Row

PS = 1e-12


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """One simulated run. `step_end_s[n]`: when step n's last op ended on its last rank.

    `accounts[rank, step]` for the simulated ranks (`ranks`).
    """

    step_end_s: tuple[float, ...]
    ranks: tuple[int, ...]
    accounts: dict[tuple[int, int], StepAccount]
    rows: tuple[Row, ...]

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
    keep_rows: bool = False,
) -> Simulation:
    """Simulate compiled steps, chained by data alone, under one belief.

    `alone` simulates one rank whose peers are replaced by local buffers. `folded` lets one rank
    stand for its symmetric ones; results are the same either way. Deterministic.
    """
    machine = SimulatedCluster(
        run, cost, cluster, launch=launch, alone=alone, folded=folded, keep_rows=keep_rows
    )
    machine.execute()
    ends = [
        max(machine.accounts[rank, step].end_ps for rank in machine.ranks) * PS
        for step in range(len(run))
    ]
    rows = tuple(_rows(machine)) if keep_rows else ()
    return Simulation(
        step_end_s=tuple(ends), ranks=tuple(machine.ranks), accounts=machine.accounts, rows=rows
    )


def _rows(machine: SimulatedCluster) -> Iterator[Row]:
    """Rows of every rank; those of folded ranks are copies of the one that stood for them."""
    twins = _twins(machine)
    for executed in machine.executed:
        for row in _rows_of(executed, machine.alone >= 0):
            yield row
            for twin in twins.get(row.rank, ()):
                yield replace(row, rank=twin)


def _twins(machine: SimulatedCluster) -> dict[int, list[int]]:
    if not machine.folded or machine.alone >= 0:
        return {}
    programs = machine.run[0].programs
    stand_in = {p.stage: p.rank for p in programs if p.tensor_rank == 0 and p.replica == 0}
    twins: dict[int, list[int]] = {}
    for program in programs:
        if program.rank != stand_in[program.stage]:
            twins.setdefault(stand_in[program.stage], []).append(program.rank)
    return twins


def _rows_of(executed: Executed, alone: bool) -> Iterator[Row]:
    if executed.block is None:
        yield _message_row(executed, alone)
        return
    alone_ps = executed.ends_ps[-1] if executed.ends_ps else executed.block.duration_ps
    scale = (executed.end_ps - executed.start_ps) / alone_ps if alone_ps else 1.0
    ready = executed.start_ps
    for index, timed in enumerate(executed.block.ops):
        start, end = timed.start_ps, timed.end_ps
        if executed.ends_ps:
            end = executed.ends_ps[index]
            start = end - (timed.end_ps - timed.start_ps)
        part = executed.parts[timed.part_index]
        end_ps = executed.start_ps + round(end * scale)
        yield Row(
            repeat=0, step=executed.step, rank=executed.rank, op=part.name_of(timed.op),
            kind=type(timed.op).__name__, stream="compute", ready_s=ready * PS,
            start_s=(executed.start_ps + round(start * scale)) * PS, end_s=end_ps * PS,
            bound=timed.cost.bound + (" extrapolated" if timed.cost.extrapolated else ""),
            replaced=alone and isinstance(timed.op, (ops.AllReduce, ops.AllGather)),
        )  # fmt: skip
        ready = end_ps


def _message_row(executed: Executed, alone: bool) -> Row:
    part, message = executed.parts[0], executed.message
    op = part.segment.ops[0]
    ready, start, end = executed.ready_ps, executed.start_ps, executed.end_ps
    if message is not None:
        # A receive waits from when it was due; a send's transfer ends when it has arrived.
        start, end = message.start_ps, message.end_ps
        if isinstance(op, ops.Recv):
            start = min(max(start, ready), max(end, ready))
            end = max(end, ready)
    streams: dict[type, str] = {ops.Send: "send", ops.Recv: "recv"}
    stream = streams.get(type(op), "compute")
    return Row(
        repeat=0, step=executed.step, rank=executed.rank, op=part.name_of(op),
        kind=type(op).__name__, stream=stream, ready_s=ready * PS, start_s=start * PS,
        end_s=end * PS, bound="" if alone else "link", replaced=alone,
    )  # fmt: skip

"""Accounts: one rank's step by bottleneck, worked out from its log when somebody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from layerwise.sim.machine.blocks import Timed
from layerwise.sim.machine.rank import RankLog
from layerwise.sim.machine.work import Work
from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import wire_bytes_by_link
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.program import Program


@dataclass(frozen=True, slots=True)
class Spell:
    """A block or a meeting as it ran. `op_ends`: its ops' ends, where they are not at offsets."""

    work: Work
    ready_ps: int
    start_ps: int
    end_ps: int
    timed: Timed | None = None
    op_ends: tuple[int, ...] = ()


def spells_of(log: RankLog, step: int) -> Iterator[Spell]:
    """What a rank did in a step, in program order."""
    at = log.marks[step].op_ends
    for work, ready, start, end, timed in _spans_of(log, step):
        own: tuple[int, ...] = ()
        if timed is not None and log.op_ends:
            own = tuple(log.op_ends[at : at + work.num_ops])
            at += work.num_ops
        yield Spell(work, ready, start, end, timed, own)


def _spans_of(log: RankLog, step: int) -> Iterator[tuple[Work, int, int, int, Timed | None]]:
    """(work, ready, start, end, its block) of a step: how `RankLog` lies, read in one place."""
    spans, at, at_block = log.spans, log.marks[step].spans, log.marks[step].blocks
    for work in log.steps[step][1]:
        if work.kind == "block":
            begin = spans[at]
            yield work, begin, begin, spans[at + 1], log.blocks[at_block]
            at += 2
            at_block += 1
        else:
            yield work, spans[at], spans[at + 1], spans[at + 2], None
            at += 3


@dataclass(frozen=True)
class StepAccount:
    """What one rank did in one step, from the end of the step before to the end of this one.

    `bound_ps` splits all of that time: `hbm`, `l2`, `compute` (SMs), `link` (transfers that
    nothing hid), `launch` (between kernels, and a host that is late), `bubble` (no work from the
    stage before), `wait` (for the last member of a collective). Ops that lost time to others'
    traffic lost it to `hbm`.
    """

    log: RankLog
    step: int
    cluster: ClusterSpec
    is_eager: bool

    @property
    def begin_ps(self) -> int:
        """When the step before ended on this rank."""
        return self.log.marks[self.step].begin_ps

    @property
    def end_ps(self) -> int:
        """When its last op ended."""
        return self.log.marks[self.step + 1].begin_ps

    @property
    def _program(self) -> Program:
        return self.log.steps[self.step][0]

    @cached_property
    def bound_ps(self) -> dict[str, int]:
        """Picoseconds by bottleneck; they add up to the step."""
        launch = bubble = wait = link = lost = 0
        blocks: dict[int, list[Timed]] = {}
        now = self.begin_ps
        for work, ready, start, end, timed in _spans_of(self.log, self.step):
            if work.kind == "send":
                continue
            launch += ready - now
            now = end
            if timed is None:
                waited = start - ready
                if work.kind == "recv":
                    bubble += waited
                else:
                    wait += waited
                link += end - start
                continue
            lost += end - start - timed.duration_ps
            # The same few again and again: microbatches.
            blocks.setdefault(id(timed), []).append(timed)
        launch += self.end_ps - now
        found = Counter({"launch": launch, "bubble": bubble, "wait": wait, "link": link})
        found["launch" if self.is_eager else "hbm"] += lost
        for alike in blocks.values():
            for bound, time_ps in alike[0].bound_ps.items():
                found[bound] += len(alike) * time_ps
        return dict(found)

    @property
    def _blocks(self) -> Sequence[Timed]:
        first, last = self.log.marks[self.step].blocks, self.log.marks[self.step + 1].blocks
        return self.log.blocks[first:last]

    @cached_property
    def num_extrapolated(self) -> int:
        """Ops whose shape lies outside what was calibrated."""
        return sum(timed.num_extrapolated for timed in self._blocks)

    @cached_property
    def energy_j(self) -> tuple[float, float]:
        """Joules in SMs and L2 at full clock, and of its traffic with HBM: as in `OpCost`."""
        parts = [timed.energy_j for timed in self._blocks]
        return sum(sm_j for sm_j, _ in parts), sum(hbm_j for _, hbm_j in parts)

    @cached_property
    def wire_bytes(self) -> dict[str, int]:
        """What this rank put onto each wire."""
        found: Counter[str] = Counter()
        rank = self.log.rank
        for segment, times in Counter(part.segment for part in self._program.parts).items():
            for op in segment.ops:
                if isinstance(op, ops.Send):
                    found[self.cluster.link_between(rank, op.peer).name] += times * op.payload_bytes
                elif isinstance(op, ops.CollectiveOp):
                    for wire, sent in wire_bytes_by_link(op, self.cluster).items():
                        found[wire] += times * sent
        return dict(found)

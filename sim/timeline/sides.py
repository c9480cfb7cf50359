"""The two sides of a picture: what was predicted, and what was measured, as pieces to draw.

A prediction has one clock. A measurement has one per rank and step, so each measured step is laid
where the prediction of the same rank begins it, or as much later as it must (`clocks`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

from layerwise.sim.machine.work import Work
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.program import StepPrograms
from layerwise.sim.simulate import Simulation
from layerwise.sim.timeline.clocks import Place, StepKey, lay_out
from layerwise.sim.timeline.messages import MessageEnd, message_pairs
from layerwise.sim.trace import Row
from layerwise.sim.traffic import Moved, walk_rank

MEETINGS = ("Send", "Recv", "AllReduce", "AllGather")


class Piece(NamedTuple):
    """A row as it is drawn: from `begin_s` to its end; until `split_s` it waits for another rank."""

    row: Row
    begin_s: float
    split_s: float

    @property
    def begin_ns(self) -> int:
        """Viewers count in nanoseconds. Ends are rounded, not lengths: neighbours stay apart."""
        return round(self.begin_s * 1e9)

    @property
    def split_ns(self) -> int:
        """When the wait is over, if there is one."""
        return round(self.split_s * 1e9)

    @property
    def end_ns(self) -> int:
        """A message that had arrived takes no time; it is drawn with one nanosecond."""
        end_ns = round(self.row.end_s * 1e9)
        return max(end_ns, self.split_ns + 1) if self.row.kind in ("Send", "Recv") else end_ns

    @property
    def waits(self) -> bool:
        """Is there a wait to be drawn?"""
        return self.split_ns > self.begin_ns


class Side(Protocol):
    """A run to draw. Ranks with the same `source_of` have the same pieces."""

    @property
    def name(self) -> str:
        """What stands after the rank: `predicted` or `measured`."""
        ...

    @property
    def run(self) -> Sequence[StepPrograms]:
        """The compiled steps."""
        ...

    @property
    def cluster(self) -> ClusterSpec:
        """What it ran on."""
        ...

    @property
    def ranks(self) -> tuple[int, ...]:
        """Those that ran, and those that others stand for."""
        ...

    @property
    def steps(self) -> tuple[StepKey, ...]:
        """In order of time."""
        ...

    @property
    def steady(self) -> StepKey:
        """The one that is drawn before all others."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know about it."""
        ...

    def source_of(self, rank: int) -> int:
        """The rank that stands for this one."""
        ...

    def pieces(self, key: StepKey, rank: int) -> list[Piece]:
        """One rank's step; no messages that local buffers replaced."""
        ...

    def moved(self, rank: int) -> Mapping[int, Mapping[str, Moved]]:
        """By step and op name: what local ops moved; nothing where nobody knows."""
        ...


@dataclass(frozen=True)
class PredictedSide:
    """A simulation. The steady step of a stream is the last but one: the last hands no tokens on."""

    simulation: Simulation
    name: str = "predicted"
    notes: tuple[str, ...] = ()

    @property
    def run(self) -> Sequence[StepPrograms]:
        """The compiled steps."""
        return self.simulation.machine.run

    @property
    def cluster(self) -> ClusterSpec:
        """What was simulated."""
        return self.simulation.machine.cluster

    @cached_property
    def _sources(self) -> dict[int, int]:
        twins = self.simulation.machine.twins
        return {twin: rank for rank in self.simulation.ranks for twin in (rank, *twins[rank])}

    @property
    def ranks(self) -> tuple[int, ...]:
        """All, in order."""
        return tuple(sorted(self._sources))

    @property
    def steps(self) -> tuple[StepKey, ...]:
        """All."""
        return tuple(StepKey(0, step) for step in range(len(self.run)))

    @property
    def steady(self) -> StepKey:
        """The first chunk of a prefill, which is no stream."""
        return StepKey(0, max(0, len(self.run) - 2) if self.run[0].step.phase == "decode" else 0)

    def source_of(self, rank: int) -> int:
        """The one that was simulated."""
        return self._sources[rank]

    def pieces(self, key: StepKey, rank: int) -> list[Piece]:
        """A receive, and a collective whose members arrive one by one, wait from when they are due."""
        source = self._sources[rank]
        program = self.run[key.step].template[source]
        machine = self.simulation.machine
        meetings = _names_that_wait(machine.work_of(program))
        found: list[Piece] = []
        for row in self.simulation.rows_of(source, key.step):
            if not row.replaced:
                begin_s = row.ready_s if row.op in meetings else row.start_s
                found.append(Piece(row, begin_s, row.start_s))
        return found

    def moved(self, rank: int) -> Mapping[int, Mapping[str, Moved]]:
        """Walked again: a simulation keeps no bytes."""
        return dict(enumerate(walk_rank(self.simulation.machine, self._sources[rank])))


@dataclass(frozen=True)
class MeasuredSide:
    """One repeat of a measurement beside its prediction.

    `transfers_s`: of each message and collective, by (step, rank, op), how long it was not waiting.
    """

    rows: Sequence[Row]
    predicted: PredictedSide
    transfers_s: Mapping[MessageEnd, float] = field(default_factory=dict[MessageEnd, float])
    name: str = "measured"
    notes: tuple[str, ...] = ()

    @property
    def run(self) -> Sequence[StepPrograms]:
        """The compiled steps of the prediction, which is of the same work."""
        return self.predicted.run

    @property
    def cluster(self) -> ClusterSpec:
        """That of the prediction, too."""
        return self.predicted.cluster

    @cached_property
    def _by_place(self) -> dict[Place, list[Row]]:
        found: dict[Place, list[Row]] = {}
        for row in self.rows:
            if not row.replaced:
                found.setdefault((StepKey(row.repeat, row.step), row.rank), []).append(row)
        return found

    @cached_property
    def _offsets_s(self) -> dict[Place, float]:
        """What to add to the times of each step of each rank."""
        begins_s: dict[Place, float] = {}
        for (key, rank), rows in self._by_place.items():
            pieces = self.predicted.pieces(StepKey(0, key.step), rank)
            begins_s[key, rank] = _begin_s([piece.row for piece in pieces]) - _begin_s(rows)
        return lay_out(self._by_place, begins_s, message_pairs(self.run))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Those that were measured."""
        return tuple(sorted({rank for _, rank in self._by_place}))

    @property
    def steps(self) -> tuple[StepKey, ...]:
        """Those that were traced."""
        return tuple(sorted({key for key, _ in self._by_place}))

    @property
    def steady(self) -> StepKey:
        """The middle one."""
        return self.steps[len(self.steps) // 2]

    def source_of(self, rank: int) -> int:
        """Nobody stands for another."""
        return rank

    def pieces(self, key: StepKey, rank: int) -> list[Piece]:
        """A message's or collective's kernel waits first, and transfers at its end."""
        found: list[Piece] = []
        for row in self._by_place.get((key, rank), ()):
            offset_s = self._offsets_s[key, rank]
            moved = replace(
                row,
                ready_s=row.ready_s + offset_s,
                start_s=row.start_s + offset_s,
                end_s=row.end_s + offset_s,
            )
            transfer_s = self.transfers_s.get((row.step, row.rank, row.op), row.duration_s)
            split_s = max(moved.start_s, moved.end_s - transfer_s)
            found.append(Piece(moved, moved.start_s, split_s))
        return sorted(found, key=lambda piece: piece.begin_s)

    def moved(self, rank: int) -> Mapping[int, Mapping[str, Moved]]:
        """A trace has no bytes."""
        return {}


def _names_that_wait(work: Iterable[Work]) -> set[str]:
    return {one.parts[0].name_of(one.op) for one in work if one.kind in ("recv", "collective")}


def _begin_s(rows: Sequence[Row]) -> float:
    """When the first op starts that waits for nobody else; of a step of messages, the first one."""
    own = [row.start_s for row in rows if row.kind not in MEETINGS]
    return min(own or [row.start_s for row in rows], default=0.0)

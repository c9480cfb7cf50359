"""Which steps are drawn: whole ones only, the steady one first, then from the beginning on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from layerwise.sim.plan.errors import SpecError
from layerwise.sim.timeline.clocks import StepKey
from layerwise.sim.timeline.sides import Side

MAX_SLICES = 300_000


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Sides that are drawn between each other, rank by rank. `name` may be empty for one alone."""

    name: str
    sides: Sequence[Side]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """`steps`: what is kept of each side, by (panel, side). `ranks`: those kept of any."""

    steps: dict[tuple[int, int], tuple[StepKey, ...]]
    ranks: dict[tuple[int, int], tuple[int, ...]]
    left_out: tuple[str, ...]


def choose(panels: Sequence[Panel], max_slices: int) -> Chosen:
    """Keep what `max_slices` allow: of every side the steady step, then steps in order of time.

    Where the steady steps of all ranks are too many, the last ranks are left out. Raises SpecError
    when not even those of one rank fit.
    """
    counts = _Counts(panels)
    ranks, used = _ranks_that_fit(counts, max_slices)
    kept = {at: [side.steady] for at, side in counts.sides.items()}
    if all(len(ranks[at]) == len(side.ranks) for at, side in counts.sides.items()):
        for at, key in _others(counts):
            used += counts.slices(at, key, ranks[at])
            if used > max_slices:
                break
            kept[at].append(key)
    steps = {at: tuple(sorted(keys)) for at, keys in kept.items()}
    return Chosen(steps=steps, ranks=ranks, left_out=_left_out(panels, counts, steps, ranks))


class _Counts:
    """Slices of each step of each side, counted when asked for."""

    def __init__(self, panels: Sequence[Panel]) -> None:
        self.sides = {
            (index, number): side
            for index, panel in enumerate(panels)
            for number, side in enumerate(panel.sides)
        }
        self._known: dict[tuple[tuple[int, int], StepKey, int], int] = {}

    def slices(self, at: tuple[int, int], key: StepKey, ranks: Sequence[int]) -> int:
        """Of one step of these ranks, waits included."""
        side = self.sides[at]
        return sum(self._of_source(at, key, side.source_of(rank)) for rank in ranks)

    def _of_source(self, at: tuple[int, int], key: StepKey, source: int) -> int:
        found = self._known.get((at, key, source))
        if found is None:
            pieces = self.sides[at].pieces(key, source)
            waits = sum(piece.waits for piece in pieces)
            found = self._known[at, key, source] = len(pieces) + waits
        return found

    @cached_property
    def ranks(self) -> list[int]:
        """Of any side."""
        return sorted({rank for side in self.sides.values() for rank in side.ranks})


def _ranks_that_fit(
    counts: _Counts, max_slices: int
) -> tuple[dict[tuple[int, int], tuple[int, ...]], int]:
    """Ranks whose steady steps fit, and the slices of these."""
    ranks: dict[tuple[int, int], tuple[int, ...]] = dict.fromkeys(counts.sides, ())
    used = 0
    for rank in counts.ranks:
        with_it = [at for at, side in counts.sides.items() if rank in side.ranks]
        more = sum(counts.slices(at, counts.sides[at].steady, [rank]) for at in with_it)
        if used + more > max_slices:
            if not used:
                raise SpecError(
                    "trace_slices",
                    max_slices,
                    f"is fewer than the {more} slices of one step of rank {rank}",
                    f"use {more} or more",
                )
            break
        used += more
        for at in with_it:
            ranks[at] = (*ranks[at], rank)
    return ranks, used


def _others(counts: _Counts) -> Iterator[tuple[tuple[int, int], StepKey]]:
    """Steps that are not steady: the first of every side, then the second of every side, ..."""
    rest = {
        at: [key for key in side.steps if key != side.steady] for at, side in counts.sides.items()
    }
    for index in range(max(map(len, rest.values()), default=0)):
        for at, keys in rest.items():
            if index < len(keys):
                yield at, keys[index]


def _left_out(
    panels: Sequence[Panel],
    counts: _Counts,
    steps: dict[tuple[int, int], tuple[StepKey, ...]],
    ranks: dict[tuple[int, int], tuple[int, ...]],
) -> tuple[str, ...]:
    said: list[str] = []
    for at, side in counts.sides.items():
        name = " ".join(filter(None, (panels[at[0]].name, side.name)))
        gone = [key.step for key in side.steps if key not in steps[at]]
        if gone:
            said.append(f"{name}: {_listed('step', gone)}")
        if missing := [rank for rank in side.ranks if rank not in ranks[at]]:
            said.append(f"{name}: {_listed('rank', missing)}")
    return tuple(said)


def _listed(noun: str, numbers: Sequence[int]) -> str:
    """`step 2`, `steps 0 and 1`, `steps 3 to 7, 9 and 12 to 14`; the numbers ascend."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    said = [
        text
        for run in runs
        for text in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))
    ]
    listed = " and ".join(filter(None, (", ".join(said[:-1]), said[-1])))
    return f"{noun}{'s' if len(numbers) > 1 else ''} {listed}"

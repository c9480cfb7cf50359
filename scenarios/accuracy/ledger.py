"""The ledger: every committed measurement beside what was predicted when the ledger was written.

It shows what moved. It fails where a measurement is lost, or another one under its name, or where a
family's median or mean worsens by more than measurements scatter. How far off a point may be is no
matter of the ledger but of its family's bar (`bars`, `red`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from layerwise.scenarios.accuracy.bars import groups_of
from layerwise.scenarios.accuracy.ranking import asked_of, rank
from layerwise.scenarios.accuracy.scored import (
    MAX_COVERAGE,
    MAX_WIDTH_RATIO,
    MIN_COVERAGE,
    MIN_INTERVALS,
    Scored,
    coverage_of,
    summary_of,
)
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.files import validate
from layerwise.sim.plan.reading import read_json
from layerwise.sim.trace import write_atomically

FORMAT, VERSION = "layerwise-ledger", 2
# What version 1 said of each line: tolerances that were learned from what came out.
LEARNED = frozenset({"tolerance", "reason"})
# Predictions do not scatter: what is left to a group's median is for changes that nobody meant
# anything by.
MIN_NOISE = 0.001
# How far apart two numbers may lie that six digits of one are.
SAME = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One measurement: what it was, and what was predicted.

    `error`: signed, predicted over measured less one. `spread`: of the measured repeats, relative.
    """

    __pydantic_config__ = {"extra": "forbid"}

    group: str
    name: str
    measured_s: float
    predicted_s: float
    error: float
    spread: float
    kernel_set: str

    @property
    def key(self) -> tuple[str, str]:
        """What measurements are joined on."""
        return (self.group, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """A figure over many measurements, smaller is better; it may grow by `noise`."""

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    value: float
    noise: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One writing of the ledger: when, with which profile, why, and what it changed."""

    __pydantic_config__ = {"extra": "forbid"}

    date_utc: str
    profile_digest: str
    reason: str
    changed: str


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """A GPU's measurements and predictions, figures over them, and how these came about."""

    __pydantic_config__ = {"extra": "forbid"}

    gpu: str
    profile_digest: str
    history: tuple[Update, ...]
    aggregates: tuple[Aggregate, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What makes the gate fail: the point or the aggregate, and what is wrong with it."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def check(ledger: Ledger, scored: Sequence[Scored]) -> list[Problem]:
    """Everything that is wrong, points first; nothing when the gate passes."""
    return [*lost(ledger, scored), *added(ledger, scored)]


def lost(ledger: Ledger, scored: Sequence[Scored]) -> list[Problem]:
    """What asks for less than the ledger: writing it needs a reason."""
    now = {(one.group, one.name): one for one in scored}
    points = [
        problem
        for entry in ledger.entries
        if (problem := _point_problem(entry, now.get(entry.key)))
    ]
    return [*points, *_aggregate_problems(ledger.aggregates, aggregates_of(scored))]


def added(ledger: Ledger, scored: Sequence[Scored]) -> list[Problem]:
    """What the ledger does not know yet."""
    points = {entry.key for entry in ledger.entries}
    figures = {one.name for one in ledger.aggregates}
    return [
        *(
            Problem(name=", ".join(key), text="was measured and is not in the ledger")
            for one in scored
            if (key := (one.group, one.name)) not in points
        ),
        *(
            Problem(name=one.name, text="is not in the ledger")
            for one in aggregates_of(scored)
            if one.name not in figures
        ),
    ]


def aggregates_of(scored: Sequence[Scored]) -> tuple[Aggregate, ...]:
    """Median and mean |error| of each group; what intervals and rankings lack, where they count."""
    found: list[Aggregate] = []
    for group, members in groups_of(scored).items():
        summary, noise = summary_of(one.error for one in members), noise_of(members)
        found += [
            _aggregate(f"{group}: median |error|", summary.median, noise),
            _aggregate(f"{group}: mean |error|", summary.mean, noise),
        ]
    covered = coverage_of(scored)
    if covered and covered.num >= MIN_INTERVALS:
        outside = max(0.0, MIN_COVERAGE - covered.covered, covered.covered - MAX_COVERAGE)
        scatter = math.sqrt(MIN_COVERAGE * (1 - MIN_COVERAGE) / covered.num)
        wide = max(0.0, covered.width_ratio - MAX_WIDTH_RATIO)
        found.append(_aggregate("intervals: coverage outside its bar", outside, scatter))
        # The median error is uncertain by about 1 / sqrt(n) of itself.
        found.append(_aggregate("intervals: width over its bar", wide, 3 / math.sqrt(covered.num)))
    if asked := asked_of(rank(scored)):
        wrong = float(sum(not pair.is_right for pair in asked))
        found.append(_aggregate("ranking: pairs the wrong way round", wrong, 0.0))
    return tuple(found)


def noise_of(members: Sequence[Scored]) -> float:
    """Two standard errors of a mean over members that scatter like the median one."""
    scatter = median(one.spread for one in members)
    return max(MIN_NOISE, 2 * scatter / math.sqrt(len(members)))


def entry_of(one: Scored) -> Entry:
    """A measurement as a line of the ledger."""
    return Entry(
        group=one.group,
        name=one.name,
        measured_s=_digits(one.measured_s),
        predicted_s=_digits(one.predicted_s),
        error=round(one.error, 5),
        spread=round(one.spread, 5),
        kernel_set=one.kernel_set,
    )


def read_ledger(path: Path) -> Ledger:
    """Read a ledger of this version or the one before; raises FileFormatError for any other."""
    data = read_json(path)
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise FileFormatError(f"{path}: does not say format={FORMAT!r}; is it a ledger?")
    version = data.pop("version", None)
    if version == 1:
        data |= {key: _unlearned(data.get(key)) for key in ("aggregates", "entries")}
    elif version != VERSION:
        raise FileFormatError(
            f"{path}: ledger version {version!r}, this program reads 1 and {VERSION}; write it again"
        )
    return validate(Ledger, data, str(path))


def read_ledger_of(gpu: str, path: Path) -> Ledger:
    """Read a GPU's ledger; raises what `read_ledger` does, and FileFormatError for another GPU's."""
    ledger = read_ledger(path)
    if ledger.gpu != gpu:
        raise FileFormatError(
            f"{path}: is the ledger of {ledger.gpu}, and the profile is of {gpu}; "
            "name that GPU's ledger"
        )
    return ledger


def _unlearned(lines: Any) -> Any:
    """Lines of version 1 without what they learned; anything else as it is, to be refused."""
    if not isinstance(lines, list):
        return lines
    return [
        {key: value for key, value in line.items() if key not in LEARNED}
        if isinstance(line, dict)
        else line
        for line in lines
    ]


def write_ledger(ledger: Ledger, path: Path) -> None:
    """Write it, whole or not at all, one point a line."""
    data: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "gpu": ledger.gpu,
        "profile_digest": ledger.profile_digest,
    }
    head = json.dumps(data, indent=1).removesuffix("\n}")
    parts = ",\n".join(
        f' "{name}": [\n{_lines(getattr(ledger, name))}\n ]'
        for name in ("history", "aggregates", "entries")
    )
    write_atomically(path, f"{head},\n{parts}\n}}\n")


def _lines(values: Iterable[Any]) -> str:
    return ",\n".join(f"  {json.dumps(asdict(value))}" for value in values)


def _point_problem(entry: Entry, one: Scored | None) -> Problem | None:
    if one is None:
        text = "is in the ledger and was not measured"
    elif entry.kernel_set != one.kernel_set:
        text = (
            f"ran kernel set {one.kernel_set!r} and the ledger is about {entry.kernel_set!r}: "
            "other kernels need a new trace and a new line"
        )
    elif abs(one.measured_s / entry.measured_s - 1) > SAME:
        text = f"was measured again: {one.measured_s:.6g} s, not {entry.measured_s:.6g} s"
    else:
        return None
    return Problem(name=", ".join(entry.key), text=text)


def _aggregate_problems(
    before: Iterable[Aggregate], after: Iterable[Aggregate]
) -> Iterator[Problem]:
    now = {one.name: one for one in after}
    for old in before:
        found = now.get(old.name)
        if found is None:
            yield Problem(name=old.name, text="is in the ledger and can no longer be told")
        elif is_worse(old, found):
            text = f"worsened from {old.value:.4f} to {found.value:.4f}; noise is {old.noise:.4f}"
            yield Problem(name=old.name, text=text)


def is_worse(old: Aggregate, new: Aggregate) -> bool:
    """By more than noise."""
    return new.value > old.value + old.noise + SAME


def _aggregate(name: str, value: float, noise: float) -> Aggregate:
    return Aggregate(name=name, value=round(value, 5), noise=round(noise, 5))


def _digits(seconds: float) -> float:
    """Six significant digits: more than any clock here has."""
    return float(f"{seconds:.6g}")

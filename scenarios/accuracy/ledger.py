"""The ledger of the accuracy gate: how far off each committed measurement was predicted, and may be.

A point leaves its tolerance, or a group's median or mean worsens by more than measurements scatter:
the gate fails and names it. Tolerances tighten by themselves and loosen for a written reason only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from layerwise.scenarios.accuracy.bars import BARS, groups_of
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
from layerwise.sim.plan.reading import read_json
from layerwise.sim.trace import write_atomically

FORMAT, VERSION = "layerwise-ledger", 1
# Predictions do not scatter: what is left to a point, or to a group's median, is for changes that
# nobody meant anything by.
MIN_SLACK, MIN_NOISE = 0.01, 0.001
# How far apart two numbers may lie that six digits of one are.
SAME = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One measurement: what it was, what was predicted, and how far a prediction may be off.

    `error`: signed, predicted over measured less one. `spread`: of the measured repeats, relative.
    `reason`: why `tolerance` was last loosened; empty where it never was.
    """

    group: str
    name: str
    measured_s: float
    predicted_s: float
    error: float
    tolerance: float
    spread: float
    kernel_set: str
    reason: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What measurements are joined on."""
        return (self.group, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """A figure over many measurements, smaller is better; it may grow by `noise`."""

    name: str
    value: float
    noise: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One writing of the ledger: when, with which profile, why, and what it changed."""

    date_utc: str
    profile_digest: str
    reason: str
    changed: str


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All that a GPU's gate holds predictions to."""

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
    entries = {entry.key: entry for entry in ledger.entries}
    now = {(one.group, one.name): one for one in scored}
    return [
        *(_problem(key, "is in the ledger and was not measured") for key in entries.keys() - now),
        *(_problem(key, "was measured and is not in the ledger") for key in now.keys() - entries),
        *(
            problem
            for key, one in now.items()
            if key in entries
            for problem in _point_problems(entries[key], one)
        ),
        *_aggregate_problems(ledger.aggregates, aggregates_of(scored)),
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


def least_tolerance(one: Scored) -> float:
    """What a point's tolerance is that was never loosened.

    What its group allows each, or where it misses that, its error and twice its spread.
    """
    slack = max(MIN_SLACK, 2 * one.spread)
    allowed = max(BARS[one.group].each, abs(one.error) + slack)
    return round(math.ceil(allowed * 1e3 - 1e-6) / 1e3, 3)


def entry_of(one: Scored, tolerance: float, reason: str = "") -> Entry:
    """A measurement as a line of the ledger."""
    return Entry(
        group=one.group,
        name=one.name,
        measured_s=_digits(one.measured_s),
        predicted_s=_digits(one.predicted_s),
        error=round(one.error, 5),
        tolerance=tolerance,
        spread=round(one.spread, 5),
        kernel_set=one.kernel_set,
        reason=reason,
    )


def was_measured_again(entry: Entry, one: Scored) -> bool:
    """Is this another measurement under the same name?"""
    return abs(one.measured_s / entry.measured_s - 1) > SAME or entry.kernel_set != one.kernel_set


def problems_as_data(ledger: Ledger, problems: Iterable[Problem]) -> dict[str, Any]:
    """The gate's verdict with stable keys."""
    found = [asdict(problem) for problem in problems]
    return {
        "gpu": ledger.gpu,
        "num_measurements": len(ledger.entries),
        "passes": not found,
        "problems": found,
    }


def read_ledger(path: Path) -> Ledger:
    """Raises FileFormatError for another format or version, or a tolerance that no run can keep."""
    from layerwise.sim.plan.files import validate

    data = read_json(path)
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise FileFormatError(f"{path}: does not say format={FORMAT!r}; is it a ledger?")
    if (version := data.pop("version", None)) != VERSION:
        raise FileFormatError(
            f"{path}: ledger version {version!r}, this program reads {VERSION}; write it again"
        )
    ledger: Ledger = validate(Ledger, data, str(path))
    _check_tolerances(path, ledger.entries)
    return ledger


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


def _check_tolerances(path: Path, entries: Iterable[Entry]) -> None:
    for entry in entries:
        if entry.tolerance < 2 * entry.spread:
            raise FileFormatError(
                f"{path}: {entry.name}: tolerance={entry.tolerance} is under twice its measured "
                f"spread={entry.spread}; use {2 * entry.spread:.3f} or more"
            )


def _problem(key: tuple[str, str], text: str) -> Problem:
    return Problem(name=f"{key[0]}, {key[1]}", text=text)


def _point_problems(entry: Entry, one: Scored) -> Iterable[Problem]:
    if entry.kernel_set != one.kernel_set:
        yield _problem(
            entry.key,
            f"ran kernel set {one.kernel_set!r} and the ledger is about {entry.kernel_set!r}: "
            "other kernels need a new trace and a new line",
        )
    elif was_measured_again(entry, one):
        yield _problem(
            entry.key, f"was measured again: {one.measured_s:.6g} s, not {entry.measured_s:.6g} s"
        )
    if abs(one.error) > entry.tolerance:
        yield _problem(
            entry.key,
            f"error {one.error:+.1%} is outside its tolerance of {entry.tolerance:.1%} "
            f"(it was {entry.error:+.1%})",
        )


def _aggregate_problems(
    before: Iterable[Aggregate], after: Iterable[Aggregate]
) -> Iterable[Problem]:
    now = {one.name: one for one in after}
    for old in before:
        found = now.pop(old.name, None)
        if found is None:
            yield Problem(name=old.name, text="is in the ledger and can no longer be told")
        elif is_worse(old, found):
            text = f"worsened from {old.value:.4f} to {found.value:.4f}; noise is {old.noise:.4f}"
            yield Problem(name=old.name, text=text)
    for name in now:
        yield Problem(name=name, text="is not in the ledger")


def is_worse(old: Aggregate, new: Aggregate) -> bool:
    """By more than noise."""
    return new.value > old.value + old.noise + SAME


def _aggregate(name: str, value: float, noise: float) -> Aggregate:
    return Aggregate(name=name, value=round(value, 5), noise=round(noise, 5))


def _digits(seconds: float) -> float:
    """Six significant digits: more than any clock here has."""
    return float(f"{seconds:.6g}")

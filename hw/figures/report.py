"""A figure's verdict, the table that people read, and the JSON that is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

FORMAT = "layerwise-figures"
Sense = Literal["at least", "at most", "below"]
Unit = Literal["share", "seconds", "ratio"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was asked and what was seen. `seen` None: it was not measured, `note` says why."""

    what: str
    sense: Sense
    bar: float
    seen: float | None
    unit: Unit
    note: str = ""

    @property
    def passes(self) -> bool:
        """Is the bar met? What was not measured meets nothing."""
        if self.seen is None:
            return False
        match self.sense:
            case "at least":
                return self.seen >= self.bar
            case "at most":
                return self.seen <= self.bar
            case "below":
                return self.seen < self.bar

    @property
    def word(self) -> str:
        """pass, MISS, or that nothing was measured."""
        if self.seen is None:
            return "not measured"
        return "pass" if self.passes else "MISS"


class Result(Protocol):
    """What a figure found: a frozen dataclass, so that it can be written as JSON."""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The bars it is held to; none where it only informs."""
        ...

    @property
    def lines(self) -> tuple[str, ...]:
        """What a person reads beside the verdicts."""
        ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One figure: what it found, or the problem that kept it from that."""

    name: str
    took_s: float
    result: Result | None = None
    problem: str = ""
    clocks: Mapping[str, str] = field(default_factory=dict)

    @property
    def passes(self) -> bool:
        """Was it measured, and is each bar met?"""
        return self.result is not None and all(v.passes for v in self.result.verdicts)


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """One line per verdict under a heading; a figure without one says whether it was measured."""
    rows = [("figure", "what", "bar", "seen", "verdict"), *_rows(outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    ]


def _rows(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str, str, str]]:
    rows: list[tuple[str, str, str, str, str]] = []
    for outcome in outcomes:
        if outcome.result is None:
            rows.append((outcome.name, outcome.problem, "", "", "FAILED"))
            continue
        if not outcome.result.verdicts:
            rows.append((outcome.name, "reported only", "", "", "measured"))
        for verdict in outcome.result.verdicts:
            bar = f"{verdict.sense} {shown(verdict.bar, verdict.unit)}"
            seen = "-" if verdict.seen is None else shown(verdict.seen, verdict.unit)
            word = f"{verdict.word}: {verdict.note}" if verdict.note else verdict.word
            rows.append((outcome.name, verdict.what, bar, seen, word))
    return rows


def shown(value: float, unit: Unit) -> str:
    """A value as a person reads it."""
    match unit:
        case "share":
            return f"{value:.1%}"
        case "seconds":
            return f"{1e6 * value:.2f} us"
        case "ratio":
            return f"{value:.3f}"


def write(
    path: Path, outcomes: Sequence[Outcome], environment: Mapping[str, str], command: str
) -> None:
    """Write all outcomes as JSON, whole or not at all."""
    whole = {
        "format": FORMAT,
        "command": command,
        "environment": dict(environment),
        "figures": {outcome.name: _as_data(outcome) for outcome in outcomes},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _as_data(outcome: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = {"took_s": outcome.took_s, "clocks": dict(outcome.clocks)}
    if outcome.result is None:
        return found | {"failed": outcome.problem}
    verdicts = [asdict(verdict) | {"passes": verdict.passes} for verdict in outcome.result.verdicts]
    result: Any = outcome.result
    return found | {"verdicts": verdicts, "result": asdict(result)}

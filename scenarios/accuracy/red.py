"""The list of what is in red, each with its cause: it must equal what is in red now.

A family is in red where a figure of it misses its bar, a point where it is farther off than its
family's bar allows each. People write the list; nothing here does, so that nothing is learned.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layerwise.scenarios.accuracy.bars import BARS, FAMILIES, is_beyond, rows_of
from layerwise.scenarios.accuracy.ledger import Problem
from layerwise.scenarios.accuracy.scored import Scored
from layerwise.sim.plan.errors import FileFormatError, SpecError, nearest
from layerwise.sim.plan.files import validate
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.plan.reading import read_toml


@dataclass(frozen=True, slots=True, order=True)
class Red:
    """One thing in red: a figure of a family (`what`: "median"), or one of its points, by name."""

    family: str
    what: str
    is_point: bool = False

    def __str__(self) -> str:
        return f"{self.family}, {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyInRed:
    """A `[[family]]` of the list: which figures of its bar a GPU's predictions miss, and why."""

    __pydantic_config__ = {"extra": "forbid"}

    gpu: str
    name: str
    misses: tuple[str, ...]
    cause: str

    def __post_init__(self) -> None:
        _require("gpu", self.gpu, GPUS)
        _require("name", self.name, FAMILIES)
        _require_words("cause", self.cause)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A `[[cause]]` of the list: why points of a family, by GPU, lie beyond its bar."""

    __pydantic_config__ = {"extra": "forbid"}

    family: str
    text: str
    points: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        _require("family", self.family, BARS)
        _require_words("text", self.text)
        for gpu in self.points:
            _require("points", gpu, GPUS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedList:
    """All that is known to be in red, of every GPU."""

    __pydantic_config__ = {"extra": "forbid"}

    family: tuple[FamilyInRed, ...] = ()
    cause: tuple[Cause, ...] = ()

    def of(self, gpu: str) -> list[Red]:
        """What is listed for one GPU."""
        families = [one for one in self.family if one.gpu == gpu]
        return [
            *(Red(one.name, figure) for one in families for figure in one.misses),
            *(
                Red(cause.family, name, is_point=True)
                for cause in self.cause
                for name in cause.points.get(gpu, ())
            ),
        ]


def reds_of(scored: Sequence[Scored]) -> dict[Red, str]:
    """What is in red now, and how far."""
    found = {
        Red(row.what, figure): how for row in rows_of(scored) for figure, how in row.misses.items()
    }
    return found | {
        Red(one.group, one.name, is_point=True): (
            f"{one.error:+.1%} where {BARS[one.group].each:.0%} is allowed"
        )
        for one in scored
        if is_beyond(one)
    }


def check_red(listed: RedList, gpu: str, scored: Sequence[Scored]) -> list[Problem]:
    """Newly red first, then listed and not in red; nothing when the list is what is in red."""
    now, known = reds_of(scored), set(listed.of(gpu))
    return [
        *(
            Problem(name=str(red), text=f"newly red, {now[red]}")
            for red in sorted(now.keys() - known)
        ),
        *(
            Problem(name=str(red), text="listed as red and is not; take it out of the list")
            for red in sorted(known - now.keys())
        ),
    ]


def to_list(listed: RedList, gpu: str, scored: Sequence[Scored]) -> str:
    """What is newly red as lines for the list, their causes left for people; empty if nothing."""
    news = sorted(reds_of(scored).keys() - set(listed.of(gpu)))
    tables: list[str] = []
    for family in dict.fromkeys(red.family for red in news):
        found = [red for red in news if red.family == family]
        if figures := [red.what for red in found if not red.is_point]:
            head = f"gpu = {json.dumps(gpu)}\nname = {json.dumps(family)}"
            tables.append(f'[[family]]\n{head}\nmisses = {json.dumps(figures)}\ncause = ""')
        if points := [red.what for red in found if red.is_point]:
            lines = "".join(f"  {json.dumps(name)},\n" for name in points)
            head = f'family = {json.dumps(family)}\ntext = ""'
            tables.append(f"[[cause]]\n{head}\npoints.{gpu} = [\n{lines}]")
    return "\n\n".join(tables)


def reds_as_data(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """What is in red now, with stable keys."""
    return [asdict(red) | {"how_far": how} for red, how in reds_of(scored).items()]


def read_red(path: Path) -> RedList:
    """Read the list; raises FileFormatError, and SpecError for what is unknown or has no cause."""
    listed: RedList = validate(RedList, read_toml(path), str(path))
    for gpu, red in _twice(listed):
        raise FileFormatError(f"{path}: {gpu}: {red} is listed twice; give it one cause")
    return listed


def _twice(listed: RedList) -> Iterator[tuple[str, Red]]:
    gpus = {one.gpu for one in listed.family} | {gpu for one in listed.cause for gpu in one.points}
    for gpu in sorted(gpus):
        for red, num in Counter(listed.of(gpu)).items():
            if num > 1:
                yield gpu, red


def _require(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise SpecError(key, value, "is not known", nearest(value, known))


def _require_words(key: str, value: str) -> None:
    if not value.strip():
        raise SpecError(key, value, "says nothing", "say why it is in red")

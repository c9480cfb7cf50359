"""A sweep file: a base scenario, axes over any of its keys, and the settings that they span.

Axes are multiplied, the last one varying fastest; those that `zip` names advance together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

from layerwise.scenarios.sweep.points import COLUMNS, DEFAULT_COLUMNS
from layerwise.scenarios.sweep.ranges import expand, is_range
from layerwise.sim.cost.model import Belief
from layerwise.sim.plan.errors import PlacementError, SpecError, UnknownKeyError, nearest
from layerwise.sim.plan.files import Written, validate
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.reading import read_toml
from layerwise.sim.plan.scenario import PlacementSpec, Scenario, Strategy, paper_scenario
from layerwise.sim.plan.tables import require_known, tables_of
from layerwise.sim.plan.units import parse_real, parse_whole

MAX_POINTS = 1_000_000
CONTEXT = "workload.context_tokens"

Settings = dict[str, object]
"""Dotted keys of a scenario and what they are set to."""


@dataclass(frozen=True, kw_only=True)
class BaseTable:
    """`[base]`: a scenario file beside the sweep file, or one of the paper's two strategies."""

    __pydantic_config__ = {"extra": "forbid"}

    scenario: str = ""
    paper: Strategy | None = None
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """A sweep file as a user writes it."""

    __pydantic_config__ = {"extra": "forbid"}

    base: BaseTable
    axes: dict[str, Any]
    name: str = ""
    beliefs: tuple[Belief, ...] = ("calibrated",)
    columns: tuple[str, ...] = DEFAULT_COLUMNS
    zip: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Axis:
    """Alternatives, each of which sets some keys; `keys` are those that the file writes."""

    keys: tuple[str, ...]
    alternatives: tuple[Settings, ...]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep file asks for. `columns`: the results to write, names of COLUMNS.

    `asked` is the base as it is written, `base` the scenario that it is by itself.
    """

    name: str
    asked: Written
    base: Scenario
    axes: tuple[Axis, ...]
    beliefs: tuple[Belief, ...]
    columns: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that varies, in the file's order."""
        return tuple(dict.fromkeys(key for axis in self.axes for key in axis.keys))

    @property
    def num_points(self) -> int:
        """Combinations, those with equal settings counted as often as they are written."""
        return math.prod(len(axis.alternatives) for axis in self.axes) * len(self.beliefs)

    def points(self) -> Iterator[tuple[Settings, Belief]]:
        """Every combination of alternatives under every belief."""
        for chosen in product(*(axis.alternatives for axis in self.axes)):
            settings = {key: value for one in chosen for key, value in one.items()}
            for belief in self.beliefs:
                yield settings, belief

    def in_running_order(self) -> Iterator[tuple[int, Settings, Belief]]:
        """Every point with its place among `points`; those that differ in context alone in a row.

        Such neighbours share most of what a prediction works out.
        """
        order = sorted(range(len(self.axes)), key=lambda index: CONTEXT in self.axes[index].keys)
        sizes = [len(axis.alternatives) for axis in self.axes]
        strides = [math.prod(sizes[index + 1 :]) * len(self.beliefs) for index in range(len(sizes))]
        for chosen in product(*(range(sizes[index]) for index in order)):
            picked = dict(zip(order, chosen, strict=True))
            place = sum(picked[index] * stride for index, stride in enumerate(strides))
            settings = {
                key: value
                for index, axis in enumerate(self.axes)
                for key, value in axis.alternatives[picked[index]].items()
            }
            for offset, belief in enumerate(self.beliefs):
                yield place + offset, settings, belief

    def resolve(self, settings: Settings) -> Scenario:
        """The scenario of one point. Raises what `Written.scenario` raises."""
        return replace(self.asked.scenario(settings), name=self.base.name)

    def written(self, settings: Settings) -> list[object]:
        """The values of `keys` at a point: what it sets, or what the base has."""
        return [settings[key] if key in settings else _at(self.base, key) for key in self.keys]


def load_sweep(path: Path, changes: Mapping[str, object] | None = None) -> Sweep:
    """Read a sweep file; `changes` are made to its base.

    Raises FileFormatError when it is not TOML; SpecError (or a kind of it) for a wrong key or a
    value that no point could take. What only some points refuse is found when they are run.
    """
    data = read_toml(path)
    for key, fix in (
        ("base", 'add a [base] table with scenario = "FILE.toml" or paper = "layer-wise"'),
        ("axes", 'add an [axes] table, as in "workload.batch_size" = [1, 8, 64]'),
    ):
        if key not in data:
            raise SpecError(key, None, "is missing", fix, str(path))
    file: SweepFile = validate(SweepFile, data, str(path))
    asked = _base(file.base, path).with_settings(changes or {})
    asked.scenario()
    try:
        return _sweep(file, asked, file.name or path.stem)
    except SpecError as error:
        raise error.in_file(str(path)) from error


def _base(table: BaseTable, path: Path) -> Written:
    if bool(table.scenario) == (table.paper is not None):
        raise SpecError(
            "base.scenario",
            table.scenario or None,
            f"and base.paper are {'both' if table.paper else 'not'} given",
            'give one: scenario = "FILE.toml" or paper = "layer-wise"',
            str(path),
        )
    if table.paper is None:
        if table.model:
            raise SpecError(
                "base.model",
                table.model,
                "goes with base.paper alone",
                "set it in the scenario file",
                str(path),
            )
        file = path.parent / table.scenario
        return Written(read_toml(file), str(file))
    model = table.model or "paper-16"
    if model not in MODELS:
        fix = nearest(model, MODELS)
        raise SpecError("base.model", model, "is not known", fix, str(path))
    return Written(tables_of(paper_scenario(table.paper, model)))


def _sweep(file: SweepFile, asked: Written, name: str) -> Sweep:
    _refuse_unknown_columns(file.columns)
    for key, given in (("beliefs", file.beliefs), ("columns", file.columns)):
        if not given or len(set(given)) < len(given):
            raise SpecError(key, list(given), "is empty or repeats itself", "name each once")
    axes = {key: _axis(asked, key, value) for key, value in _flattened(file.axes)}
    sweep = Sweep(
        name=name,
        asked=asked,
        base=asked.scenario(),
        axes=_zipped(axes, file.zip),
        beliefs=file.beliefs,
        columns=file.columns,
    )
    _refuse_shared_keys(sweep.axes)
    for axis in sweep.axes:
        if len({repr(sorted(one.items())) for one in axis.alternatives}) < len(axis.alternatives):
            raise SpecError(
                f"axes.{axis.keys[0]}",
                len(axis.alternatives),
                "values are not all different",
                "write each once",
            )
    if sweep.num_points > MAX_POINTS:
        raise SpecError(
            "axes",
            sweep.num_points,
            f"points are more than {MAX_POINTS}",
            "take fewer or coarser axes, or several files",
        )
    return sweep


def _refuse_unknown_columns(columns: tuple[str, ...]) -> None:
    for name in columns:
        if name not in COLUMNS:
            raise UnknownKeyError("columns", name, "is not a known column", nearest(name, COLUMNS))


def _refuse_shared_keys(axes: tuple[Axis, ...]) -> None:
    owners: dict[str, Axis] = {}
    for axis in axes:
        for key in {key for one in axis.alternatives for key in one}:
            other = owners.setdefault(key, axis)
            if other is not axis:
                raise SpecError(
                    f"axes.{key}",
                    list(axis.keys),
                    f"is also set by {list(other.keys)}",
                    "keep one of the two axes",
                )


def _flattened(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Axes by dotted key: `workload.batch_size = [...]` without quotes is a table in a table."""
    for name, value in table.items():
        if isinstance(value, dict) and not is_range(value):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _zipped(axes: dict[str, Axis], groups: tuple[tuple[str, ...], ...]) -> tuple[Axis, ...]:
    """Each group as one axis, at the place of its first key."""
    made: dict[str, Axis] = dict(axes)
    for group in groups:
        for key in group:
            if key not in axes:
                raise UnknownKeyError("zip", key, "is not an axis", nearest(key, axes))
            if key not in made or group.count(key) > 1:
                raise SpecError("zip", key, "is named twice", "name each axis once")
        lengths = {key: len(axes[key].alternatives) for key in group}
        if len(set(lengths.values())) != 1:
            raise SpecError(
                "zip",
                list(group),
                f"has axes of unequal length: {lengths}",
                "give each as many values",
            )
        rows = zip(*(axes[key].alternatives for key in group), strict=True)
        together = Axis(
            tuple(name for key in group for name in axes[key].keys),
            tuple({k: v for one in row for k, v in one.items()} for row in rows),
        )
        made = {
            key: together if key == group[0] else axis
            for key, axis in made.items()
            if key == group[0] or key not in group
        }
    return tuple(made.values())


def _axis(asked: Written, key: str, value: Any) -> Axis:
    if isinstance(value, dict):
        return Axis((key,), tuple({key: one} for one in _range(asked, key, value)))
    if not isinstance(value, list) or not value:
        raise SpecError(
            f"axes.{key}",
            value,
            "is not a list of values",
            "write [1, 8, 64], or {from = 1, to = 1024, factor = 2}",
        )
    alternatives = [_alternative(asked, key, one) for one in value]
    keys = dict.fromkeys(name for one in alternatives for name in one)
    if key == "placement":
        keys = {name: None for name in keys if any(_last(name) in one for one in value)}
    return Axis(tuple(keys), tuple(alternatives))


def _alternative(asked: Written, key: str, written: Any) -> Settings:
    """One value, or a table of values that go together.

    A `placement` is a whole one: what it does not name is as in a file without it.
    """
    if not isinstance(written, dict):
        return {key: _checked(asked, key, written)}
    found = {name: _checked(asked, name, value) for name, value in _flattened(written, f"{key}.")}
    if not found:
        raise SpecError(f"axes.{key}", written, "is empty", "name what it sets")
    if key == "placement":
        found = {f"{key}.{f.name}": f.default for f in fields(PlacementSpec)} | found
    return found


def _checked(asked: Written, key: str, written: Any) -> object:
    """The value in SI units. Raises SpecError for one that cannot be meant, whatever the rest is."""
    kind = require_known(key, written)
    if kind in (int, float):
        return (parse_real if kind is float else parse_whole)(key, str(written))
    try:
        asked.scenario({key: written})
    except PlacementError:
        pass  # it may go with what other axes set
    except SpecError as error:
        if isinstance(error, UnknownKeyError) or error.key == key:
            raise
    return written


def _range(asked: Written, key: str, table: dict[str, Any]) -> list[int] | list[float]:
    start = _checked(asked, key, table.get("from", table.get("to")))
    if not _is_number(start):
        raise SpecError(f"axes.{key}", table, "is a range of no numbers", "list the values")
    return expand(key, table, whole=isinstance(start, int))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _at(base: Scenario, key: str) -> Any:
    """What the base has at a key: a table by its name; None for what it does not say itself."""
    found: Any = reduce(lambda spec, name: getattr(spec, name, None), key.split("."), base)
    return getattr(found, "name", found) if is_dataclass(found) else found

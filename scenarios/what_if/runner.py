"""Runs a what-if: its axes by the paper's question, each point simulated, an answer from all of them.

A script declares a `WHAT_IF`. Everything it says about hardware and workload it says as changes to
the paper's two scenarios, by key, so that a user's `--set` goes the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise, product
from typing import Any

import layerwise as lw
from layerwise.calibration.data import profile_path
from layerwise.sim.cost.model import Belief
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.overrides import nearest, with_values
from layerwise.sim.plan.scenario import Scenario, Strategy, paper_scenario
from layerwise.sim.plan.units import parse_real, parse_whole
from layerwise.sim.predict import Prediction
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import best_belief, fill_kernels, reserved_bytes
from layerwise.sim.uncertainty import Interval, around, half_width_of_ratio

Value = int | float | str
Cell = Value | bool | Interval | None
Row = dict[str, Any]
Changes = Mapping[str, object]

ONE_SHOT = "all_reduce.one_shot"


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Curves of `ys` over `x`; `mark` draws a level. Where a row has `KEY_90`, a band."""

    x: str
    ys: tuple[str, ...]
    log_x: bool = True
    log_y: bool = False
    mark: float | None = None


@dataclass(frozen=True, kw_only=True)
class Map:
    """`value` over `x` and `y`, its crossover at 0 drawn; as text one table of it."""

    x: str
    y: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One group of bars for each row, called by its `label`."""

    label: str
    values: tuple[str, ...]
    log_x: bool = False


Picture = Lines | Map | Bars


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """A question. `point(asked, **axes)` gives the rows of one point, `answer(rows)` a sentence.

    `base` changes the paper's scenarios unless the user says otherwise. Axes that are `closed` take
    no other values than their own.
    """

    question: str
    axes: Mapping[str, tuple[Value, ...]]
    point: Callable[..., Row | list[Row]]
    answer: Callable[[list[Row]], str]
    picture: Picture
    base: Changes = field(default_factory=dict[str, object])
    closed: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Pair:
    """Both placements of one scenario; the baseline is the faster of its all-reduces."""

    baseline: Prediction
    layer_wise: Prediction

    @property
    def gain(self) -> float:
        """Layer-wise over the baseline, less one."""
        return self.layer_wise.tokens_per_s / self.baseline.tokens_per_s - 1

    @property
    def gain_90(self) -> Interval | None:
        """Its 90 % interval; None without a calibrated prediction."""
        ours, theirs = self.layer_wise.uncertainty, self.baseline.uncertainty
        if ours is None or theirs is None:
            return None
        ratio = around(1 + self.gain, half_width_of_ratio(ours, theirs))
        return Interval(ratio.low - 1, ratio.high - 1)

    @property
    def fits(self) -> bool:
        """Do both fit in memory?"""
        return self.baseline.fits and self.layer_wise.fits

    @property
    def rates(self) -> Row:
        """The columns that most what-ifs end with."""
        return {
            "baseline_tokens_per_s": self.baseline.tokens_per_s,
            "layer_wise_tokens_per_s": self.layer_wise.tokens_per_s,
            "gain": self.gain,
            "gain_90": self.gain_90,
            "fits": self.fits,
        }


@dataclass(frozen=True)
class Asked:
    """Predicts the paper's scenarios with a script's and a user's changes, by `layerwise.predict`.

    `profile` replaces the shipped one of its GPU; a GPU without one is predicted uncalibrated.
    """

    base: Changes = field(default_factory=dict[str, object])
    settings: Changes = field(default_factory=dict[str, object])
    profile: Profile | None = None
    _profiles: dict[str, Profile | None] = field(default_factory=dict)

    def profile_of(self, gpu: str) -> Profile | None:
        """Return the profile for a GPU type, if there is one."""
        if gpu not in self._profiles:
            given = self.profile if self.profile and self.profile.gpu == gpu else None
            shipped = not given and profile_path(gpu).exists()
            self._profiles[gpu] = lw.shipped_profile(gpu) if shipped else given
        return self._profiles[gpu]

    @property
    def digests(self) -> dict[str, str]:
        """What was predicted with, by GPU type; "" where there is no profile."""
        return {gpu: found.digest if found else "" for gpu, found in self._profiles.items()}

    def scenario(self, strategy: Strategy, changes: Changes | None = None) -> Scenario:
        """One of the paper's two, changed.

        Raises SpecError where the user set what this question varies, and what `with_values` does.
        """
        own = changes or {}
        for key in own:
            if key in self.settings:
                raise SpecError(
                    f"--set {key}",
                    self.settings[key],
                    "is what this question varies",
                    "give its values with --axis",
                )
        values = {**self.base, **self.settings, **own}
        base = paper_scenario(strategy)
        return with_values(base, values) if values else base

    def predict(self, scenario: Scenario, belief: Belief | None = None) -> Prediction:
        """Predict, calibrated where there is a profile, unless `belief` says otherwise."""
        profile = self.profile_of(scenario.cluster.gpu.name)
        return lw.predict(scenario, profile=profile, belief=belief).prediction

    def reserved_bytes(self, scenario: Scenario) -> int:
        """Return the bytes on a GPU that are not the program's own: context, libraries, graphs."""
        profile = self.profile_of(scenario.cluster.gpu.name)
        return reserved_bytes(best_belief(profile), profile)

    def layer_wise(self, changes: Changes | None = None) -> Prediction:
        """The paper's proposal."""
        return self.predict(self.scenario("layer-wise", changes))

    def baseline(self, changes: Changes | None = None) -> Prediction:
        """The paper's baseline, by the fastest all-reduce that its profile has a table of.

        A user's own all-reduce is the only one.
        """
        scenario = self.scenario("tensor-pipeline", changes)
        profile = self.profile_of(scenario.cluster.gpu.name)
        if scenario.given_all_reduce:
            return self.predict(scenario)
        kernels = fill_kernels(scenario, profile).kernels_on()
        found = [self.predict(replace(scenario, kernels=replace(kernels, all_reduce="nccl")))]
        group = min(scenario.placement.tensor_parallel, scenario.cluster.gpus_per_node)
        if profile and f"{ONE_SHOT}.{group}" in profile.transfers:
            # The number of microbatches is a matter of weights and bubbles, not of the algorithm.
            same = scenario.with_microbatches(found[0].num_microbatches)
            shot = replace(same, kernels=replace(kernels, all_reduce="one_shot"))
            found.append(self.predict(shot))
        return max(found, key=lambda each: each.tokens_per_s)

    def pair(
        self,
        changes: Changes | None = None,
        *,
        baseline: Changes | None = None,
        layer_wise: Changes | None = None,
    ) -> Pair:
        """Both, with changes that both have and changes of their own."""
        own = changes or {}
        return Pair(
            self.baseline({**own, **(baseline or {})}),
            self.layer_wise({**own, **(layer_wise or {})}),
        )


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A what-if's rows and its answer; `profiles`: what it was predicted with, by GPU."""

    name: str
    what_if: WhatIf
    axes: Mapping[str, tuple[Value, ...]]
    settings: Changes
    rows: list[Row]
    answer: str
    profiles: Mapping[str, str]


def ask(
    name: str,
    what_if: WhatIf,
    *,
    settings: Changes | None = None,
    axes: Sequence[str] = (),
    profile: Profile | None = None,
) -> Answered:
    """Simulate every point. Raises SpecError for an axis or a setting that does not go."""
    asked = Asked(what_if.base, settings or {}, profile)
    chosen = {**what_if.axes, **parse_axes(axes, what_if.axes)}
    for axis in what_if.closed:
        own = [str(value) for value in what_if.axes[axis]]
        for value in chosen[axis]:
            if str(value) not in own:
                raise SpecError(axis, value, "is not one of its values", nearest(str(value), own))
    rows: list[Row] = []
    for values in product(*chosen.values()):
        at = dict(zip(chosen, values, strict=True))
        found = what_if.point(asked, **at)
        rows += [{**at, **row} for row in (found if isinstance(found, list) else [found])]
    return Answered(
        name=name,
        what_if=what_if,
        axes=chosen,
        settings=dict(settings or {}),
        rows=rows,
        answer=what_if.answer(rows),
        profiles=asked.digests,
    )


def parse_axes(
    given: Iterable[str], known: Mapping[str, tuple[Value, ...]]
) -> dict[str, tuple[Value, ...]]:
    """`NAME=VALUE,VALUE`, each of the kind that its axis has; raises SpecError for anything else."""
    found: dict[str, tuple[Value, ...]] = {}
    for text in given:
        name, equals, values = (part.strip() for part in text.partition("="))
        if not (equals and values):
            raise SpecError(
                "--axis",
                text,
                "is not NAME=VALUE,VALUE",
                "write it like --axis batch_size=1,16,128",
            )
        if name not in known:
            raise SpecError(
                "--axis",
                name,
                "is no axis of this question",
                nearest(name, known) if known else "it has none",
            )
        if name in found:
            raise SpecError("--axis", text, f"gives {name} again", "keep one of them")
        kind = type(known[name][0])
        found[name] = tuple(_parsed(name, part.strip(), kind) for part in values.split(","))
    return found


def _parsed(name: str, text: str, kind: type) -> Value:
    if kind is str:
        return text
    return parse_whole(name, text) if kind is int else parse_real(name, text)


def answered_as_data(answered: Answered) -> dict[str, Any]:
    """For machines: SI units in the names, figures as they were computed."""

    def plain(cell: Cell) -> Any:
        return asdict(cell) if isinstance(cell, Interval) else cell

    return {
        "what_if": answered.name,
        "question": answered.what_if.question,
        "answer": answered.answer,
        "axes": {k: list(v) for k, v in answered.axes.items()},
        "settings": dict(answered.settings),
        "profiles": dict(answered.profiles),
        "rows": [{key: plain(cell) for key, cell in row.items()} for row in answered.rows],
    }


def crossing(rows: Sequence[Row], x: str, y: str, level: float) -> tuple[Value, Value] | None:
    """The two neighbours between which `y` first reaches a level, or falls below it, along `x`."""
    for low, high in pairwise(rows):
        if (low[y] < level) != (high[y] < level):
            return low[x], high[x]
    return None

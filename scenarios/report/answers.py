"""What the explorer answers: two predictions side by side, as rows and charts."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from layerwise.scenarios import tables
from layerwise.scenarios.predict.beliefs import on_chip_line, unfitted_sentences
from layerwise.scenarios.report.charts import BOUND_NAMES, bottlenecks
from layerwise.scenarios.report.markup import visible
from layerwise.scenarios.report.of_scenario import memory_chart, step_timeline
from layerwise.scenarios.report.questions import (
    CONTROLS,
    START,
    defaults_of,
    scenarios_of,
    settings_of,
)
from layerwise.scenarios.report.sections import shares_of
from layerwise.sim.cost.model import Belief, CostModel
from layerwise.sim.plan.errors import LayerwiseError
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.model import MODELS, ModelSpec
from layerwise.sim.plan.scenario import Scenario, place
from layerwise.sim.predict import Prediction, predict_plan
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import best_belief, resolve

MAX_RANKS, MAX_SLICES, MAX_ANSWERS, MAX_COSTS = 2, 1_000, 256, 16


@dataclass
class Explorer:
    """Answers questions one at a time, and remembers what it answered.

    `profiles`: the profile of a GPU type, or None. `models`: what `model` may name; `start`: the
    one that is asked about first.
    """

    profiles: Callable[[str], Profile | None]
    models: Mapping[str, ModelSpec] = field(default_factory=lambda: dict(MODELS))
    start: str = START
    _answers: OrderedDict[str, dict[str, Any]] = field(default_factory=OrderedDict)
    _costs: OrderedDict[tuple[ClusterSpec, Belief], CostModel] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Rows, charts and notes; or only `message`, where what was given does not go."""
        try:
            settings = settings_of(given, self.models, self.start)
            with self._lock:
                return self._remembered(settings)
        except LayerwiseError as error:
            return {"message": visible(error)}

    def _remembered(self, settings: dict[str, str]) -> dict[str, Any]:
        # A model is named unless it is everybody's default: another server starts on another.
        here = defaults_of(self.start)
        key = urlencode(
            {k: v for k, v in settings.items() if v != CONTROLS[k].default or v != here[k]}
        )
        if key not in self._answers:
            begin = time.perf_counter()
            made = self._made(settings)
            self._answers[key] = made | {"query": key, "took_s": time.perf_counter() - begin}
            while len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
        return self._answers[key]

    def _made(self, settings: Mapping[str, str]) -> dict[str, Any]:
        profile = self.profiles(settings["gpu"])
        scenarios = scenarios_of(settings, self.models, profile)
        found = {name: self._predict(scenario, profile) for name, scenario in scenarios.items()}
        fullest = {
            name: max(each.memory, key=lambda b: b.total_bytes) for name, each in found.items()
        }
        charts = (
            bottlenecks({name: shares_of(each) for name, each in found.items()}),
            memory_chart(fullest),
            step_timeline(found, MAX_RANKS, MAX_SLICES),
        )
        return {
            "message": "",
            "headline": _headline(found),
            "columns": ["", *found],
            "rows": [[label, *(show(each) for each in found.values())] for label, show in LINES],
            "charts": [chart.as_data for chart in charts],
            "notes": _notes(scenarios, found, profile),
        }

    def _predict(self, scenario: Scenario, profile: Profile | None) -> Prediction:
        belief = best_belief(profile)
        key = scenario.cluster, belief
        plan = resolve(scenario, profile, belief, cost=self._costs.get(key))
        self._costs[key] = plan.cost
        if len(self._costs) > MAX_COSTS:
            self._costs.popitem(last=False)
        return predict_plan(plan)


def _interval(found: Prediction) -> str:
    ends = found.tokens_per_s_interval
    return tables.span(ends.low, ends.high, tables.number) if ends else "none"


def _bottleneck(found: Prediction) -> str:
    shares = shares_of(found)
    most = max(shares, key=lambda bound: shares[bound])
    return f"{BOUND_NAMES[most]}, {shares[most]:.0%} of the step"


LINES: Sequence[tuple[str, Callable[[Prediction], str]]] = (
    ("tokens/s", lambda p: tables.number(p.tokens_per_s)),
    ("90 % interval", _interval),
    ("tokens/s per GPU", lambda p: tables.number(p.tokens_per_s / len(p.memory))),
    ("time between two tokens of a sequence", lambda p: tables.seconds(p.tpot_s)),
    ("1 / throughput", lambda p: tables.seconds(p.inverse_throughput_s)),
    ("bottleneck", _bottleneck),
    ("bubble", lambda p: tables.percent(p.bubble)),
    ("microbatches", lambda p: str(p.num_microbatches)),
    (
        "memory of the fullest GPU",
        lambda p: (
            f"{tables.gigabytes(p.peak_memory_bytes)} GB of "
            f"{tables.gigabytes(p.memory[0].capacity_bytes)} GB"
        ),
    ),
    ("fits", lambda p: "yes" if p.fits else "no"),
)


def _headline(found: Mapping[str, Prediction]) -> str:
    (name, ours), *others = found.items()
    said = f"{name}: {ours.tokens_per_s:,.0f} tokens/s"
    for other, theirs in others:
        said += f", {tables.signed(ours.tokens_per_s / theirs.tokens_per_s - 1)} against {other}"
    unfit = [each for each, prediction in found.items() if not prediction.fits]
    return said + (f"; {' and '.join(unfit)} would not fit in memory" if unfit else "")


def _notes(
    scenarios: Mapping[str, Scenario], found: Mapping[str, Prediction], profile: Profile | None
) -> list[str]:
    gpu = next(iter(scenarios.values())).cluster.gpu.name
    notes = [
        f"Calibrated with profile {profile.name} {profile.digest}."
        if profile
        else f"Uncalibrated: there is no profile for {gpu}."
    ]
    for name, scenario in scenarios.items():
        if line := on_chip_line(scenario, place(scenario)):
            notes.append(f"{name}: {line}.")
        if beyond := found[name].num_extrapolated_ops:
            notes.append(f"{name}: {beyond:,} ops of a step lie outside what was calibrated.")
        notes += [f"{name}: {said}." for said in unfitted_sentences(scenario, found[name])]
    return [visible(note) for note in dict.fromkeys(notes)]

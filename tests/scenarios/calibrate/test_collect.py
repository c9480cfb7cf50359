"""Collecting: task by task, kept when there, stopped in time, with pretended instruments."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerwise.calibration.selection import (
    engine_layers,
    fit_layers,
    seasoning_layers,
    two_gpu_runs,
    validation_layers,
)
from layerwise.scenarios.calibrate.collect import (
    DEFAULT_TASKS,
    FIT_SCENARIOS,
    GPU_KERNELS,
    TASKS,
    Collected,
    Instruments,
    collect,
    tasks_of,
)
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.trace import Trace, read_trace

CURVE = [(1048576, 1.5e-6), (2097152, 2e-6)]


class Pretended:
    """Instruments that note what they are asked."""

    def __init__(self, points_left: int = 0) -> None:
        self.asked: list[str] = []
        self.budgets_s: list[float] = []
        self.kernels: set[Any] = set()
        self._points_left = points_left

    @property
    def instruments(self) -> Instruments:
        return Instruments(
            environment=lambda: {"gpu": "pretended"},
            curve=self._curve,
            stage=self._trace,
            layer=self._trace,
            programs=self._programs,
            pairs=lambda: nullcontext(self._trace),
            in_both=self._programs,
        )

    def _curve(self, task: str) -> list[tuple[int, float]]:
        self.asked.append(task)
        return CURVE

    def _trace(self, scenario: Scenario) -> Trace:
        self.asked.append(scenario.name)
        self.kernels.add(scenario.kernels)
        return Trace(
            source="measured",
            name=scenario.name,
            scenario={},
            kernel_set="k",
            untraced_step_s=(1e-3,),
        )

    def _programs(self, points: Iterable[tuple[str, Any]], out: Path, budget_s: float) -> int:
        self.asked.append(f"{len(list(points))} points to {out.name}")
        self.budgets_s.append(budget_s)
        return self._points_left


def run(pretended: Pretended, out: Path, *what: str, budget_s: float = 600.0) -> Collected:
    return collect(out, budget_s, tasks_of(what), lambda line: None, pretended.instruments)


def test_by_default_all_that_a_fit_needs_is_collected(tmp_path: Path) -> None:
    pretended = Pretended()
    stages = sorted(path.stem for path in FIT_SCENARIOS.glob("*.toml"))

    assert Collected() == run(pretended, tmp_path)
    own = ["1091 points to split-kv.jsonl", "950 points to skinny.jsonl"]
    assert ["read-curve", *stages, "3117 points to sweep.jsonl", *own] == pretended.asked
    assert {"gpu": "pretended"} == json.loads((tmp_path / "environment.json").read_text())
    assert "fit" == read_trace(tmp_path / "h2048-decode.jsonl").purpose


@pytest.mark.parametrize(("task", "count"), [("supplement", 990), ("unseen", 429)])
def test_points_go_to_a_file_of_their_own(tmp_path: Path, task: str, count: int) -> None:
    pretended = Pretended(points_left=4)

    assert Collected(num_missing=4) == run(pretended, tmp_path, task, budget_s=50.0)
    assert [f"{count} points to {task}.jsonl"] == pretended.asked
    assert 40.0 < pretended.budgets_s[0] <= 50.0


@pytest.mark.parametrize(
    ("task", "purpose", "layers"),
    [("fit-layers", "fit", fit_layers()), ("validation-layers", "validation", validation_layers())],
)
def test_layers_are_traces_with_their_purpose(
    tmp_path: Path, task: str, purpose: str, layers: list[Scenario]
) -> None:
    pretended = Pretended()

    assert Collected() == run(pretended, tmp_path, task)
    assert [layer.name for layer in (*seasoning_layers(), *layers)] == pretended.asked
    assert {GPU_KERNELS} == pretended.kernels
    assert {purpose} == {read_trace(path).purpose for path in (tmp_path / "layers").iterdir()}


def test_layers_that_are_there_season_nothing(tmp_path: Path) -> None:
    run(Pretended(), tmp_path, "fit-layers")
    again = Pretended()
    run(again, tmp_path, "fit-layers")

    assert [] == again.asked


def test_layers_whose_context_grows_take_the_kernel_that_can(tmp_path: Path) -> None:
    pretended = Pretended()
    growing = [layer for layer in engine_layers() if layer.run.context_growth_tokens]

    assert Collected() == run(pretended, tmp_path, "engine-layers")
    assert [layer.name for layer in (*seasoning_layers(), *engine_layers())] == pretended.asked
    assert {GPU_KERNELS, replace(GPU_KERNELS, decode_attention="split_kv")} == pretended.kernels
    assert growing


def test_runs_on_two_gpus_are_kept_apart_from_layers(tmp_path: Path) -> None:
    run(Pretended(), tmp_path, "two-gpus")
    names = {f"{each.name}.jsonl.gz" for each in two_gpu_runs("h100-sxm")}

    assert names == {path.name for path in (tmp_path / "pairs").iterdir()}


def test_scored_curve_has_the_form_of_the_fitted_one(tmp_path: Path) -> None:
    run(Pretended(), tmp_path, "read-curve-scored")

    assert [list(pair) for pair in CURVE] == (
        json.loads((tmp_path / "read_curve_scored.json").read_text())
    )


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    tasks = ("read-curve", "stages", "fit-layers", "read-curve-scored")
    run(Pretended(), tmp_path, *tasks)
    again = Pretended()

    assert Collected() == run(again, tmp_path, *tasks)
    assert [] == again.asked


def test_without_budget_nothing_is_measured_and_all_is_missing(tmp_path: Path) -> None:
    pretended = Pretended()
    found = run(pretended, tmp_path, "read-curve-scored,fit-layers", "stages", budget_s=0.0)

    assert Collected(num_missing=1 + len(fit_layers()) + 10) == found
    assert [] == pretended.asked


def test_tasks_come_one_by_one_or_with_commas() -> None:
    assert ("unseen", "sweep", "fit-layers") == tasks_of(["unseen, sweep", "fit-layers", "sweep"])
    assert DEFAULT_TASKS == tasks_of([])


def test_unknown_task_names_all() -> None:
    with pytest.raises(SpecError, match=", ".join(TASKS)):
        tasks_of(["sweeps"])


def test_a_gpu_nobody_knows_leaves_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with pytest.raises(SpecError, match="--gpu='h1000' is not known"):
        collect(out, 600.0, ("stages",), lambda line: None, Pretended().instruments, "h1000")

    assert not (tmp_path / "new").exists()


def test_what_was_measured_before_a_refusal_is_kept(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--gpu"):
        collect(
            tmp_path / "out",
            600.0,
            ("read-curve", "stages"),
            lambda line: None,
            Pretended().instruments,
            "h1000",
        )

    assert ["environment.json", "read_curve.json"] == sorted(
        path.name for path in (tmp_path / "out").iterdir()
    )

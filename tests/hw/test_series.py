"""Scenarios measured in a row: resumed by name, stopped by a budget, no failure stops the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.hw.measure import measure
from layerwise.hw.series import Measure, Outcome, measure_scenarios, trace_path
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.trace import Trace, read_trace
from tests.hw.scenes import scenario


def named(*names: str) -> list[Scenario]:
    return [replace(scenario(), name=name) for name in names]


def pretend(asked: Scenario) -> Trace:
    if asked.name.startswith("bad"):
        raise ValueError("no such kernel")
    return Trace(
        source="measured", name=asked.name, scenario={}, kernel_set="k", untraced_step_s=(1e-3,)
    )


def run(
    folder: Path, scenarios: list[Scenario], *, measure: Measure = pretend, budget_s: float = 60.0
) -> Outcome:
    return measure_scenarios(
        scenarios,
        measure=measure,
        folder=folder / "layers",
        purpose="validation",
        budget_s=budget_s,
        failed=folder / "failed.jsonl",
        progress=lambda line: None,
    )


def test_each_scenario_is_a_trace_with_the_purpose(tmp_path: Path) -> None:
    assert Outcome(0, 0) == run(tmp_path, named("a", "b"))
    traces = [read_trace(tmp_path / "layers" / f"{name}.jsonl.gz") for name in ("a", "b")]
    assert [("a", "validation"), ("b", "validation")] == [(t.name, t.purpose) for t in traces]


def test_what_has_a_trace_is_not_measured_again(tmp_path: Path) -> None:
    run(tmp_path, named("a", "b"))
    measured: list[str] = []

    def note(asked: Scenario) -> Trace:
        measured.append(asked.name)
        return pretend(asked)

    assert Outcome(0, 0) == run(tmp_path, named("a", "b", "c"), measure=note)
    assert ["c"] == measured


def test_a_failure_is_noted_and_the_next_one_measured(tmp_path: Path) -> None:
    assert Outcome(1, 1) == run(tmp_path, named("bad", "good"))
    assert trace_path(tmp_path / "layers", named("good")[0]).exists()
    (line,) = (tmp_path / "failed.jsonl").read_text().splitlines()
    assert {"name": "bad", "failed": "ValueError: no such kernel"} == json.loads(line)


def test_a_used_up_budget_stops_before_the_next_one(tmp_path: Path) -> None:
    assert Outcome(3, 0) == run(tmp_path, named("a", "b", "c"), budget_s=0.0)
    assert not (tmp_path / "layers").exists()


def test_one_that_may_not_end_in_time_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("layerwise.hw.series.time.monotonic", lambda: now_s[0])

    def slow(asked: Scenario) -> Trace:
        now_s[0] += 10.0
        return pretend(asked)

    assert Outcome(1, 0) == run(tmp_path, named("a", "b", "c"), measure=slow, budget_s=25.0)


def test_the_engine_measures_them(tmp_path: Path) -> None:
    def on_cpu(asked: Scenario) -> Trace:
        trace = measure(asked, timing="clock", traced_repeats=2, device="cpu", read_bytes_per_s=1e9)
        assert trace is not None
        return trace

    alone = replace(scenario(), name="alone")
    assert Outcome(0, 0) == run(tmp_path, [alone], measure=on_cpu)
    trace = read_trace(tmp_path / "layers" / "alone.jsonl.gz")
    assert (4, 2) == (len(trace.untraced_step_s), len(trace.traced_step_s))
    assert 1e9 == trace.measured["read_bandwidth_bytes_per_s"]

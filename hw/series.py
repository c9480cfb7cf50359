"""Measure many scenarios, one after another, in one process: resumable, each a trace of its own."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from layerwise.hw.sweep import let_go
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.trace import Trace, write_trace

Progress = Callable[[str], None]
Measure = Callable[[Scenario], Trace]


@dataclass(frozen=True)
class Outcome:
    """How many scenarios still have no trace, and how many of those were tried and failed."""

    num_missing: int = 0
    num_failed: int = 0


def measure_scenarios(
    scenarios: Sequence[Scenario],
    *,
    measure: Measure,
    folder: Path,
    purpose: Literal["fit", "validation", "other"],
    budget_s: float,
    failed: Path,
    progress: Progress = print,
) -> Outcome:
    """Write `folder`/NAME.jsonl.gz for each scenario that has none yet.

    It stops before a scenario that the budget may not hold: one that took as long as the longest
    so far. One that fails is a JSON line in the file `failed`, and the next one is measured.
    """
    todo = [scenario for scenario in scenarios if not trace_path(folder, scenario).exists()]
    started_s, longest_s, num_failed = time.monotonic(), 0.0, 0
    for done, scenario in enumerate(todo):
        begun_s = time.monotonic()
        if begun_s - started_s + longest_s > budget_s:
            left = len(todo) - done
            progress(f"layers: {budget_s:.0f} s are used up, {left} of {len(todo)} left")
            return Outcome(left + num_failed, num_failed)
        problem = _measure_one(scenario, measure, trace_path(folder, scenario), purpose, progress)
        if problem:
            num_failed += 1
            _note_failure(failed, scenario.name, problem)
            progress(f"layers: {scenario.name} failed: {problem}")
        _release()
        longest_s = max(longest_s, time.monotonic() - begun_s)
    return Outcome(num_failed, num_failed)


def trace_path(folder: Path, scenario: Scenario) -> Path:
    """Where the trace of a scenario lies."""
    return folder / f"{scenario.name}.jsonl.gz"


def _measure_one(
    scenario: Scenario,
    measure: Measure,
    out: Path,
    purpose: Literal["fit", "validation", "other"],
    progress: Progress,
) -> str:
    """What went wrong, or nothing. The error itself is let go: it would keep tensors alive."""
    begun_s = time.monotonic()
    try:
        trace = measure(scenario)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    write_trace(replace(trace, purpose=purpose), out)
    took_s = time.monotonic() - begun_s
    step_s = median(trace.untraced_step_s)
    progress(f"layers: {scenario.name}: median step {1e6 * step_s:.1f} us, {took_s:.1f} s")
    return ""


def _note_failure(failed: Path, name: str, problem: str) -> None:
    failed.parent.mkdir(parents=True, exist_ok=True)
    with failed.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "failed": problem}) + "\n")


def _release() -> None:
    """Give tensors and graphs back. Raises when the device is lost: nothing can follow then."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        let_go(torch.device("cuda"))

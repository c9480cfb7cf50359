"""Power and held clocks on measurements that no fit has seen: points put aside, and blind runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from statistics import median

import pytest

from layerwise.calibration.data import FOLDER, profile_path
from layerwise.calibration.power import Row, review_power
from layerwise.calibration.pricing import Sustained
from layerwise.scenarios.accuracy.predictions import Committed, Held, read_blind
from layerwise.scenarios.calibrate.collect import GPU_KERNELS
from layerwise.sim.profile import load_profile
from layerwise.sim.trace import Trace, read_trace

# The bars of the issue that asked for them.
TIME, CLOCK, ENERGY = 0.04, 0.03, 0.08
FULL_HZ = 1.98e9
WHOLE = FOLDER / "traces" / "whole-h200"


@pytest.fixture(scope="module")
def aside() -> list[tuple[Row, Sustained]]:
    path = FOLDER / "traces" / "fit-h200" / "power.jsonl"
    return review_power(path, load_profile(profile_path("h200")), GPU_KERNELS)


@pytest.fixture(scope="module")
def blind() -> Committed:
    found = read_blind(FOLDER / "predictions" / "sustained-h200.json")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def models(blind: Committed) -> list[tuple[Trace, Held]]:
    traces = [read_trace(path) for path in sorted((WHOLE / "models").iterdir())]
    return [(trace, blind.models[trace.name]) for trace in traces]


def errors(pairs: Iterator[tuple[float, float]]) -> float:
    return median(abs(predicted / measured - 1) for predicted, measured in pairs)


def test_points_put_aside_take_as_long_as_is_said(aside: list[tuple[Row, Sustained]]) -> None:
    assert len(aside) >= 9
    assert TIME >= errors((found.seconds, row.step_s) for row, found in aside)


def test_points_put_aside_draw_what_is_said(aside: list[tuple[Row, Sustained]]) -> None:
    drawn = ((found.energy_j, row.watts * row.step_s) for row, found in aside)
    assert ENERGY >= errors(drawn)


@pytest.mark.xfail(
    strict=True, reason="5.3 %: matmuls of 64 and 128 rows are held less than is told"
)
def test_points_put_aside_run_at_the_clock_that_is_said(
    aside: list[tuple[Row, Sustained]],
) -> None:
    assert CLOCK >= errors((found.clock_share, row.clock_share) for row, found in aside)


def test_models_were_predicted_before_they_were_measured(
    blind: Committed, models: list[tuple[Trace, Held]]
) -> None:
    assert 20 == len(models)
    environment = json.loads((WHOLE / "environment.json").read_text(encoding="utf-8"))
    assert blind.created < environment["date_utc"]


def test_sustained_prefill_was_told_blind(models: list[tuple[Trace, Held]]) -> None:
    found = [
        abs(held.step_s / median(trace.untraced_step_s) - 1)
        for trace, held in models
        if trace.name.endswith("prefill")
    ]
    assert 6 == len(found)
    assert median(found) <= 0.03
    assert max(found) <= 0.07


def test_energy_of_whole_models_was_told_blind(models: list[tuple[Trace, Held]]) -> None:
    pairs = ((held.energy_per_step_j, one.measured["energy_per_step_j"]) for one, held in models)
    assert ENERGY >= errors(pairs)


@pytest.mark.xfail(strict=True, reason="8.3 %: the sweep's bursts were held a little themselves")
def test_held_clocks_of_whole_models_were_told_blind(models: list[tuple[Trace, Held]]) -> None:
    clocks = (
        (held.clock_share, trace.measured["mean_sm_clock_hz"] / FULL_HZ)
        for trace, held in models
        if trace.measured["mean_sm_clock_hz"] < 0.99 * FULL_HZ
    )
    assert CLOCK >= errors(clocks)

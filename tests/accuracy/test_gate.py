"""The gate: committed measurements, never fitted, predicted again; and that it can fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from calibration.data import prediction_path, profile_path, validation_trace_paths
from scenarios.compare import STAGE_TOLERANCE, score_stage
from scenarios.predicted import read_prediction
from sim.plan.scenario import Strategy, paper_scenario
from sim.predict import predict
from sim.profile import Profile, load_profile
from sim.trace import read_trace

TRACES = validation_trace_paths()
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(profile_path("h100-sxm"))


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_stage_is_within_its_tolerance(path: Path, profile: Profile) -> None:
    assert score_stage(read_trace(path), profile).passes


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_what_was_predicted_before_the_run_was_within_it_too(path: Path, profile: Profile) -> None:
    measured = score_stage(read_trace(path), profile).measured_s
    committed = read_prediction(prediction_path(path.stem))
    assert committed is not None
    assert abs(committed.predicted_step_s / measured - 1) <= STAGE_TOLERANCE


def test_a_wrong_constant_fails_the_gate(profile: Profile) -> None:
    fit = profile.fits["decode_attention"]
    rate = fit.constants["hbm_bytes_per_s"]
    wrong_fit = replace(
        fit, constants={**fit.constants, "hbm_bytes_per_s": replace(rate, value=1.15 * rate.value)}
    )
    wrong = replace(profile, fits={**profile.fits, "decode_attention": wrong_fit})
    verdicts = {path.stem: score_stage(read_trace(path), wrong).passes for path in TRACES}
    assert not verdicts["stage-8"]
    assert not verdicts["stage-128"]


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_readme_names_the_error_of_each_blind_prediction(path: Path, profile: Profile) -> None:
    committed = read_prediction(prediction_path(path.stem))
    assert committed is not None
    measured = score_stage(read_trace(path), profile).measured_s
    error = f"{committed.predicted_step_s / measured - 1:+.1%}".replace("%", " %")
    assert f"| {error} |" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("strategy", ["tensor-pipeline", "layer-wise"])
def test_readme_names_the_predicted_rates(strategy: Strategy, profile: Profile) -> None:
    text = README.read_text(encoding="utf-8")
    scenario = paper_scenario(strategy)
    assert f" {predict(scenario, None).tokens_per_s:,.0f} |" in text
    assert f" {predict(scenario, profile).tokens_per_s:,.0f} " in text

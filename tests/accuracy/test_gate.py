"""The gate: committed measurements, never fitted, predicted again; and that it can fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from layerwise.calibration.data import prediction_path, profile_path, validation_trace_paths
from layerwise.scenarios.compare.joined import STAGE_TOLERANCE, compare, score_stage
from layerwise.scenarios.predict.beliefs import read_prediction
from layerwise.sim.plan.ops import AllReduceAlgorithm
from layerwise.sim.plan.scenario import RunSpec, Strategy, paper_scenario
from layerwise.sim.plan.workload import Workload
from layerwise.sim.predict import predict
from layerwise.sim.profile import Profile, load_profile
from layerwise.sim.trace import read_trace

TRACES = validation_trace_paths()
# Those of the first engine: predicted before they were run.
BLIND = [path for path in TRACES if prediction_path(path.stem).exists()]
ROOT = Path(__file__).parents[2]
README = ROOT / "scenarios" / "accuracy" / "README.md"
WORST_BLIND = {
    "a rotary kernel": ("attn.rope",),
    "gated activation": ("mlp.act",),
    "norms": ("attn.norm", "mlp.norm"),
    "prefill attention": ("attn.sdpa",),
    "residual adds": ("out.residual",),
}
MATMULS = ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down")


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(profile_path("h100-sxm"))


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_stage_is_within_its_tolerance(path: Path, profile: Profile) -> None:
    assert score_stage(read_trace(path), profile).passes


@pytest.mark.parametrize("path", BLIND, ids=lambda path: path.stem)
def test_what_was_predicted_before_the_run_was_within_it_too(path: Path, profile: Profile) -> None:
    measured = score_stage(read_trace(path), profile).measured_s
    committed = read_prediction(prediction_path(path.stem))
    assert committed is not None
    assert abs(committed.predicted_step_s / measured - 1) <= STAGE_TOLERANCE


def test_a_wrong_constant_fails_the_gate(profile: Profile) -> None:
    fit = profile.fits["decode_attention"]
    rate = fit.constants["hbm_bytes_per_s"]
    wrong_fit = replace(
        fit, constants={**fit.constants, "hbm_bytes_per_s": replace(rate, value=1.25 * rate.value)}
    )
    wrong = replace(profile, fits={**profile.fits, "decode_attention": wrong_fit})
    verdicts = {path.stem: score_stage(read_trace(path), wrong).passes for path in TRACES}
    assert not verdicts["stage-8"]
    assert not verdicts["stage-128"]


@pytest.mark.parametrize("path", BLIND, ids=lambda path: path.stem)
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


def test_readme_names_the_rate_of_an_eager_baseline(profile: Profile) -> None:
    scenario = replace(paper_scenario("tensor-pipeline"), run=RunSpec(launch="eager"))
    rate = f"{predict(scenario, profile).tokens_per_s:,.0f} tokens/s, close to the paper's 12,800"
    assert rate in README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def errors(profile: Profile) -> dict[str, list[tuple[str, float]]]:
    """Signed errors of all ops by their kind, of the committed predictions and of today's."""
    found: dict[str, list[tuple[str, float]]] = {"blind": [], "now": []}
    for path in BLIND:
        committed = read_prediction(prediction_path(path.stem))
        assert committed is not None
        for score in compare(read_trace(path), profile).ops:
            kind = score.op.partition(".")[2]
            found["blind"].append((kind, committed.ops[score.op] / score.measured_s - 1))
            found["now"].append((kind, score.error))
    return found


@pytest.mark.parametrize("when", ["blind", "now"])
def test_readme_names_the_median_errors_of_ops(
    when: str, errors: dict[str, list[tuple[str, float]]]
) -> None:
    text = " ".join(README.read_text(encoding="utf-8").split())
    values = [error for _, error in errors[when]]
    signed, size = median(values), median(abs(value) for value in values)
    figures = f"{signed:+.1%} signed, {size:.1%} absolute".replace("%", " %")
    _, _, after = text.partition(f"{when} (")
    assert figures in after[:80]


@pytest.mark.parametrize("name", WORST_BLIND)
def test_readme_names_the_worst_blind_errors_of_ops(
    name: str, errors: dict[str, list[tuple[str, float]]]
) -> None:
    worst = max((e for kind, e in errors["blind"] if kind in WORST_BLIND[name]), key=abs)
    figure = f"{name} {worst:+.0%}".replace("%", " %")
    assert figure in " ".join(README.read_text(encoding="utf-8").split())


def test_readme_names_the_span_of_blind_matmul_errors(
    errors: dict[str, list[tuple[str, float]]],
) -> None:
    values = [error for kind, error in errors["blind"] if kind in MATMULS]
    figure = f"matmuls {min(values):+.0%} to {max(values):+.0%}".replace("%", " %")
    assert figure in " ".join(README.read_text(encoding="utf-8").split())


def test_readme_names_the_gain_in_prefill(profile: Profile) -> None:
    def rate(strategy: Strategy, all_reduce: AllReduceAlgorithm) -> float:
        scenario = paper_scenario(strategy, workload=Workload(phase="prefill"))
        kernels = replace(profile.kernels, all_reduce=all_reduce)
        return predict(replace(scenario, kernels=kernels), profile).tokens_per_s

    baseline = max(rate("tensor-pipeline", "nccl"), rate("tensor-pipeline", "one_shot"))
    gain = f"{rate('layer-wise', 'nccl') / baseline - 1:+.1%}".replace("%", " %")
    text = " ".join(README.read_text(encoding="utf-8").split())
    assert (
        f"In prefill, which computes more than it reads, layer-wise is predicted faster: {gain}"
        in text
    )

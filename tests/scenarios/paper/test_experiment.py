"""`layerwise paper`: what it prints, what it gives to machines, how long it takes to start."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.conftest import Run


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_json_has_stable_keys_and_finite_numbers(
    layerwise: Run, profile_file: Path, phase: str
) -> None:
    ran = layerwise("paper", "--phase", phase, "--json", "--profile", profile_file)
    data = json.loads(ran.out)
    assert ran.code == 0
    assert list(data) == [
        "format",
        "version",
        "provenance",
        "question",
        "answer",
        "model",
        "cluster",
        "workload",
        "placements",
        "claims",
        "readings",
        "lm_head",
        "measured_stages",
    ]
    assert all(math.isfinite(n) for n in numbers(data))
    assert [p["all_reduce"] for p in data["placements"]] == ["nccl", "one_shot", None]
    assert len(data["claims"]) == 10
    assert all(claim["reading"] for claim in data["claims"])
    assert data["provenance"]["profile"]["name"] == "synthetic"


def test_rates_follow_from_steps(layerwise: Run, profile_file: Path) -> None:
    data = json.loads(layerwise("paper", "--json", "--profile", profile_file).out)
    for placement in data["placements"]:
        for belief in ("speed_of_light", "uncalibrated", "predicted"):
            found = placement[belief]
            assert found["tokens_per_s"] == pytest.approx(128 / found["step_s"])
            assert found["inverse_throughput_s"] == pytest.approx(1 / found["tokens_per_s"])
            shares = sum(found["bound_share"].values()) + found["bubble_share"]
            assert shares == pytest.approx(1, abs=1e-6)


def test_no_prediction_beats_the_speed_of_light(layerwise: Run, profile_file: Path) -> None:
    data = json.loads(layerwise("paper", "--json", "--profile", profile_file).out)
    for placement in data["placements"]:
        light = placement["speed_of_light"]["tokens_per_s"]
        assert placement["predicted"]["tokens_per_s"] < light
        assert placement["uncalibrated"]["tokens_per_s"] < light


def test_uncalibrated_is_at_the_calibrated_number_of_microbatches(
    layerwise: Run, profile_file: Path
) -> None:
    ran = layerwise("paper", "--phase", "prefill", "--json", "--profile", profile_file)
    placements = json.loads(ran.out)["placements"]
    numbers_of = {
        belief: [placement[belief]["num_microbatches"] for placement in placements]
        for belief in ("predicted", "uncalibrated")
    }
    assert numbers_of["predicted"] == numbers_of["uncalibrated"]


def test_rates_of_every_belief_stand_side_by_side(layerwise: Run, profile_file: Path) -> None:
    ran = layerwise("paper", "--profile", profile_file)
    data = json.loads(layerwise("paper", "--json", "--profile", profile_file).out)
    line = next(line for line in ran.out.splitlines() if line.startswith("layer-wise "))
    ours = data["placements"][-1]
    beliefs = ("speed_of_light", "uncalibrated", "predicted")
    assert line.split()[1:5] == ["15,360", *(f"{ours[b]['tokens_per_s']:,.0f}" for b in beliefs)]


def test_report_fits_100_columns_and_says_what_was_not_measured(
    layerwise: Run, profile_file: Path
) -> None:
    ran = layerwise("paper", "--profile", profile_file)
    assert ran.code == 0
    assert max(len(line) for line in ran.out.splitlines()) <= 100
    assert "not measured" in ran.out
    assert "Verdicts" in ran.out
    assert "\x1b" not in ran.out


def test_without_a_profile_no_calibrated_prediction(
    layerwise: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("layerwise.calibration.data.FOLDER", tmp_path)
    ran = layerwise("paper")
    assert ran.code == 0
    assert "No calibration profile: speed of light and uncalibrated only" in ran.out
    assert "not decided" in ran.out
    assert "90 %" not in ran.out


def test_paper_30b_answers_with_its_budget(layerwise: Run, profile_file: Path) -> None:
    ran = layerwise("paper", "--model", "paper-30b", "--profile", profile_file)
    assert ran.code == 0
    assert "it does not fit" in ran.out
    assert "a batch of at most" in ran.out
    assert "it needs 152.6 GB on a GPU of 80 GB" in " ".join(ran.out.split())


def test_a_reading_says_what_its_phase_says_when_asked(layerwise: Run, profile_file: Path) -> None:
    reports = {
        phase: json.loads(
            layerwise("paper", "--phase", phase, "--json", "--profile", profile_file).out
        )
        for phase in ("decode", "prefill")
    }
    assert reports["decode"]["readings"][0]["is_asked"]
    assert reports["prefill"]["readings"][2]["is_asked"]
    for row, phase in ((0, "decode"), (2, "prefill")):
        *baselines, ours = reports[phase]["placements"]
        best = max(entry["predicted"]["tokens_per_s"] for entry in baselines)
        for report in reports.values():
            assert report["readings"][row]["baseline_tokens_per_s"] == best
            rate = report["readings"][row]["layer_wise_tokens_per_s"]
            assert rate == ours["predicted"]["tokens_per_s"]


def test_both_all_reduces_and_the_on_chip_capacity_are_named(
    layerwise: Run, profile_file: Path
) -> None:
    ran = layerwise("paper", "--profile", profile_file)
    words = " ".join(ran.out.split())
    assert "custom *" in ran.out
    assert "with NCCL's all-reduce. * custom: with the serving engines' one-shot" in words
    assert (
        "One stage's weights: 536.9 MB, 10.2 times the 52.4 MB on-chip capacity: does not fit."
        in words
    )


def test_cold_start_of_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from layerwise.scenarios.command_line import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'pydantic', 'numpy', 'simpy', 'torch', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    # The bar is 0.5 s; a busy machine may double it.
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize("model", ["paper-16", "paper-30b"])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_rates_stand_on_one_line_each(layerwise: Run, model: str, phase: str) -> None:
    lines = layerwise("paper", "--model", model, "--phase", phase).out.splitlines()
    top = next(n for n, line in enumerate(lines) if "under every belief" in line)
    names = [line.partition("  ")[0] for line in lines[top + 3 : top + 7]]
    placements = ["TP=8 x PP=2, NCCL", "TP=8 x PP=2, custom *", "layer-wise", "layer-wise's gain"]
    assert placements == names
    assert 100 >= max(map(len, lines))

"""`import layerwise`: its names, what they return, and what importing costs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import layerwise as lw
from layerwise.calibration.data import FOLDER
from layerwise.sim.predict import predict
from tests.scenarios.conftest import fake_trace
from tests.sim.test_imports import run_without

ROOT = Path(__file__).parents[3]
STAGE = ROOT / "scenarios" / "validation" / "stage-8.toml"
SMALL = """
[base]
paper = "layer-wise"
[axes]
"workload.batch_size" = [16, 32]
"""
SURFACE = {
    "Answer": [],
    "CompareAnswer": ["compared"],
    "LayerwiseError": [],
    "PredictAnswer": ["scenario", "profile", "prediction"],
    "Profile": [
        "name",
        "gpu",
        "kernels",
        "provenance",
        "fits",
        "transfers",
        "machine",
        "reserved_bytes",
        "step_factor",
        "data_hashes",
        "power",
    ],
    "RankAnswer": ["ranking"],
    "Scenario": [
        "name",
        "model",
        "cluster",
        "placement",
        "workload",
        "run",
        "kernels",
        "given_kernels",
    ],
    "SimulateAnswer": ["scenario", "belief", "run"],
    "SweepAnswer": ["sweep", "outcome", "rows"],
    "compare": ["measured", "profile"],
    "load_scenario": ["scenario", "changes"],
    "predict": ["scenario", "profile", "belief", "changes"],
    "rank": [
        "scenario",
        "model",
        "gpus",
        "gpu",
        "gpus_per_node",
        "batch",
        "context",
        "tpot_below_s",
        "fits_only",
        "launch",
        "profile",
        "changes",
        "workers",
    ],
    "shipped_profile": ["gpu"],
    "simulate": ["scenario", "profile", "belief", "changes"],
    "sweep": ["file", "out", "profile", "workers", "changes"],
}


def parameters_of(public: object) -> list[str]:
    if isinstance(public, type) and issubclass(public, Exception):
        return []
    assert callable(public)
    return list(inspect.signature(public).parameters)


def test_the_surface_is_this_table() -> None:
    found = {name: parameters_of(getattr(lw, name)) for name in dir(lw)}

    assert SURFACE == found
    assert sorted(SURFACE) == sorted(lw.__all__)


def test_every_public_name_says_what_it_does() -> None:
    assert all((inspect.getdoc(getattr(lw, name)) or "").endswith((".", "`.")) for name in dir(lw))


def test_an_unknown_name_names_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'forecast'.*'predict'"):
        lw.forecast  # noqa: B018


def test_importing_needs_no_package_at_all() -> None:
    heavy = ("torch", "scipy", "pydantic", "simpy", "numpy", "rich", "typer", "nvtx")
    run = run_without(heavy, "import layerwise; print(len(dir(layerwise)))")

    assert (0, f"{len(SURFACE)}\n", "") == (run.returncode, run.stdout, run.stderr)


def test_importing_takes_less_than_50_ms() -> None:
    code = "import time; t = time.perf_counter(); import layerwise; print(time.perf_counter() - t)"
    took_s = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(5)
    )

    assert took_s < 0.05


def test_predict_gives_the_figures_of_the_simulator() -> None:
    answer = lw.predict(STAGE)
    expected = predict(answer.scenario, lw.shipped_profile("h100-sxm"))

    assert "calibrated" == answer.belief
    assert (expected.tokens_per_s, expected.step_s) == (answer.tokens_per_s, answer.step_s)
    assert expected.interval == answer.step_s_interval
    assert expected.tokens_per_s_interval == answer.tokens_per_s_interval
    assert (expected.num_microbatches, expected.tpot_s) == (answer.num_microbatches, answer.tpot_s)
    assert (True, expected.peak_memory_bytes) == (answer.fits, answer.peak_memory_bytes)
    assert expected.inverse_throughput_s == answer.inverse_throughput_s


def test_changes_are_keys_of_the_file() -> None:
    asked = lw.load_scenario(STAGE)
    answers = [
        lw.predict(STAGE, changes={"workload.context_tokens": 5000}),
        lw.predict(asked, changes={"workload.context_tokens": "5000"}),
    ]

    assert answers[0].tokens_per_s == answers[1].tokens_per_s > lw.predict(asked).tokens_per_s


def test_a_belief_can_be_asked_for() -> None:
    light = lw.predict(STAGE, belief="speed_of_light")

    assert "speed_of_light" == light.belief
    assert light.step_s_interval is None
    assert light.tokens_per_s > lw.predict(STAGE).tokens_per_s


def test_a_gpu_without_a_profile_is_predicted_uncalibrated() -> None:
    answer = lw.predict(STAGE, changes={"cluster.gpu": "a100-80gb"})

    assert ("uncalibrated", None) == (answer.belief, answer.tokens_per_s_interval)


def test_a_profile_is_taken_as_a_path(profile_file: Path, profile: lw.Profile) -> None:
    assert profile == lw.predict(STAGE, profile=profile_file).profile
    assert (
        lw.predict(STAGE, profile=profile).step_s == lw.predict(STAGE, profile=profile_file).step_s
    )


def test_no_profile_is_shipped_for_every_gpu() -> None:
    with pytest.raises(lw.LayerwiseError, match="no shipped profile of 'h300'; use 'h100-sxm'"):
        lw.shipped_profile("h300")


def test_simulate_gives_every_op() -> None:
    answer = lw.simulate(STAGE)

    assert {5} == {row.rank for row in answer.rows}
    assert "attn.sdpa" == next(iter(answer.seconds_by_op()))
    assert answer.step_s == pytest.approx(sum(answer.seconds_by_op().values()), rel=0.05)
    assert answer.step_s == lw.predict(STAGE).beliefs.alone_step_s


def test_rank_puts_placements_in_order() -> None:
    answer = lw.rank(model="paper-16", gpus=2, batch=8, context=1000)
    rates = [each.tokens_per_s for each in answer.candidates if each.fits]

    assert sorted(rates, reverse=True) == rates
    assert answer.winner is not None
    assert answer.winner is answer.candidates[0]
    assert answer.winner.layout.name in answer.verdict


def test_sweep_gives_typed_rows(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    answer = lw.sweep(tmp_path / "small.toml", workers=1)

    assert [16, 32] == [row["workload.batch_size"] for row in answer.rows]
    assert all(isinstance(row["tokens_per_s"], float) for row in answer.rows)
    assert [tmp_path / "small.toml"] == list(tmp_path.iterdir())


def test_sweep_keeps_its_rows_where_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    answer = lw.sweep(tmp_path / "small.toml", out=tmp_path / "rows.csv", workers=1)

    assert len(answer.rows) == len((tmp_path / "rows.csv").read_text().splitlines()) - 1


def test_compare_puts_both_sides_side_by_side(profile: lw.Profile, tmp_path: Path) -> None:
    from layerwise.sim.trace import write_trace

    write_trace(fake_trace(profile), tmp_path / "trace.jsonl")
    answer = lw.compare(tmp_path / "trace.jsonl", profile=profile)

    assert answer.error == pytest.approx(1 / 1.02 - 1)
    assert answer.error == answer.predicted_s / answer.measured_s - 1
    assert answer.comparison.ops


def test_compare_takes_the_shipped_profile_of_the_traces_gpu() -> None:
    answer = lw.compare(FOLDER / "traces" / "validation" / "stage-8.jsonl")

    assert abs(answer.error) < 0.06


def answers() -> list[lw.Answer]:
    return [
        lw.predict(STAGE),
        lw.simulate(STAGE),
        lw.rank(model="paper-16", gpus=2, batch=8, context=1000),
        lw.compare(FOLDER / "traces" / "validation" / "stage-8.jsonl"),
    ]


def test_every_answer_is_a_table_and_a_dictionary() -> None:
    for answer in answers():
        text, page = repr(answer), answer._repr_html_()
        assert len(text.splitlines()) > 3, text
        assert max(map(len, text.splitlines())) <= 100
        assert page.startswith("<pre") and page.endswith("</pre>")
        json.dumps(answer.to_dict(), allow_nan=False)


def test_the_table_is_what_the_command_prints(layerwise: object) -> None:
    assert callable(layerwise)
    printed = layerwise("predict", STAGE).out

    assert [line.rstrip() for line in printed.splitlines()] == repr(lw.predict(STAGE)).splitlines()

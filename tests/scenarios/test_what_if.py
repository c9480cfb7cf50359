"""`--set KEY=VALUE`: a what-if from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerwise.scenarios.paper.experiment import Question
from tests.scenarios.conftest import Run

SCENARIO = """
[model]
preset = "paper-16"
[workload]
context_tokens = 1000
num_microbatches = 16
"""


@pytest.fixture
def scenario_file(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    return path


def test_a_faster_hbm_is_believed_faster(
    layerwise: Run, scenario_file: Path, profile_file: Path
) -> None:
    asked = ("predict", scenario_file, "--json", "--profile", profile_file)
    before = json.loads(layerwise(*asked).out)
    after = json.loads(layerwise(*asked, "--set", "cluster.gpu.hbm_bytes_per_s=6.7TB/s").out)

    assert 6.7e12 == after["scenario"]["cluster"]["gpu"]["hbm_bytes_per_s"]
    assert after["predicted"]["step_s"] < before["predicted"]["step_s"]
    assert "h100-sxm" == after["provenance"]["profile"]["provenance"]["moved_from"]


def test_what_was_changed_is_said_beside_the_answer(
    layerwise: Run, scenario_file: Path, profile_file: Path
) -> None:
    ran = layerwise(
        "predict",
        scenario_file,
        "--profile",
        profile_file,
        "--set",
        "workload.batch_size=64",
        "--set",
        "workload.num_microbatches=8",
    )

    assert (0, "changed: workload.batch_size=64, workload.num_microbatches=8\n") == (
        ran.code,
        ran.err,
    )
    assert "batch 64" in ran.out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cluster.gpu.l2_byte=5", "did you mean 'cluster.gpu.l2_bytes'?"),
        ("cluster.gpu.l2_bytes=5GB/s", "has the unit 'GB/s' and cluster.gpu.l2_bytes is in bytes"),
        ("model.num_key_value_heads=3", "model.num_key_value_heads=3 does not divide"),
        ("cluster.num_gpus=32", "leave some without a layer; use 1 to 16"),
        ("nothing", "is not KEY=VALUE"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "paper"])
def test_a_change_that_does_not_go_is_one_line_and_exit_code_2(
    layerwise: Run, scenario_file: Path, command: str, setting: str, message: str
) -> None:
    asked = (command, scenario_file) if command == "predict" else (command,)
    ran = layerwise(*asked, "--set", setting)

    assert (2, "", 1) == (ran.code, ran.out, ran.err.count("\n"))
    assert message in ran.err


def test_the_papers_question_is_changed_for_both_placements() -> None:
    question = Question(changes={"workload.batch_size": 64})

    assert (64, 64) == (
        question.scenario("layer-wise").workload.batch_size,
        question.scenario("tensor-pipeline").workload.batch_size,
    )


def test_an_unchanged_question_is_the_papers() -> None:
    assert 128 == Question().scenario("layer-wise").workload.batch_size

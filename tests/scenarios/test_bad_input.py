"""Every bad input: exit code 2 and one line that names file, key, value and fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerwise.sim.profile import write_profile
from layerwise.sim.trace import write_trace
from tests.scenarios.conftest import Run, fake_trace
from tests.synthetic import synthetic_profile

PRESET = '[model]\npreset = "paper-16"\n'


def refused(layerwise: Run, *arguments: object) -> str:
    ran = layerwise(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.count("\n") == 1
    return ran.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PRESET + "[workload]\nbatch_sise = 4\n", ("workload.batch_sise=4", "batch_size")),
        (PRESET + '[workload]\nbatch_size = "many"\n', ("workload.batch_size='many'",)),
        (
            PRESET + '[placement]\nstrategy = "tensor-pipeline"\ntensor_parallel = 3\n',
            ("placement.tensor_parallel=3", "num_attention_heads=32", "use one of"),
        ),
        (
            PRESET + '[placement]\nstrategy = "tensor-pipeline"\npipeline_parallel = 17\n',
            ("placement.pipeline_parallel=17", "num_layers=16", "use 1 to 16"),
        ),
        ("this is = not = toml", ("is not a TOML file",)),
    ],
)
def test_scenario_file(
    layerwise: Run, tmp_path: Path, text: str, expected: tuple[str, ...]
) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    message = refused(layerwise, "predict", path)
    assert all(part in message for part in expected)


def test_mixture_of_experts_config(layerwise: Run, tmp_path: Path) -> None:
    config = {"model_type": "mixtral", "num_local_experts": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = tmp_path / "scenario.toml"
    path.write_text('[model]\nconfig = "config.json"\n')
    message = refused(layerwise, "predict", path)
    assert "num_local_experts=8 is a mixture of experts" in message
    assert "config.json" in message


def test_profile_for_another_gpu(layerwise: Run, tmp_path: Path) -> None:
    path = tmp_path / "h200.json"
    write_profile(synthetic_profile("h200"), path)
    message = refused(layerwise, "paper", "--profile", path)
    assert "was measured on h200 and cluster.gpu is h100-sxm" in message


def test_profile_that_is_missing(layerwise: Run, tmp_path: Path) -> None:
    message = refused(layerwise, "paper", "--profile", tmp_path / "nothing.json")
    assert "nothing.json' is no file" in message
    assert "(shipped are h100-sxm, h200)" in message


def test_gpu_without_a_profile_where_one_is_needed(layerwise: Run) -> None:
    message = refused(layerwise, "accuracy", "--gpu", "b200")
    assert "no calibration profile for b200, only for h100-sxm and h200" in message
    assert "--profile FILE" in message


NEAREST = "did you mean 'h100-pcie' or 'h100-sxm'?"


@pytest.mark.parametrize(
    ("arguments", "own"),
    [
        (("rank", "--model", "paper-16", "--gpu", "h10"), "--gpu FILE.toml"),
        (("accuracy", "--gpu", "h10"), "--profile FILE"),
        (("calibrate", "--gpu", "h10"), "a .toml file"),
        (("calibrate", "--collect", "nowhere", "--gpu", "h10"), "a .toml file"),
        (("calibrate", "--fit", "nowhere", "--out", "p.json", "--gpu", "h10"), "a .toml file"),
    ],
)
def test_an_unknown_gpu_names_the_nearest_and_what_to_do_for_ones_own(
    layerwise: Run, arguments: tuple[str, ...], own: str
) -> None:
    message = refused(layerwise, *arguments)
    assert f"--gpu='h10' is not known; {NEAREST}" in message
    assert own in message


def test_an_unknown_gpu_that_is_set_names_the_nearest(layerwise: Run) -> None:
    message = refused(layerwise, "paper", "--set", "cluster.gpu=h10")
    assert f"cluster.gpu='h10' is not known; {NEAREST}" in message


def test_an_unknown_gpu_in_a_file_names_the_nearest(layerwise: Run, tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(f'{PRESET}[cluster]\ngpu = "h10"\n')
    message = refused(layerwise, "predict", path)
    assert f"scenario.toml: cluster.gpu='h10' is not known; {NEAREST}" in message
    assert "one's own: the path of a .toml file" in message


def test_a_gpu_that_is_not_the_profiles_is_refused(layerwise: Run, profile_file: Path) -> None:
    message = refused(layerwise, "accuracy", "--gpu", "h200", "--profile", profile_file)
    assert "--gpu='h200' is not the profile's, h100-sxm" in message


def test_trace_of_another_schema_version(
    layerwise: Run, tmp_path: Path, profile_file: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    write_trace(fake_trace(synthetic_profile()), path)
    path.write_text(path.read_text().replace('"version": 1', '"version": 7', 1))
    message = refused(layerwise, "compare", "--measured", path, "--profile", profile_file)
    assert "trace version 7" in message


def test_a_prediction_is_not_committed_twice(
    layerwise: Run, tmp_path: Path, profile_file: Path
) -> None:
    scenario, target = tmp_path / "scenario.toml", tmp_path / "prediction.json"
    scenario.write_text(PRESET + "[workload]\nnum_microbatches = 16\n[run]\nonly_rank = 5\n")
    arguments = ("predict", scenario, "--profile", profile_file, "--commit-to", target)
    assert layerwise(*arguments).code == 0
    assert json.loads(target.read_text())["predicted_step_s"] > 0
    assert "never overwritten" in refused(layerwise, *arguments)


def test_missing_torch_says_what_still_works(
    layerwise: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(PRESET)
    monkeypatch.setattr("layerwise.scenarios.measure.measuring.find_spec", lambda name: None)
    message = refused(layerwise, "measure", path, "--out", tmp_path / "trace.jsonl")
    assert "torch is not installed" in message
    assert "still works" in message


def test_schema_is_json(layerwise: Run) -> None:
    assert "properties" in json.loads(layerwise("schema").out)


def test_a_placement_that_does_not_fit_is_an_answer(
    layerwise: Run, tmp_path: Path, profile_file: Path
) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text('[model]\npreset = "paper-30b"\n[workload]\nnum_microbatches = 16\n')
    ran = layerwise("predict", path, "--profile", profile_file)
    assert ran.code == 0
    assert "it does not fit" in ran.out
    assert "would fit with any one of" in ran.out

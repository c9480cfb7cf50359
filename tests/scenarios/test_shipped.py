"""Shipped files by name: what each kind of argument finds, and what a wrong name is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from layerwise.calibration import data
from layerwise.scenarios import shipped
from layerwise.scenarios.shipped import HERE, find, shipped_names
from layerwise.sim.plan.errors import SpecError
from tests.scenarios.conftest import Run

TRACES = data.FOLDER / "traces"


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("scenario", "validation/stage-8", HERE / "validation" / "stage-8.toml"),
        ("scenario", "sixteen-gpus/layer-wise.toml", HERE / "sixteen-gpus" / "layer-wise.toml"),
        ("sweep", "batch-and-context", HERE / "sweeps" / "batch-and-context.toml"),
        ("sweep", "sweeps/batch-and-context", HERE / "sweeps" / "batch-and-context.toml"),
        ("model", "llama-3-8b", HERE / "examples" / "llama-3-8b.json"),
        ("profile", "h200", data.FOLDER / "profiles" / "h200.json"),
        ("trace", "validation/stage-8", TRACES / "validation" / "stage-8.jsonl"),
        ("trace", "validation/stage-8.own", TRACES / "validation" / "stage-8.own.jsonl.gz"),
        (
            "trace",
            "validation/stage-8.own.jsonl.gz",
            TRACES / "validation" / "stage-8.own.jsonl.gz",
        ),
        ("trace", "two-h200/tp2", TRACES / "two-h200" / "tp2.jsonl"),
    ],
)
def test_a_name_finds_its_file(kind: str, name: str, expected: Path) -> None:
    assert expected == find(name, "OPTION", kind)


@pytest.mark.parametrize("kind", shipped.KINDS)
def test_every_shipped_name_finds_a_file(kind: str) -> None:
    names = shipped_names([kind])[kind]

    assert names
    assert all(find(name, "OPTION", kind).is_file() for name in names)


def test_ones_own_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "stage-8").write_text("mine")
    (tmp_path / "h200").mkdir()

    assert Path("validation/stage-8") == find("validation/stage-8", "SCENARIO", "scenario")
    assert data.FOLDER / "profiles" / "h200.json" == find("h200", "--profile", "profile")
    assert Path("h200") == find("h200", "SCENARIO", "scenario")


@pytest.mark.parametrize(
    ("kinds", "name", "message"),
    [
        (
            ("scenario",),
            "stage-8",
            ("'stage-8' is no file and no shipped scenario; did you mean 'validation/stage-8'"),
        ),
        (("scenario",), "valdiation/stage-8.toml", "did you mean 'validation/stage-8'"),
        (("trace",), "validation/stage-9", "no shipped trace; did you mean 'validation/stage-8'"),
        (("profile",), "h100", "no shipped profile; did you mean 'h100-sxm'?"),
        (("profile",), "a100", "give the path of one, or a name (shipped are h100-sxm, h200)"),
        (
            ("trace", "scenario"),
            "nothing",
            (
                "no shipped trace or scenario; give the path of one, or "
                "a name (`layerwise shipped` lists all)"
            ),
        ),
    ],
)
def test_a_wrong_name_is_told_the_nearest(kinds: tuple[str, ...], name: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        find(name, "OPTION", *kinds)

    assert message in str(error.value)


WRONG: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "SCENARIO='validation/stage-9'": lambda out: ("predict", "validation/stage-9"),
    "SCENARIO='nothing'": lambda out: ("rank", "nothing"),
    "SWEEP='nothing'": lambda out: ("sweep", "nothing", "--out", out),
    "SCENARIO='nowhere'": lambda out: ("measure", "nowhere", "--out", out),
    "--measured='nothing'": lambda out: ("compare", "--measured", "nothing"),
    "--anchor='h201'": lambda out: ("calibrate", "--anchor", "h201", "--out", out),
    "--for='nothing'": lambda out: ("calibrate", "--for", "nothing", "--out", out),
    "--profile='h201'": lambda out: ("paper", "--profile", "h201"),
    "--model='llama'": lambda out: ("rank", "--model", "llama"),
    "--model='llama-3'": lambda out: ("explore", "--model", "llama-3"),
    "RESULT='nothing'": lambda out: ("report", "nothing", "--out", out),
}


@pytest.mark.parametrize("said", WRONG)
def test_every_argument_that_takes_a_name_refuses_a_wrong_one_in_a_line(
    layerwise: Run, tmp_path: Path, said: str
) -> None:
    ran = layerwise(*WRONG[said](tmp_path / "out"))

    assert (2, "", 1) == (ran.code, ran.out, ran.err.count("\n"))
    assert f"layerwise: {said}" in ran.err
    assert [] == list(tmp_path.iterdir())


def test_a_shipped_scenario_is_predicted_by_its_name(layerwise: Run, profile_file: Path) -> None:
    asked = ("predict", "validation/stage-8", "--json", "--profile", profile_file)
    data = json.loads(layerwise(*asked, "--set", "cluster.num_gpus=8").out)

    assert "stage-8" == data["scenario"]["name"]
    assert "8x h100-sxm" == data["scenario"]["cluster"]["name"]


def test_a_shipped_trace_is_compared_by_its_name(layerwise: Run) -> None:
    ran = layerwise("compare", "--measured", "validation/stage-8", "--profile", "h100-sxm")

    assert 0 == ran.code
    assert "stage-8" in ran.out


def test_all_names_are_listed_by_kind(layerwise: Run) -> None:
    found = json.loads(layerwise("shipped", "--json").out)

    assert list(shipped.KINDS) == list(found)
    assert {"h100-sxm", "h200"} <= set(found["profile"])
    assert "validation/stage-8" in layerwise("shipped").out
    assert "validation/stage-8.own\n" in layerwise("shipped", "trace").out
    assert "did you mean 'trace'?" in layerwise("shipped", "traces").err

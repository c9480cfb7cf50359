"""What-if scripts: what each says, the options they share, and that a bad one is a line."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.measure import Measurement

from layerwise.scenarios.tables import WIDTH
from layerwise.scenarios.what_if.answering import FOLDER, question_names, what_if_named
from layerwise.scenarios.what_if.figures import figure, heading, table_of
from layerwise.scenarios.what_if.runner import Asked, crossing, parse_axes
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.profile import Profile
from layerwise.sim.uncertainty import Interval
from tests.scenarios.conftest import Run
from tests.scenarios.what_if_goldens import (
    PICTURES,
    README,
    answered,
    golden_path,
    list_of_answers,
    text_of,
)

NAMES = question_names()
# What a user would look at first, small enough to be asked in passing.
SMALL = {
    "batch_and_context": ("batch_size=1,128", "context_tokens=1000"),
    "cuda_graphs": ("batch_size=16",),
    "layer_fits": ("hidden_size=1024", "batch_size=1"),
    "l2_capacity": ("l2_bytes=1GB",),
    "prefill": ("batch_size=1", "prefill_chunk_tokens=4096"),
}


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_its_golden_file_says(name: str) -> None:
    assert golden_path(name).read_text(encoding="utf-8") == text_of(name)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"paper_claims"}))
def test_no_column_is_cut_off(name: str) -> None:
    rows = answered(name).rows
    wide = Console(width=2 * WIDTH)

    assert Measurement.get(wide, wide.options, table_of(rows)).maximum <= WIDTH


def test_the_list_in_the_readme_is_what_the_scripts_say() -> None:
    assert README.read_text(encoding="utf-8").endswith(list_of_answers())


def test_every_question_has_a_picture_and_a_golden_file_and_nothing_else_has() -> None:
    assert NAMES == sorted(path.stem for path in PICTURES.iterdir())
    assert NAMES == sorted(path.stem for path in golden_path("").parent.iterdir())


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"paper_claims"}))
def test_a_script_imports_sim_and_its_runner_only(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    found = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {
        each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names
    }
    parts = ("layerwise.scenarios.what_if.runner", "layerwise.scenarios.what_if.figures")

    assert set() == {module for module in found if not module.startswith("layerwise.sim.")} - set(
        parts
    )


@pytest.mark.parametrize("name", sorted(SMALL))
def test_other_points_on_its_axes(name: str, layerwise: Run) -> None:
    ran = layerwise("what-if", name, "--json", *(f"--axis={axis}" for axis in SMALL[name]))
    said = json.loads(ran.out)

    assert (0, "") == (ran.code, ran.err)
    sizes = [len(values) for values in said["axes"].values()]
    assert max(sizes) == len(said["rows"])
    assert what_if_named(name).question == said["question"]


def test_alone_the_command_lists_every_question(layerwise: Run) -> None:
    ran = layerwise("what-if", "--json")

    assert {name: what_if_named(name).question for name in NAMES} == json.loads(ran.out)
    assert all(name in layerwise("what-if").out for name in NAMES)


def test_dashes_will_do(layerwise: Run) -> None:
    ran = layerwise("what-if", "l2-capacity", "--axis=l2_bytes=1GB", "--json")

    assert "l2_capacity" == json.loads(ran.out)["what_if"]


def test_a_setting_changes_both_placements(layerwise: Run) -> None:
    asked = ("what-if", "microbatches", "--axis", "num_microbatches=16", "--json")
    before = json.loads(layerwise(*asked).out)["rows"][0]
    ran = layerwise(*asked, "--set", "cluster.gpu.hbm_bytes_per_s=6.7TB/s")
    after = json.loads(ran.out)["rows"][0]

    assert "changed: cluster.gpu.hbm_bytes_per_s=6.7TB/s\n" == ran.err
    assert before["layer_wise_tokens_per_s"] < after["layer_wise_tokens_per_s"]
    assert before["baseline_tokens_per_s"] < after["baseline_tokens_per_s"]


def test_a_given_profile_is_used(layerwise: Run, profile: Profile, profile_file: Path) -> None:
    ran = layerwise("what-if", "h200", "--axis=gpu=h100-sxm", "--json", "--profile", profile_file)

    assert {"h100-sxm": profile.digest} == json.loads(ran.out)["profiles"]


def test_a_gpu_without_a_profile_is_uncalibrated_and_says_so(layerwise: Run) -> None:
    ran = layerwise("what-if", "h200", "--axis", "gpu=a100-80gb")

    assert (
        "a100-80gb: no calibration profile, so nothing is calibrated or has an interval." in ran.out
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("l2_capacit",), "did you mean 'l2_capacity'?"),
        (("runner",), "is no question here"),
        (("../paper",), "is no question here"),
        (("h200", "--axis", "gpus=h200"), "did you mean 'gpu'?"),
        (("h200", "--axis", "gpu"), "is not NAME=VALUE,VALUE"),
        (("h200", "--axis", "gpu=h300"), "is not known"),
        (("thirty_billion", "--axis", "remedy=less"), "did you mean 'less batch' or"),
        (("paper_claims", "--axis", "gpu=h200"), "it has none"),
        (("l2_capacity", "--axis", "l2_bytes=5GB/s"), "has the unit 'GB/s'"),
        (("l2_capacity", "--axis", "l2_bytes=1MB"), "is not a part of l2_bytes=1000000"),
        (("l2_capacity", "--set", "cluster.gpu.l2_bytes=1GB"), "give its values with --axis"),
        (("h200", "--axis=gpu=h200", "--plot", "picture.bmp"), "is no picture that can be drawn"),
        (("h200", "--set", "workload.batch=1"), "workload.batch='1' is not a known key"),
    ],
)
def test_what_does_not_go_is_one_line_and_exit_code_2(
    layerwise: Run, arguments: tuple[str, ...], message: str
) -> None:
    ran = layerwise("what-if", *arguments)

    assert (2, "", 1) == (ran.code, ran.out, ran.err.count("\n"))
    assert message in ran.err


@pytest.mark.parametrize("name", ["h200", "batch_and_context", "layer_fits"])
def test_it_draws(name: str, layerwise: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.svg"
    axes = {"h200": (), "batch_and_context": ("batch_size=1,1024", "context_tokens=128,8192")}
    chosen = axes.get(name, SMALL.get(name, ()))
    ran = layerwise("what-if", name, "--plot", path, *(f"--axis={axis}" for axis in chosen))

    assert (0, f"drawn: {path}\n") == (ran.code, ran.err)
    assert what_if_named(name).question.split(",")[0][:30] in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("step_s", 0.010437, "10.4 ms"),
        ("l2_bytes", 52_428_800, "52.4 MB"),
        ("cluster.nvlink.bytes_per_s", 450e9, "450 GB/s"),
        ("baseline_tokens_per_s", 15_631.4, "15,600"),
        ("gain", -0.2148, "-21.5%"),
        ("gain_90", Interval(-0.22, 0.1), "-22.0% to +10.0%"),
        ("slowdown", 0.99962, "1.00"),
        ("batch_size", 1024, "1,024"),
        ("fits", False, "no"),
    ],
)
def test_a_figure_looks_after_its_key(key: str, value: object, shown: str) -> None:
    assert shown == figure(key, value)


def test_a_heading_is_the_key_in_words() -> None:
    assert "layer-wise\ntokens/s/GPU" == heading("layer_wise_tokens_per_s_per_gpu")
    assert "90 %" == heading("gain_90")


def test_axis_values_are_of_the_kind_the_axis_has() -> None:
    known = {"l2_bytes": (1,), "gpu": ("h200",), "share": (0.5,)}

    assert {"l2_bytes": (10**6, 2), "gpu": ("a", "b"), "share": (2.0,)} == parse_axes(
        ["l2_bytes=1MB, 2", "gpu=a,b", "share=2"], known
    )


def test_an_axis_given_twice_is_refused() -> None:
    with pytest.raises(SpecError) as caught:
        parse_axes(["gpu=a", "gpu=b"], {"gpu": ("h200",)})

    assert "gives gpu again" in str(caught.value)


def test_a_crossing_names_its_two_neighbours() -> None:
    rows = [{"x": x, "y": y} for x, y in ((1, -0.5), (2, -0.1), (4, 0.0), (8, 0.3))]

    assert (2, 4) == crossing(rows, "x", "y", 0.0)
    assert crossing(rows, "x", "y", 1.0) is None


def test_the_baseline_is_the_faster_of_its_all_reduces() -> None:
    asked = Asked()
    scenario = asked.scenario("tensor-pipeline")

    assert asked.predict(scenario).tokens_per_s < asked.baseline().tokens_per_s

"""`layerwise predict --tokens N`: a run whose context grows, under every belief."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from layerwise.scenarios.predict.beliefs import ThreeBeliefs, predict_all
from layerwise.scenarios.predict.generated import generate_all, generation_as_data, print_generated
from layerwise.sim.cost.model import Belief
from layerwise.sim.generate import Generation, generate
from layerwise.sim.plan.files import load_scenario
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import resolve
from tests.scenarios.conftest import Run

SCENARIO = """
[model]
preset = "paper-16"
[workload]
batch_size = 32
context_tokens = 1000
num_microbatches = 16
"""
RUN = Generation(
    num_tokens=1500,
    batch_size=4,
    total_s=3.0,
    first_step_s=0.01,
    error_bound_s=0.06,
    sampled=((100, 0.001), (1599, 0.004)),
)


@pytest.fixture
def scenario_file(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    return path


def test_each_belief_runs_with_its_own_microbatches(scenario_file: Path, profile: Profile) -> None:
    scenario = load_scenario(scenario_file)
    plan = resolve(scenario, profile)
    beliefs, eight = predict_all(plan), predict_all(plan.with_microbatches(8))
    mixed = ThreeBeliefs(
        speed_of_light=eight.speed_of_light,
        uncalibrated=beliefs.uncalibrated,
        calibrated=beliefs.calibrated,
        alone_step_s=None,
    )
    found = generate_all(plan, mixed, 2)
    microbatches: dict[Belief, int] = {"speed_of_light": 8, "uncalibrated": 16, "calibrated": 16}
    expected = {
        belief: generate(resolve(scenario.with_microbatches(number), profile, belief), 2)
        for belief, number in microbatches.items()
    }

    assert expected == found


def test_tokens_add_a_run_under_every_belief_to_the_json(
    layerwise: Run, scenario_file: Path, profile_file: Path
) -> None:
    asked = ("predict", scenario_file, "--tokens", 3, "--json", "--profile", profile_file)
    data = json.loads(layerwise(*asked).out)
    runs = data["generation"]

    assert ["speed_of_light", "uncalibrated", "calibrated"] == list(runs)
    for run in runs.values():
        assert (3, 32) == (run["num_tokens"], run["batch_size"])
        assert [1000, 1001, 1002] == [step["context_tokens"] for step in run["sampled_steps"]]
        assert 3 * 32 / run["total_s"] == run["tokens_per_s"]
    assert runs["speed_of_light"]["total_s"] < runs["calibrated"]["total_s"]


def test_first_step_is_the_step_from_idle(
    layerwise: Run, scenario_file: Path, profile_file: Path
) -> None:
    asked = ("predict", scenario_file, "--tokens", 2, "--json", "--profile", profile_file)
    data = json.loads(layerwise(*asked).out)

    assert data["predicted"]["from_idle_s"] == pytest.approx(
        data["generation"]["calibrated"]["first_step_s"], rel=1e-3
    )


def test_without_tokens_nothing_is_generated(
    layerwise: Run, scenario_file: Path, profile_file: Path
) -> None:
    ran = layerwise("predict", scenario_file, "--json", "--profile", profile_file)

    assert "generation" not in json.loads(ran.out)


def test_text_has_the_figures_of_the_json(
    layerwise: Run, scenario_file: Path, profile_file: Path
) -> None:
    asked = ("predict", scenario_file, "--tokens", 3, "--profile", profile_file)
    shown = layerwise(*asked)
    runs = json.loads(layerwise(*asked, "--json").out)["generation"]
    table = shown.out.partition("3 tokens of each of 32 sequences")[2].splitlines()
    rates = next(line for line in table if line.startswith("tokens/s")).split()[1:]

    assert 0 == shown.code
    assert [f"{run['tokens_per_s']:,.0f}" for run in runs.values()] == rates


@pytest.mark.parametrize(
    ("tokens", "change", "says"),
    [
        (1, "run.num_steps=4", "num_tokens=1"),
        (-3, "run.num_steps=4", "num_tokens=-3"),
        (5, "workload.phase=prefill", "generates no tokens"),
    ],
)
def test_run_that_cannot_be_is_refused_in_one_line(
    layerwise: Run, scenario_file: Path, profile_file: Path, tokens: int, change: str, says: str
) -> None:
    ran = layerwise(
        "predict", scenario_file, "--tokens", tokens, "--set", change, "--profile", profile_file
    )

    assert (2, 1) == (ran.code, len(ran.err.splitlines()))
    assert says in ran.err


def test_table_says_how_a_step_slows_down_and_what_sampling_may_be_off() -> None:
    out = Console(file=io.StringIO(), width=100)
    print_generated({"calibrated": RUN}, {"calibrated": "calibrated"}, out)
    assert isinstance(out.file, io.StringIO)
    lines = [line.rsplit("  ", 1) for line in out.file.getvalue().splitlines() if "  " in line]
    found = {label.strip(): figure.strip() for label, figure in lines}

    assert {
        "in all": "3 s",
        "tokens/s": "2,000",
        "mean time between two tokens": "2 ms",
        "step at the first context": "1 ms",
        "step at the last context": "4 ms",
        "off by sampling at most": "2.0%",
    }.items() <= found.items()


def test_data_of_a_run_is_in_si_units() -> None:
    assert {
        "num_tokens": 1500,
        "batch_size": 4,
        "total_s": 3.0,
        "tokens_per_s": 2000.0,
        "mean_tpot_s": 0.002,
        "first_step_s": 0.01,
        "error_bound_s": 0.06,
        "sampled_steps": [
            {"context_tokens": 100, "step_s": 0.001},
            {"context_tokens": 1599, "step_s": 0.004},
        ],
    } == generation_as_data(RUN)

"""`--trace`: what each command draws, and what it says about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.scenarios.commands import options
from layerwise.scenarios.predict.timeline import sides_of, write_compared_timeline
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.profile import Profile, write_profile
from layerwise.sim.timeline.chosen import MAX_SLICES
from layerwise.sim.trace import Trace, write_trace
from tests.scenarios.conftest import Run, fake_trace
from tests.sim.timeline.viewer import Viewed, view

SCENARIO = """
[model]
preset = "paper-16"
[cluster]
num_gpus = 8
[placement]
strategy = "tensor-pipeline"
tensor_parallel = 4
pipeline_parallel = 2
[workload]
num_microbatches = 2
"""


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory, profile_file: Path) -> Viewed:
    from layerwise.scenarios.command_line import main

    path = tmp_path_factory.mktemp("timeline") / "paper.json.gz"
    with pytest.raises(SystemExit) as end:
        main(["paper", "--json", "--profile", str(profile_file), "--trace", str(path)])
    assert end.value.code == 0
    return view(path)


def test_both_placements_have_processes_of_their_own(paper: Viewed) -> None:
    expected = [
        f"{name}, rank {rank} predicted"
        for name in ("TP=8 x PP=2", "layer-wise")
        for rank in range(16)
    ]
    assert expected == paper.processes


def test_fill_and_two_steps_of_the_stream_are_drawn(paper: Viewed) -> None:
    drawn = paper.slices["layer-wise, rank 15 predicted", "compute"]
    assert {0, 1, 2} == {event["args"]["step"] for event in drawn}


def test_messages_of_both_placements_have_arrows(paper: Viewed) -> None:
    tails = {start["process"].partition(",")[0] for start, _ in paper.arrows}
    assert {"TP=8 x PP=2", "layer-wise"} == tails


def test_predict_draws_every_rank(layerwise: Run, tmp_path: Path, profile_file: Path) -> None:
    scenario, path = tmp_path / "s.toml", tmp_path / "t.json.gz"
    scenario.write_text(SCENARIO)
    ran = layerwise("predict", scenario, "--json", "--profile", profile_file, "--trace", path)
    viewed = view(path)
    assert 0 == ran.code
    assert [f"rank {rank} predicted" for rank in range(8)] == viewed.processes
    assert f"{path}: {viewed.other['num_slices']:,} slices" in ran.err


def test_what_is_left_out_is_said(layerwise: Run, tmp_path: Path, profile_file: Path) -> None:
    scenario, path = tmp_path / "s.toml", tmp_path / "t.json.gz"
    scenario.write_text(SCENARIO)
    ran = layerwise(
        "predict",
        scenario,
        "--json",
        "--profile",
        profile_file,
        "--trace",
        path,
        "--trace-slices",
        3000,
    )
    (left_out,) = view(path).other["left_out"]
    assert left_out.startswith("predicted: steps ")
    assert f"left out to stay under 3,000 slices: {left_out} (--trace-slices N" in ran.err


def test_too_few_slices_are_bad_input(layerwise: Run, tmp_path: Path, profile_file: Path) -> None:
    scenario, path = tmp_path / "s.toml", tmp_path / "t.json.gz"
    scenario.write_text(SCENARIO)
    ran = layerwise(
        "predict", scenario, "--profile", profile_file, "--trace", path, "--trace-slices", 3
    )
    assert 2 == ran.code
    assert "trace_slices=3 is fewer than the" in ran.err
    assert not path.exists()


def compared(layerwise: Run, folder: Path, trace: Trace, profile: Profile) -> tuple[Viewed, str]:
    write_trace(trace, folder / "measured.jsonl")
    write_profile(profile, folder / "profile.json")
    ran = layerwise(
        "compare",
        "--measured",
        folder / "measured.jsonl",
        "--profile",
        folder / "profile.json",
        "--json",
        "--trace",
        folder / "t.json.gz",
    )
    return view(folder / "t.json.gz"), ran.err


def test_compare_draws_the_measured_rank_below_the_predicted_one(
    layerwise: Run, tmp_path: Path, profile: Profile
) -> None:
    viewed, said = compared(layerwise, tmp_path, fake_trace(profile), profile)
    assert ["rank 5 predicted", "rank 5 measured"] == viewed.processes
    assert "each measured step is laid where its rank begins the predicted one" in said


def test_measured_step_lies_below_its_prediction(
    layerwise: Run, tmp_path: Path, profile: Profile
) -> None:
    trace = fake_trace(profile, slower=1.0)
    viewed, _ = compared(layerwise, tmp_path, trace, profile)
    (step,) = {row.step for row in trace.rows}
    predicted, own = (
        [e for e in viewed.slices[f"rank 5 {side}", "compute"] if e["args"]["step"] == step]
        for side in ("predicted", "measured")
    )
    assert [e["name"] for e in predicted] == [e["name"] for e in own]
    # A trace keeps tenths of nanoseconds.
    assert [e["ts"] for e in predicted] == pytest.approx([e["ts"] for e in own], abs=1.01)


def test_repeat_of_median_length_is_drawn(profile: Profile) -> None:
    trace = fake_trace(profile)
    longer = {0: 5.0, 1: 1.0, 2: 3.0, 3: 2.0, 4: 4.0}
    rows = tuple(replace(row, end_s=row.end_s * longer[row.repeat]) for row in trace.rows)
    _, own = sides_of(replace(trace, rows=rows), profile)
    assert {2} == {row.repeat for row in own.rows}
    assert "repeat 3 of 5" in own.notes[0]


def test_trace_without_rows_has_nothing_to_draw(tmp_path: Path, profile: Profile) -> None:
    trace = replace(fake_trace(profile), rows=())
    with pytest.raises(SpecError, match="has no measured op to draw; measure with --timing cupti"):
        write_compared_timeline([(trace, profile)], tmp_path / "t.json")


def test_several_runs_are_told_apart_by_name(tmp_path: Path, profile: Profile) -> None:
    trace = fake_trace(profile)
    runs = [(replace(trace, name=name), profile) for name in ("one", "two")]
    said = write_compared_timeline(runs, tmp_path / "t.json")
    assert 1 == said.count("every rank has a clock of its own")
    expected = [f"{n}, rank 5 {s}" for n in ("one", "two") for s in ("predicted", "measured")]
    assert expected == view(tmp_path / "t.json").processes


def test_commands_and_simulator_agree_on_the_bound() -> None:
    assert MAX_SLICES == options.MAX_SLICES

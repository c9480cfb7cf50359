"""What is said beside a prediction: capacity on chip, extrapolation, unsteadiness."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.scenarios.predict.beliefs import (
    count_ops,
    on_chip_line,
    prediction_as_data,
    warnings_of,
)
from layerwise.sim.plan.scenario import PlacementSpec, paper_scenario, place
from layerwise.sim.plan.workload import Workload
from layerwise.sim.predict import predict
from layerwise.sim.profile import write_profile
from layerwise.sim.residuals import ErrorScale
from tests.scenarios.conftest import Run
from tests.synthetic import synthetic_profile


@pytest.mark.parametrize(
    ("on_chip_bytes", "expected"),
    [
        (0, "536.9 MB, 10.2 times the 52.4 MB on-chip capacity: does not fit"),
        (
            10**9,
            (
                "536.9 MB, 0.537 times the 1,000.0 MB on-chip capacity: fits, but each microbatch "
                "reads 1,311 MB of KV cache between two uses of them, and pushes them out"
            ),
        ),
        (2 * 10**9, "536.9 MB, 0.268 times the 2,000.0 MB on-chip capacity: fits"),
    ],
)
def test_stage_against_on_chip_capacity(on_chip_bytes: int, expected: str) -> None:
    scenario = paper_scenario("layer-wise")
    placement = replace(scenario.placement, on_chip_bytes=on_chip_bytes)
    aimed = replace(scenario, placement=placement)
    found = on_chip_line(aimed, place(aimed))
    assert found == f"one stage's weights: {expected}"


def test_a_placement_that_aims_at_no_capacity_says_nothing() -> None:
    scenario = paper_scenario("tensor-pipeline")

    assert on_chip_line(scenario, place(scenario)) == ""


def test_gpus_that_a_placement_leaves_idle_are_said() -> None:
    spec = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=8)
    scenario = replace(
        paper_scenario("tensor-pipeline", workload=Workload(num_microbatches=1)), placement=spec
    )
    (said,) = warnings_of(scenario, predict(scenario, None))

    assert "uses 8 of 16 GPUs; give placement.pipeline_parallel" in said


def test_eager_runs_say_what_no_interval_knows() -> None:
    workload = Workload(num_microbatches=16)
    graph = paper_scenario("layer-wise", workload=workload)
    eager = replace(graph, run=replace(graph.run, launch="eager"))
    found = predict(graph, None)

    assert () == warnings_of(graph, found)
    assert ["no interval knows how far" in said for said in warnings_of(eager, found)] == [True]


def test_extrapolated_ops_and_an_unsteady_stream_are_said() -> None:
    scenario = paper_scenario("layer-wise", workload=Workload(num_microbatches=16))
    found = predict(scenario, None)
    assert warnings_of(scenario, found) == ()
    total = count_ops(scenario, found)
    assert total > 16 * 16
    doubtful = replace(found, num_extrapolated_ops=7, is_steady=False)
    outside, unsteady = warnings_of(scenario, doubtful)
    assert outside == (f"layer-wise: 7 of {total:,} ops per step lie outside what was calibrated.")
    assert "is not steady" in unsteady
    assert prediction_as_data(doubtful)["num_extrapolated_ops"] == 7


def test_predict_prints_the_capacity_line(
    layerwise: Run, tmp_path: Path, profile_file: Path
) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text('[model]\npreset = "paper-16"\n[workload]\nnum_microbatches = 16\n')
    ran = layerwise("predict", path, "--profile", profile_file)
    assert "on-chip capacity: does not fit." in ran.out


def test_predict_shows_every_belief(layerwise: Run, tmp_path: Path, profile_file: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text('[model]\npreset = "paper-16"\n')
    ran = layerwise("predict", path, "--profile", profile_file)
    data = json.loads(layerwise("predict", path, "--json", "--profile", profile_file).out)
    line = next(line for line in ran.out.splitlines() if line.startswith("tokens/s"))
    beliefs = ("speed_of_light", "uncalibrated", "predicted")
    assert line.split()[1:] == [f"{data[b]['tokens_per_s']:,.0f}" for b in beliefs]
    assert data["uncalibrated"]["num_microbatches"] == data["predicted"]["num_microbatches"]


def test_gpu_without_a_profile_is_predicted_uncalibrated_and_it_is_said(
    layerwise: Run, tmp_path: Path
) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text('[model]\npreset = "paper-16"\n[cluster]\ngpu = "b200"\nnum_gpus = 16\n')
    ran = layerwise("predict", path)
    assert ran.code == 0
    assert "No calibration profile for b200. Uncalibrated: datasheet rates times" in ran.out
    data = json.loads(layerwise("predict", path, "--json").out)
    assert data["predicted"] is None
    assert data["uncalibrated"]["tokens_per_s"] < data["speed_of_light"]["tokens_per_s"]


def widened(folder: Path) -> Path:
    """A profile whose norms were calibrated at one token only, and whose intervals are known."""
    profile = synthetic_profile()
    fits = {
        kind: replace(fit, error_scale=ErrorScale.constant(0.1))
        for kind, fit in profile.fits.items()
    }
    fits["norm"] = replace(fits["norm"], valid=((1.0, 1.0), (0.0, 1e9)))
    path = folder / "widened.json"
    write_profile(replace(profile, fits=fits), path)
    return path


def scenario_file(folder: Path) -> Path:
    path = folder / "scenario.toml"
    path.write_text('[model]\npreset = "paper-16"\n[workload]\nnum_microbatches = 16\n')
    return path


def test_predict_prints_the_interval_and_what_lies_outside(layerwise: Run, tmp_path: Path) -> None:
    ran = layerwise("predict", scenario_file(tmp_path), "--profile", widened(tmp_path))

    assert 2 == ran.out.count("90 % interval")
    beyond = ran.out.partition("Outside what was calibrated")[2]
    assert "attn.norm" in beyond or "mlp.norm" in beyond
    assert "mlp.down" not in beyond


def test_json_carries_the_interval_of_the_calibrated_belief_alone(
    layerwise: Run, tmp_path: Path
) -> None:
    ran = layerwise("predict", scenario_file(tmp_path), "--profile", widened(tmp_path), "--json")
    data = json.loads(ran.out)
    found = data["predicted"]["interval"]

    assert [None, None] == [data[b]["interval"] for b in ("speed_of_light", "uncalibrated")]
    assert found["step_s"]["low"] < data["predicted"]["step_s"] < found["step_s"]["high"]
    assert found["inverse_throughput_s"]["high"] == 1 / found["tokens_per_s"]["low"]
    assert {"norm"} == {one["kind"] for one in found["beyond"]}

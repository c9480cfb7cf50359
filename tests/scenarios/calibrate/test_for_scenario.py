"""A scenario's own shapes: all of them are measured, and the profile then says what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.calibration.particular import points_of
from layerwise.calibration.pricing import price_point
from layerwise.scenarios.calibrate.for_scenario import measure_for
from layerwise.scenarios.tables import console
from layerwise.sim.cost.kinds import kind_of
from layerwise.sim.plan.errors import FileFormatError, ProfileMismatchError
from layerwise.sim.plan.files import load_scenario
from layerwise.sim.profile import load_profile, write_profile
from tests.calibration.fabricated import KERNELS
from tests.calibration.pretend_gpu import MEASURED_HERE, PretendGpu, shipped_truth, slowed

OLD = shipped_truth()
HERE = slowed(OLD, matmuls=1.10, hbm=1.0)
TEXT = """
name = "mine"
[model]
name = "small"
num_layers = 4
hidden_size = 1024
intermediate_size = 4096
num_attention_heads = 8
num_key_value_heads = 8
head_dim = 128
[cluster]
gpu = "{gpu}"
num_gpus = 2
[placement]
strategy = "tensor-pipeline"
tensor_parallel = 2
[workload]
batch_size = 4
context_tokens = 300
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT.format(gpu="h100-sxm"))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_profile(OLD, tmp_path / "old.json")
    return tmp_path / "old.json"


def ask(scenario: Path, base: Path, gpu: PretendGpu, out: str = "new.json") -> str:
    return measure_for(
        scenario, base, base.parent / out, 120.0, console(), lambda _: None, gpu.instruments
    )


def test_points_are_the_shards_of_every_number_of_microbatches(scenario: Path) -> None:
    found = points_of(load_scenario(scenario).with_kernels(KERNELS), OLD).points
    matmuls = {kind_of(p.op).features_of(p.op) for p in found if p.kind == "matmul"}

    # Tensor-parallel halves of qkv, o, gate-up and down, for 1, 2 and 4 sequences at once.
    shapes = {(1536, 1024), (1024, 512), (4096, 1024), (1024, 2048)}
    assert {(rows, *shape) for rows in (1, 2, 4) for shape in shapes} == matmuls
    assert {"/cold", "/warm"} == {p.name[-5:] for p in found if p.kind == "matmul"}
    assert all(p.kind == kind_of(p.op).name for p in found)


def test_points_of_a_fixed_number_are_fewer(scenario: Path) -> None:
    asked = load_scenario(scenario).with_kernels(KERNELS)
    rows = {
        kind_of(p.op).features_of(p.op)[0]
        for p in points_of(asked.with_microbatches(2), OLD).points
        if p.kind == "matmul"
    }

    assert {2} == rows


def test_prediction_takes_what_was_measured(
    scenario: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ask(scenario, base, gpu := PretendGpu(HERE, noise=0.0))
    made = load_profile(base.parent / "new.json")

    asked = load_scenario(scenario).with_kernels(KERNELS)
    points = points_of(asked, OLD).points
    assert {p.name for p in points} == set(gpu.asked)
    errors = [price_point(made, p)[0] / price_point(HERE, p)[0] - 1 for p in points]
    assert max(map(abs, errors)) < 0.006
    assert f"with {len(points)} points of mine" in said
    assert "mine: " in capsys.readouterr().out


def test_other_shapes_keep_their_form(scenario: Path, base: Path) -> None:
    ask(scenario, base, PretendGpu(HERE))
    made = load_profile(base.parent / "new.json")

    assert {k: f.constants for k, f in OLD.fits.items()} == (
        {k: f.constants for k, f in made.fits.items()}
    )


def test_provenance_says_what_no_longer_validates(scenario: Path, base: Path) -> None:
    ask(scenario, base, PretendGpu(OLD))
    said = load_profile(base.parent / "new.json").provenance

    assert said["measured_for"].startswith("mine: ")
    assert "runs of these shapes no longer validate it" in said["measured_for"]
    assert f"synthetic, digest {OLD.digest}" == said["measured_onto"]


def test_other_versions_than_the_profiles_are_noted(scenario: Path, tmp_path: Path) -> None:
    base = tmp_path / "old.json"
    write_profile(replace(OLD, provenance=OLD.provenance | {"driver": "1"}), base)
    ask(scenario, base, PretendGpu(OLD))

    assert (
        "driver is 2 here and 1 in the profile: anchor the profile first (--anchor)"
        == (load_profile(tmp_path / "new.json").provenance["measured_for_notes"])
    )


def test_budget_that_ends_too_early_is_said(scenario: Path, base: Path) -> None:
    ask(scenario, base, PretendGpu(OLD, most_points=5))
    said = load_profile(base.parent / "new.json").provenance

    assert "did not fit the budget: run it again" in said["measured_for_notes"]
    assert said["measured_for"].startswith("mine: 5 of ")


def test_nothing_measured_writes_nothing(scenario: Path, base: Path) -> None:
    with pytest.raises(FileFormatError, match="nothing was measured; give more seconds"):
        ask(scenario, base, PretendGpu(OLD, most_points=0))
    assert not (base.parent / "new.json").exists()


def test_scenario_of_another_gpu_is_refused(tmp_path: Path, base: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(TEXT.format(gpu="h200"))

    with pytest.raises(ProfileMismatchError, match="measured on h100-sxm and cluster.gpu is h200"):
        ask(other, base, PretendGpu(OLD))


def test_machine_of_another_gpu_is_refused(scenario: Path, base: Path) -> None:
    gpu = PretendGpu(OLD, environment=MEASURED_HERE | {"l2_bytes": "1"})

    with pytest.raises(FileFormatError, match="l2_bytes='1'"):
        ask(scenario, base, gpu)
    assert [] == gpu.asked

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.calibration.build import build_profile, file_hash
from layerwise.calibration.least_squares import FitError
from layerwise.calibration.sweeps import supplement
from layerwise.sim.cost.kinds import KINDS, OPTIONAL_KINDS
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.profile import OpFit, Profile, load_profile, write_profile
from layerwise.sim.trace import read_trace, write_trace
from tests.calibration.fabricated import (
    ENVIRONMENT,
    KERNELS,
    astray,
    measured,
    read_curve,
    some_points,
    stage_scenario,
    stage_trace,
    true_profile,
    with_interleaving,
    write_sweep,
)
from tests.calibration.fabricated import TRUTH as CONSTANTS

TRUTH = with_interleaving(true_profile(), 0.6e-6, 0.3e-6)
Build = Callable[..., Profile]
# Committed measurements of more than one GPU, or of windows, tell these.
ELSEWHERE = {
    "op_speed_beside_message",
    "message_speed_beside_hbm",
    "message_num_sms",
    "set_aside_hbm_slowdown",
}


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `layerwise calibrate --collect` leaves it."""
    folder = tmp_path_factory.mktemp("collected")
    write_sweep(measured(some_points()), folder / "sweep.jsonl")
    (folder / "read_curve.json").write_text(json.dumps(read_curve()))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    layer = stage_trace(stage_scenario(1024), TRUTH, measured={})
    write_trace(replace(layer, name="h1024"), folder / "layers" / "h1024.jsonl.gz")
    more = supplement(KERNELS)[:2]
    write_sweep(measured(more), folder / "supplement.jsonl")
    for hidden in (2048, 4096):
        trace = stage_trace(stage_scenario(hidden), TRUTH)
        write_trace(
            replace(trace, measured={"read_bandwidth_bytes_per_s": 3.1e12 - hidden}),
            folder / f"h{hidden}.jsonl",
        )
    eager = stage_trace(stage_scenario(launch="eager"), TRUTH, measured={})
    ops = {row.op for row in eager.rows if not row.replaced}
    write_trace(replace(eager, untraced_step_s=(8e-6 * len(ops),)), folder / "eager.jsonl")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "collected"))


def build(folder: Path, **values: object) -> Profile:
    given = {"name": "made-up", "gpu": "h100-sxm", "kernels": KERNELS, "transfers": TRUTH.transfers}
    return build_profile(folder, **(given | values))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def built(original: Path) -> Profile:
    return build(original)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - OPTIONAL_KINDS))
def test_fits_equal_the_truth(built: Profile, kind: str) -> None:
    assert {} == astray(built.fits[kind], CONSTANTS[kind])


@pytest.mark.parametrize("name", sorted(set(TRUTH.machine) - ELSEWHERE))
def test_machine_equals_the_truth(built: Profile, name: str) -> None:
    found, truth = built.machine[name], TRUTH.machine[name].value

    # These also carry what the sweep's noise, smoothed over neighbours, does to single ops.
    slack = 0.15 * truth if name.startswith("interleaved") else 0.05 * truth
    assert abs(found.value - truth) < max(3 * found.standard_error, slack)


def test_profile_has_every_constant_of_the_machine(built: Profile) -> None:
    assert set() == set(TRUTH.machine) - set(built.machine)


def test_profile_says_where_it_came_from(built: Profile, original: Path) -> None:
    assert ("made-up", "h100-sxm", KERNELS) == (built.name, built.gpu, built.kernels)
    assert {
        "gpu": "pretend H100",
        "driver": "1",
        "date_utc": ENVIRONMENT["date_utc"],
        "partial": "919 of 4,107 points measured",
    } == built.provenance
    assert "pretend H100, 2026-01-02: sweep" == (
        built.fits["matmul"].constants["efficiency"].source
    )
    assert all(constant.source for constant in built.machine.values())


def test_hash_of_every_file_is_recorded(built: Profile, original: Path) -> None:
    files = {p for p in original.rglob("*") if p.is_file()}

    assert {str(p.relative_to(original)): file_hash(p) for p in files} == built.data_hashes
    assert 8 == len(built.data_hashes)


def test_hash_follows_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("two")

    assert file_hash(tmp_path / "a") != file_hash(tmp_path / "b")


def test_profile_survives_its_file(built: Profile, tmp_path: Path) -> None:
    write_profile(built, tmp_path / "p.json")

    assert built == load_profile(tmp_path / "p.json")


@pytest.mark.parametrize("purpose", ["validation", "other"])
def test_run_not_measured_for_fitting_is_refused(folder: Path, purpose: str) -> None:
    trace = read_trace(folder / "h2048.jsonl")
    write_trace(replace(trace, purpose=purpose), folder / "h2048.jsonl")

    with pytest.raises(FitError, match=r"\['h2048'\]: not measured for fitting; keep validation"):
        build(folder)


def test_run_with_other_kernels_is_refused(folder: Path) -> None:
    with pytest.raises(FitError, match="h2048.*other kernels"):
        build(folder, kernels=KernelChoice(chunked_prefill_attention="flash"))


@pytest.mark.parametrize("name", ["environment.json", "read_curve.json", "sweep.jsonl"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / "supplement.jsonl").unlink()

    with pytest.raises(FileFormatError, match=f"{name}: cannot be read"):
        build(folder)


def test_file_that_is_not_json_is_named(folder: Path) -> None:
    (folder / "read_curve.json").write_text("[[1, 2")

    with pytest.raises(FileFormatError, match="read_curve.json: is not JSON"):
        build(folder)


def test_measurements_of_another_gpu_are_refused(folder: Path) -> None:
    with pytest.raises(FileFormatError, match="l2_bytes='52428800' and a h200 has 62914560; fit"):
        build(folder, gpu="h200")


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        (["eager"], "no stage was run eagerly"),
        (["h2048", "h4096"], "no stage trace carries a read bandwidth"),
    ],
)
def test_missing_stages_are_refused(folder: Path, gone: list[str], says: str) -> None:
    for name in gone:
        (folder / f"{name}.jsonl").unlink()

    with pytest.raises(FitError, match=says):
        build(folder)


def test_without_a_graph_there_are_no_gaps(folder: Path) -> None:
    for path in (folder / "h2048.jsonl", folder / "h4096.jsonl", *folder.glob("layers/*")):
        path.unlink()
    eager = read_trace(folder / "eager.jsonl")
    write_trace(
        replace(eager, measured={"read_bandwidth_bytes_per_s": 3e12}), folder / "eager.jsonl"
    )

    with pytest.raises(FitError, match="no stage was traced in a graph"):
        build(folder)


def test_every_kind_is_tried_before_the_failures_are_named(folder: Path) -> None:
    few = [p for p in some_points() if p.kind not in ("norm", "embed", "embed.few")]
    few += [p for p in some_points() if p.kind == "embed"][:3]
    write_sweep(measured(few), folder / "sweep.jsonl")
    outcomes: dict[str, OpFit | FitError] = {}

    with pytest.raises(FitError) as error:
        build(folder, progress=outcomes.__setitem__)

    assert str(error.value) == (
        "embed: 3 points for 3 parameters; measure more; "
        "norm: the sweep has no points; measure them"
    )
    assert sorted(KINDS.keys() - OPTIONAL_KINDS) == list(outcomes)
    assert {"embed", "norm"} == {k for k, o in outcomes.items() if isinstance(o, FitError)}

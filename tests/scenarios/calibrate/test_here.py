"""`layerwise calibrate` with no task: all of it, with a pretended GPU and a budget that ends early."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.calibration.least_squares import FitError
from layerwise.calibration.selection import fit_layers
from layerwise.scenarios.calibrate import collect
from layerwise.scenarios.calibrate.collect import GPU_KERNELS
from layerwise.scenarios.calibrate.here import calibrate_here, gpu_of, work_folder
from layerwise.scenarios.tables import console
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.profile import Profile, load_profile
from tests.calibration.fabricated import ENVIRONMENT
from tests.calibration.pretend_gpu import PretendGpu, shipped_truth

# A whole calibration, on whatever else the machine does meanwhile.
pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]
TRUTH = replace(shipped_truth(), kernels=GPU_KERNELS)
MOST = {"designed": 420, "unseen": 25, "repeats": 12}


def calibrate(out: Path, gpu: PretendGpu, lines: list[str] | None = None) -> str:
    tell = (lines if lines is not None else []).append
    return calibrate_here(out, 600.0, "", "", console(), tell, gpu.instruments)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str], PretendGpu]:
    """A run whose budget bought one point in twenty: its profile, last words, progress, GPU."""
    out = tmp_path_factory.mktemp("here") / "mine.json"
    lines: list[str] = []
    gpu = PretendGpu(TRUTH, most_in=MOST)
    with pytest.MonkeyPatch.context() as patch:
        # Three whole layers tell the fit of interleaving as well as all do, in a fifth of the time.
        patch.setitem(collect.LAYERS, "fit-layers", ("fit", lambda: fit_layers()[:3]))
        return out, calibrate(out, gpu, lines), lines, gpu


@pytest.fixture(scope="module")
def profile(done: tuple[Path, str, list[str], PretendGpu]) -> Profile:
    return load_profile(done[0])


def test_sweep_cut_short_makes_a_profile_that_says_so(
    done: tuple[Path, str, list[str], PretendGpu], profile: Profile
) -> None:
    assert profile.provenance["partial"].startswith("420 of ")
    assert "partial: 420 of" in done[1]
    assert TRUTH.fits.keys() == profile.fits.keys()


@pytest.mark.parametrize("kind", ["matmul", "decode_attention", "norm"])
def test_sweep_cut_short_finds_the_times(profile: Profile, kind: str) -> None:
    assert profile.fits[kind].held_out_median_error < 0.04


def test_shapes_that_were_not_reached_are_flagged(profile: Profile) -> None:
    fit = profile.fits["embed"]
    beyond = (fit.valid[0][1] * 8, fit.valid[1][1])

    assert fit.is_beyond(beyond, tuple(fit.residuals[0].place))


def test_progress_tells_the_time_left(done: tuple[Path, str, list[str], PretendGpu]) -> None:
    assert all(line.startswith("[") and " s left] " in line for line in done[2])
    assert any("measurements did not fit the budget" in line for line in done[2])


def test_diagnostics_are_stored_beside_the_profile(
    done: tuple[Path, str, list[str], PretendGpu],
) -> None:
    folder = done[0].with_name("mine.diagnostics")
    report = json.loads((folder / "report.json").read_text())

    assert 10 == len(report["worst"]) == len({row["name"] for row in report["worst"]})
    assert all(row["likely_reason"] for row in report["worst"])
    assert [
        "converged",
        "no parameter at its bound",
        "held-out error under 10%",
        "coverage inside 85% to 95%",
    ] == [box["question"] for box in report["boxes"]]
    assert "yes" == report["boxes"][0]["answer"]
    assert report["boxes"][3]["detail"].endswith("% of 25 points kept apart")
    points = (folder / "points.csv").read_text().splitlines()
    # All but the points that tell a graph's launch.
    assert 420 - 7 == len(points) - 1


def test_each_kind_has_its_picture(
    done: tuple[Path, str, list[str], PretendGpu], profile: Profile
) -> None:
    pytest.importorskip("matplotlib")
    pictures = {p.name for p in done[0].with_name("mine.diagnostics").glob("*.png")}

    assert {f"residuals-{kind}.png" for kind in profile.fits} == pictures


def test_spread_from_run_to_run_is_that_of_the_noise(
    done: tuple[Path, str, list[str], PretendGpu],
) -> None:
    report = json.loads((done[0].with_name("mine.diagnostics") / "report.json").read_text())

    assert 12 == report["run_to_run"]["num"]
    # Two readings with 1 % noise each differ by 1.4 % times 0.67 in the median.
    assert 0.003 < report["run_to_run"]["median"] < 0.025


def test_next_run_goes_on_where_this_one_stopped(
    done: tuple[Path, str, list[str], PretendGpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerwise.scenarios.calibrate.here.fit_to", lambda *_: "fitted")
    monkeypatch.setitem(collect.LAYERS, "fit-layers", ("fit", lambda: fit_layers()[:3]))
    shutil.copytree(work_folder(done[0]), tmp_path / "mine.work")
    again = PretendGpu(TRUTH, most_in={"designed": 3, "unseen": 0, "repeats": 0})

    assert "fitted" == calibrate(tmp_path / "mine.json", again)
    assert 3 == len(again.asked)
    assert not set(again.asked) & set(done[3].asked)


def test_too_little_says_what_is_missing_and_keeps_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(collect.LAYERS, "fit-layers", ("fit", lambda: fit_layers()[:3]))
    gpu = PretendGpu(TRUTH, most_in={"designed": 60, "unseen": 0, "repeats": 0})

    with pytest.raises(FitError) as error:
        calibrate(tmp_path / "mine.json", gpu)

    assert "matmul: " in str(error.value)
    assert "measure more" in str(error.value)
    assert "mine.work keeps what was measured: run it again, with --budget-s 1200" in (
        str(error.value)
    )
    assert not (tmp_path / "mine.json").exists()


def test_machine_names_its_gpu() -> None:
    assert "h100-sxm" == gpu_of(ENVIRONMENT)
    with pytest.raises(SpecError, match="is not a known GPU; name one of h100-sxm"):
        gpu_of(ENVIRONMENT | {"num_sms": "7"})

"""Re-anchoring: shifts that were put in are found, none are found where there are none."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.calibration.anchor import Anchored
from layerwise.calibration.checks import THROTTLED
from layerwise.calibration.least_squares import FitError
from layerwise.scenarios.calibrate.anchoring import (
    LayerCheck,
    anchor_folder,
    anchor_to,
    collect_anchor,
)
from layerwise.scenarios.tables import console
from layerwise.sim.plan.errors import FileFormatError, SpecError
from layerwise.sim.profile import Profile, load_profile, write_profile
from tests.calibration.pretend_gpu import MEASURED_HERE, PretendGpu, shipped_truth, slowed

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]
OLD = shipped_truth()
HERE = slowed(OLD, matmuls=1.07, hbm=1.04)
Outcome = tuple[Anchored, list[LayerCheck], tuple[str, ...]]


def anchor(folder: Path, truth: Profile, old: Profile = OLD) -> Outcome:
    collect_anchor(folder, old, 300.0, lambda _: None, PretendGpu(truth).instruments)
    return anchor_folder(folder, old)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return anchor(tmp_path_factory.mktemp("moved"), HERE)


@pytest.fixture(scope="module")
def stayed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return anchor(tmp_path_factory.mktemp("stayed"), OLD)


def test_slower_matmuls_are_found(moved: Outcome) -> None:
    shift = next(s for s in moved[0].kinds if s.name == "matmul")

    assert shift.is_significant
    assert abs(shift.applied - math.log(1.07)) < 0.01
    assert 32 == shift.num_points


def test_slower_hbm_is_found_by_reads_and_moves_every_kind(moved: Outcome) -> None:
    found = moved[0]

    assert found.hbm.is_significant
    assert abs(found.hbm.applied - math.log(1.04)) < 0.01
    for kind in ("norm", "decode_attention"):
        rate = found.profile.fits[kind].values["hbm_bytes_per_s"]
        assert abs(rate / HERE.fits[kind].values["hbm_bytes_per_s"] - 1) < 0.02
    best = found.profile.machine["hbm_bytes_per_s"].value
    assert abs(best / HERE.machine["hbm_bytes_per_s"].value - 1) < 1e-3


def test_kinds_that_did_not_move_stay(moved: Outcome) -> None:
    others = [s for s in moved[0].kinds if s.name != "matmul"]

    assert 10 < len(others)
    assert max(abs(s.applied) for s in others) < 0.02
    # Twice its error by chance is one in twenty.
    assert sum(s.is_significant for s in others) <= 2


def test_whole_layers_come_nearer(moved: Outcome) -> None:
    checks = moved[1]

    assert 4 == len(checks)
    assert all(abs(c.old_s / c.measured_s - 1) > 0.03 for c in checks)
    assert all(abs(c.new_s / c.measured_s - 1) < 0.015 for c in checks)


def test_the_same_machine_stays_put(stayed: Outcome) -> None:
    found = stayed[0]

    assert 0.0 == found.hbm.applied
    assert all(abs(s.applied) < max(3 * s.standard_error, 0.01) for s in found.kinds)
    assert sum(shift.is_significant for shift in found.kinds) <= 2


def test_intervals_never_get_narrower(moved: Outcome) -> None:
    for kind, fit in moved[0].profile.fits.items():
        old = OLD.fits[kind].error_scale
        assert old and fit.error_scale
        assert old.floor < fit.error_scale.floor


def test_provenance_names_both_machines(moved: Outcome) -> None:
    said = moved[0].profile.provenance

    assert "made up for tests" == said["source"]
    assert MEASURED_HERE["gpu"] == said["anchored_gpu"]
    assert f"synthetic, digest {OLD.digest}" == said["anchored_from"]
    # Beside the one that moved, one in twenty others is told by chance.
    told = dict(each.rsplit(" ", 1) for each in said["anchored_shifts"].split(", "))
    assert told["matmul"].startswith("+")
    assert max(told, key=lambda kind: abs(float(told[kind].rstrip("%")))) == "matmul"
    assert "anchor/anchor.jsonl" in moved[0].profile.data_hashes


def test_kind_with_few_points_is_shrunk_towards_none() -> None:
    import numpy as np

    from layerwise.calibration.anchor import shift_of

    one, many = (shift_of("norm", np.full(count, 0.07)) for count in (1, 50))

    assert 0.0 < one.applied < 0.04
    assert 0.069 < many.applied < 0.07
    assert not one.is_significant
    assert many.is_significant


def test_command_writes_profile_and_shifts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = tmp_path / "old.json", tmp_path / "new.json"
    write_profile(OLD, base)
    said = anchor_to(base, out, 300.0, console(), lambda _: None, PretendGpu(HERE).instruments)

    text = " ".join(capsys.readouterr().out.split())
    assert load_profile(out).digest in said
    assert "matmul 32 +" in text
    assert "Whole layers, predicted over measured" in text
    assert (tmp_path / "new.diagnostics" / "anchor.json").exists()


def test_interrupted_anchor_goes_on(tmp_path: Path) -> None:
    first, again = PretendGpu(OLD, most_points=8), PretendGpu(OLD, most_points=8)
    collect_anchor(tmp_path, OLD, 300.0, lambda _: None, first.instruments)
    collect_anchor(tmp_path, OLD, 300.0, lambda _: None, again.instruments)

    assert not set(first.asked) & set(again.asked)
    assert [] == [name for name in again.asked if "/" not in name]


def test_without_stages_nothing_is_told(tmp_path: Path) -> None:
    collect_anchor(
        tmp_path, OLD, 300.0, lambda _: None, PretendGpu(OLD, most_points=12).instruments
    )
    (tmp_path / "h2048-eager.jsonl").unlink()

    with pytest.raises(FitError, match="h2048-eager.jsonl.* were not measured; run it again"):
        anchor_folder(tmp_path, OLD)


def test_throttled_layer_is_set_aside(tmp_path: Path) -> None:
    def hot(trace):
        is_layer = trace.name.startswith("h1152")
        reason = "hardware thermal" if is_layer else "no"
        return replace(trace, environment=trace.environment | {THROTTLED[0]: reason})

    gpu = PretendGpu(OLD, spoil=hot, most_points=12)
    collect_anchor(tmp_path, OLD, 300.0, lambda _: None, gpu.instruments)
    found, checks, aside = anchor_folder(tmp_path, OLD)

    assert 3 == len(checks)
    assert 1 == len(aside) and "h1152" in aside[0] and "hardware thermal" in aside[0]
    assert aside[0] == found.profile.provenance["anchored_quarantined"]


def test_other_gpu_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    gpu = PretendGpu(OLD, environment=MEASURED_HERE | {"num_sms": "114"})

    with pytest.raises(FileFormatError, match="num_sms='114' and a h100-sxm has 132"):
        collect_anchor(tmp_path, OLD, 300.0, lambda _: None, gpu.instruments)
    assert [] == gpu.asked


def test_folder_of_another_machine_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "old.json"
    write_profile(OLD, base)
    work = tmp_path / "new.work"
    collect_anchor(work, OLD, 300.0, lambda _: None, PretendGpu(OLD, most_points=1).instruments)
    other = PretendGpu(OLD, environment=MEASURED_HERE | {"driver": "3"})

    with pytest.raises(SpecError, match="was measured where driver='2'; write another profile"):
        anchor_to(base, tmp_path / "new.json", 300.0, console(), lambda _: None, other.instruments)

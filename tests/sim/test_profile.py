from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.calibration.data import profile_path
from layerwise.sim.cost.model import Calibrated
from layerwise.sim.plan.errors import FileFormatError, ProfileMismatchError
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.profile import (
    MIGRATED_STEP_FACTOR,
    Regime,
    TransferFit,
    load_profile,
    write_profile,
)
from layerwise.sim.residuals import ErrorScale, ResidualPoint, ResidualTable
from tests.synthetic import constant, synthetic_profile

POINTS = (
    ResidualPoint(place=(math.log(8), math.log(4096)), log_ratio=0.10),
    ResidualPoint(place=(math.log(128), math.log(4096)), log_ratio=-0.05),
)


def written(folder: Path) -> Path:
    path = folder / "profile.json"
    write_profile(synthetic_profile(), path)
    return path


def altered(folder: Path, **values: object) -> Path:
    path = written(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return path


def test_profile_survives_its_file(tmp_path: Path) -> None:
    profile = synthetic_profile()
    fit = replace(
        profile.fits["matmul"],
        residuals=tuple(
            ResidualPoint(place=(*point.place, 1.0), log_ratio=point.log_ratio) for point in POINTS
        ),
    )
    profile = replace(profile, fits=profile.fits | {"matmul": fit})
    write_profile(profile, tmp_path / "p.json")

    assert profile == load_profile(tmp_path / "p.json")


def test_digest_survives_the_file(tmp_path: Path) -> None:
    assert synthetic_profile().digest == load_profile(written(tmp_path)).digest


def test_digest_tells_profiles_apart() -> None:
    profile = synthetic_profile()
    other = replace(profile, machine=profile.machine | {"eager_issue_s": constant(9e-6)})

    assert profile.digest != other.digest


def test_profile_of_another_gpu_is_refused() -> None:
    with pytest.raises(ProfileMismatchError) as error:
        Calibrated.about(dgx_cluster(GPUS["h200"], 8), synthetic_profile())

    assert str(error.value) == (
        "profile 'synthetic' was measured on h100-sxm and cluster.gpu is h200; give a profile for "
        "h200 (layerwise calibrate), or ask for the speed of light only"
    )


def test_other_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="profile.json: does not say format='layerwise-prof"):
        load_profile(altered(tmp_path, format="other"))


def test_other_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="version 99, this program reads 3, and 2 with wide"):
        load_profile(altered(tmp_path, version=99))


def version_two(folder: Path) -> Path:
    """A profile as version 2 wrote it: no error of any point, none of whole steps."""
    path = written(folder)
    data = json.loads(path.read_text()) | {"version": 2}
    del data["step_factor"]
    for fit in data["fits"].values():
        del fit["error_scale"]
        fit |= {"residuals": [{"place": [1.0], "log_ratio": 0.1}], "held_out_p90_error": 0.1}
    path.write_text(json.dumps(data))
    return path


def test_version_two_is_as_wide_everywhere_as_its_held_out_errors(tmp_path: Path) -> None:
    fit = load_profile(version_two(tmp_path)).fits["norm"]

    assert math.log(1.1) == pytest.approx(fit.half_width((1.0,)))
    assert math.log(1.1) < fit.half_width((2.0,))
    assert 0.1 == fit.residuals[0].log_ratio


def test_version_two_widens_whole_steps_by_a_stated_factor(tmp_path: Path) -> None:
    assert MIGRATED_STEP_FACTOR == load_profile(version_two(tmp_path)).step_factor


def test_migrated_profile_survives_its_file(tmp_path: Path) -> None:
    migrated = load_profile(version_two(tmp_path))
    write_profile(migrated, tmp_path / "again.json")

    assert migrated == load_profile(tmp_path / "again.json")


def test_shape_far_from_every_point_is_beyond_though_inside_the_ranges() -> None:
    scale = ErrorScale(quantile=1.0, floor=0.01, slope=0.05, reach=0.1, farthest=1.0, num_scores=50)
    fit = replace(
        synthetic_profile().fits["norm"],
        residuals=(ResidualPoint(place=(0.0,), log_ratio=0.0),),
        error_scale=scale,
    )

    assert (False, True) == (
        fit.is_beyond((8, 64), (0.9,)),
        fit.is_beyond((8, 64), (1.1,)),
    )


def test_transfer_is_as_wide_as_a_laplace_law_of_its_median() -> None:
    fit = TransferFit(regimes=(), source="", median_error=math.log(2))

    assert math.log(10) == pytest.approx(fit.half_width)


def test_unknown_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gpus='x' is not a known key; did you mean 'gpu'"):
        load_profile(altered(tmp_path, gpus="x"))


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_file_that_is_no_profile_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(content)

    with pytest.raises(FileFormatError, match="profile.json: "):
        load_profile(path)


def test_profile_file_has_a_constant_on_each_line(tmp_path: Path) -> None:
    lines = [line.strip() for line in written(tmp_path).read_text().splitlines()]

    assert len(synthetic_profile().fits) == sum(line.startswith('"launch_s": {') for line in lines)


def test_residual_at_a_calibrated_shape_is_what_was_measured() -> None:
    assert 0.10 == pytest.approx(ResidualTable(POINTS).interpolate(POINTS[0].place), rel=0.02)


def test_residual_between_shapes_lies_between() -> None:
    place = (math.log(32), math.log(4096))

    assert -0.05 < ResidualTable(POINTS).interpolate(place) < 0.10


def test_residual_far_from_every_shape_shrinks_to_the_form_alone() -> None:
    assert 0.0 == pytest.approx(ResidualTable(POINTS).interpolate((20.0, 20.0)), abs=1e-3)


def test_no_points_leave_the_form_alone() -> None:
    assert 0.0 == ResidualTable(()).interpolate(POINTS[0].place)


def test_only_the_sixteen_nearest_shapes_count() -> None:
    near = tuple(ResidualPoint(place=(float(n),), log_ratio=0.2) for n in range(16))
    far = ResidualPoint(place=(50.0,), log_ratio=-9.0)

    assert ResidualTable(near).interpolate((1.0,)) == ResidualTable((*near, far)).interpolate(
        (1.0,)
    )


def test_transfer_follows_the_regime_of_its_size() -> None:
    fit = TransferFit(
        regimes=(
            Regime(from_bytes=0, latency_s=1e-6, bytes_per_s=1e9),
            Regime(from_bytes=1000, latency_s=5e-6, bytes_per_s=1e10),
        ),
        source="made up",
    )

    assert [1e-6 + 999e-9, 5e-6 + 1000e-10] == [fit.seconds(999), fit.seconds(1000)]


def test_transfer_below_every_regime_uses_the_first() -> None:
    fit = TransferFit(regimes=(Regime(from_bytes=64, latency_s=1e-6, bytes_per_s=1e9),), source="")

    assert 1e-6 + 8e-9 == fit.seconds(8)


def test_shape_at_the_edge_is_inside_and_beyond_it_outside() -> None:
    fit = replace(synthetic_profile().fits["norm"], valid=((1.0, 8.0), (64.0, 64.0)))

    assert (True, False, False) == (
        fit.inside((8, 64)),
        fit.inside((9, 64)),
        fit.inside((8, 65)),
    )


def test_what_a_fit_has_seen_survives_its_file(tmp_path: Path) -> None:
    fit = replace(
        synthetic_profile().fits["norm"],
        kernels=("a", "b"),
        head_dims=(64, 128),
        dtypes=("float32",),
    )
    path = tmp_path / "seen.json"
    write_profile(replace(synthetic_profile(), fits=synthetic_profile().fits | {"norm": fit}), path)

    assert fit == load_profile(path).fits["norm"]


def test_what_a_fit_has_seen_counts_in_the_digest_where_it_is_not_the_usual() -> None:
    profile = synthetic_profile()
    usual, other = (
        replace(profile, fits=profile.fits | {"norm": replace(profile.fits["norm"], **seen)})
        for seen in ({"head_dims": (128,)}, {"head_dims": (64,)})
    )

    assert (True, False) == (usual.digest == profile.digest, other.digest == profile.digest)


def test_older_files_have_seen_heads_of_128_in_bf16(tmp_path: Path) -> None:
    path = written(tmp_path)

    assert "head_dims" not in path.read_text()
    assert ((), (128,), ("bfloat16",)) == (
        (fit := load_profile(path).fits["norm"]).kernels,
        fit.head_dims,
        fit.dtypes,
    )


@pytest.mark.parametrize(
    ("gpu", "digest"), [("h100-sxm", "2960824b27ab"), ("h200", "68adcdcb306c")]
)
def test_shipped_profiles_keep_their_digests(gpu: str, digest: str) -> None:
    assert digest == load_profile(profile_path(gpu)).digest

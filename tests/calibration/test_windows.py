from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerwise.calibration.windows import NOT_MEASURED, fit_set_aside
from layerwise.sim.plan.errors import FileFormatError

L2 = 50 * 2**20
LARGE = ["mm", 8, 8192, 8192, {"none": 50.0, "carve-only": 53.0}]
READ = ["read", 128, {"none": 3.0, "carve-only": 3.0 / 1.04}]
# What the L2 holds is no slower, and says nothing of HBM.
SMALL = ["mm", 8, 1024, 1024, {"none": 5.0, "carve-only": 9.0}]


def write(folder: Path, rows: list[object]) -> Path:
    path = folder / "windows.json"
    path.write_text(json.dumps(rows))
    return path


def test_slowdown_is_the_median_of_what_hbm_bounds(tmp_path: Path) -> None:
    path = write(
        tmp_path, [SMALL, LARGE, READ, ["read", 16, READ[2]], ["stream", 8, {"none": 1.0}]]
    )
    found = fit_set_aside(path, L2, "here")

    assert 0.05 == pytest.approx(found.value, rel=1e-3)
    assert 0 < found.standard_error < found.value
    assert "here" == found.source


def test_gpu_that_nobody_measured_is_not_slowed(tmp_path: Path) -> None:
    assert NOT_MEASURED == fit_set_aside(tmp_path / "windows.json", L2, "here")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([SMALL, LARGE], "windows.json: has 1 cases that HBM bounds; measure more"),
        ([["mm", 1]], "windows.json: has a row that is none of windows.json"),
    ],
)
def test_file_that_tells_nothing_is_refused(tmp_path: Path, rows: list[object], says: str) -> None:
    with pytest.raises(FileFormatError, match=says):
        fit_set_aside(write(tmp_path, rows), L2, "")

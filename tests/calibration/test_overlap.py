"""What messages and ops cost each other, from pairs whose answers are round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerwise.calibration.overlap import fit_overlap
from layerwise.sim.plan.errors import FileFormatError


def pair(alone_s: float, with_messages_s: float, message_with_work_s: float) -> dict[str, float]:
    """A kernel alone and beside messages; a message takes 0.6 s alone."""
    return {
        "alone_s": alone_s,
        "with_messages_s": with_messages_s,
        "message_alone_s": 0.6,
        "message_with_work_s": message_with_work_s,
    }


# Ops at 0.8, 0.5 and 0.9 of their speed. A message waits for half a kernel, then moves for
# 1.2, 2 and 0.75 s: at 0.5, 0.3 and 0.8 of its speed.
MEASURED: dict[str, Any] = {
    "overlap.send.read1GiB": pair(1.0, 1.25, 0.5 + 1.2),
    "overlap.send.copy1GiB": pair(1.0, 2.0, 0.5 + 2.0),
    "overlap.send.gemv": pair(9.0, 10.0, 4.5 + 0.75),
    # Bound by SMs: tells nothing of HBM.
    "overlap.send.matmul8192": pair(1.0, 50.0, 50.0),
    "sendrecv.131072KiB": [["a", [4, 1, 1], [640, 1, 1], 9.0], ["b", [16, 1, 1], [640, 1, 1], 9.0]],
}


def write(folder: Path, data: object) -> Path:
    path = folder / "overlap.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("name", "value", "half_range"),
    [
        ("op_speed_beside_message", 0.8, 0.2),
        ("message_speed_beside_hbm", 0.5, 0.25),
        ("message_num_sms", 16.0, 0.0),
    ],
)
def test_constants_are_medians_of_what_hbm_bounds(
    tmp_path: Path, name: str, value: float, half_range: float
) -> None:
    found = fit_overlap(write(tmp_path, {"rank0": MEASURED}), "here")[name]

    assert (value, half_range) == (found.value, found.standard_error)
    assert found.source.startswith("here: ")


@pytest.mark.parametrize("key", [key for key in MEASURED if "matmul" not in key])
def test_file_that_lacks_a_pair_is_refused(tmp_path: Path, key: str) -> None:
    rest = {name: value for name, value in MEASURED.items() if name != key}

    with pytest.raises(FileFormatError, match=f"overlap.json: is no overlap measurement.*{key}"):
        fit_overlap(write(tmp_path, {"rank0": rest}), "")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "is no overlap measurement"),
        ({"rank0": [1.0]}, "rank0 is not a table of measurements"),
        ({"rank0": MEASURED | {"overlap.send.gemv": pair(1.0, 0.0, 1.0)}}, "ZeroDivisionError"),
        ({"rank0": MEASURED | {"sendrecv.131072KiB": []}}, "is no overlap measurement"),
    ],
)
def test_file_that_is_something_else_is_refused(tmp_path: Path, data: object, says: str) -> None:
    with pytest.raises(FileFormatError, match=says):
        fit_overlap(write(tmp_path, data), "")


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="overlap.json: cannot be read"):
        fit_overlap(tmp_path / "overlap.json", "")


def test_text_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "overlap.json"
    path.write_text("rank0")

    with pytest.raises(FileFormatError, match="overlap.json: is not JSON"):
        fit_overlap(path, "")

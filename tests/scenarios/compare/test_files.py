"""`layerwise compare --csv` and `--plot`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from layerwise.sim.profile import Profile
from layerwise.sim.trace import Trace, write_trace
from tests.scenarios.conftest import Run, fake_trace


@pytest.fixture(scope="module")
def trace(profile: Profile) -> Trace:
    return fake_trace(profile)


@pytest.fixture
def asked(trace: Trace, profile_file: Path, tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "stage.jsonl"
    write_trace(trace, path)
    return "compare", "--measured", path, "--profile", profile_file


def test_csv_has_every_line_of_every_level_in_seconds(
    layerwise: Run, asked: tuple[object, ...], trace: Trace, tmp_path: Path
) -> None:
    ran = layerwise(*asked, "--csv", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert 0 == ran.code
    assert f"out.csv: {len(rows)} lines of 1 runs" in ran.err
    assert ["op", "layer", "stage", "run"] == list(dict.fromkeys(row["level"] for row in rows))
    down = next(row for row in rows if row["name"] == "L05.mlp.down")
    spans = [r.duration_s for r in trace.rows if r.repeat == 0 and "mlp.down" in r.op]
    assert float(down["measured_s"]) == pytest.approx(sum(spans), rel=1e-6)
    assert float(down["predicted_s"]) == pytest.approx(sum(spans) / 1.02, rel=1e-6)
    assert {"stage"} == {row["run"] for row in rows}


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_picture(
    layerwise: Run, asked: tuple[object, ...], tmp_path: Path, suffix: str, begins: bytes
) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / f"out{suffix}"
    ran = layerwise(*asked, "--plot", picture)
    assert (0, begins) == (ran.code, picture.read_bytes()[: len(begins)])
    if suffix == ".svg":
        assert "L05.mlp.down" in picture.read_text()


def test_picture_needs_matplotlib(
    layerwise: Run, asked: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerwise.scenarios.pictures.find_spec", lambda name: None)
    ran = layerwise(*asked, "--plot", tmp_path / "out.png")
    assert 2 == ran.code
    assert "pip install '.[plots]'" in ran.err
    assert "--csv still works" in ran.err


def test_picture_of_a_kind_nobody_draws(
    layerwise: Run, asked: tuple[object, ...], tmp_path: Path
) -> None:
    ran = layerwise(*asked, "--plot", tmp_path / "out.doc")
    assert (2, True) == (
        ran.code,
        "is no picture that can be drawn; end it in .svg, .pdf, .png" in ran.err,
    )

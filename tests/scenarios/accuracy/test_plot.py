"""`layerwise accuracy --plot`: the picture of the README."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerwise.scenarios.accuracy.bars import LAYERS, PREFILLS
from layerwise.scenarios.accuracy.plot import write_plot
from layerwise.scenarios.accuracy.scored import Scored
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.profile import Profile

SCORED = [
    Scored(group=LAYERS, part="", name="a", measured_s=1e-3, predicted_s=1.02e-3, half_width=0.05),
    Scored(group=PREFILLS, part="", name="b", measured_s=2e-3, predicted_s=2e-3, half_width=0.05),
    Scored(group=PREFILLS, part="", name="c", measured_s=2e-3, predicted_s=3e-3, half_width=0.05),
]


def test_it_draws_steps_and_ops_inside_and_outside(profile: Profile, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "accuracy.svg"
    said = write_plot(SCORED, profile, path)
    drawn = path.read_text(encoding="utf-8")

    assert f"{path}: 3 measurements" == said
    assert "67% of 3 inside their 90 % interval" in drawn
    assert "inside its interval (1)" in drawn
    assert "single op, outside (1)" in drawn
    assert f"{LAYERS}, with 90 % interval (1)" in drawn


def test_equal_measurements_make_equal_files(profile: Profile, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one.svg", "two.svg"):
        write_plot(SCORED, profile, tmp_path / name)

    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_another_ending_is_refused(profile: Profile, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no picture that can be drawn"):
        write_plot(SCORED, profile, tmp_path / "accuracy.bmp")

"""What no fit has seen, predicted again: the bars hold, and the README tells the figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerwise.calibration.data import unseen_prediction_path
from layerwise.scenarios.accuracy.bars import BARS, LAYERS, groups_of
from layerwise.scenarios.accuracy.predictions import read_blind
from layerwise.scenarios.accuracy.scored import (
    MAX_COVERAGE,
    MIN_COVERAGE,
    MIN_INTERVALS,
    Coverage,
    Scored,
    coverage_of,
    summary_of,
)

ROOT = Path(__file__).parents[2]
README = ROOT / "scenarios" / "accuracy" / "README.md"


@pytest.fixture(scope="module")
def scored(everything: dict[str, list[Scored]]) -> dict[str, list[Scored]]:
    return groups_of(everything["h100-sxm"])


@pytest.mark.parametrize("group", [group for group, bar in BARS.items() if not bar.is_optional])
def test_readme_names_the_errors(group: str, scored: dict[str, list[Scored]]) -> None:
    found = scored[group]
    before = [one.blind_error for one in found if one.blind_error is not None]
    blind, now = summary_of(before), summary_of(one.error for one in found)
    row = (
        f"| {len(found)} | {blind.median:.1%}, {now.median:.1%} | {blind.mean:.1%}, {now.mean:.1%} "
        f"| {blind.worst:.1%}, {now.worst:.1%} |"
    )
    text = README.read_text(encoding="utf-8").replace("**", "")
    assert row.replace("%", " %") in text


def test_every_measurement_was_predicted_before_it_was_made(
    scored: dict[str, list[Scored]],
) -> None:
    # Of stages test_gate tells which ones were.
    once = [one for found in scored.values() for one in found if one.part != "stages"]
    assert [] == [one.name for one in once if not one.blind_s]


def test_predictions_were_made_with_another_profile_than_todays() -> None:
    committed = read_blind(unseen_prediction_path("h100-sxm"))

    assert committed is not None
    assert "9d9e32b894b0" == committed.profile_digest


def test_profile_moved_to_an_h200_by_datasheet_ratios_predicted_whole_layers(
    everything: dict[str, list[Scored]],
) -> None:
    found = groups_of(everything["h200"])[LAYERS]
    moved = summary_of(one.blind_error for one in found if one.blind_error is not None)

    assert moved.num >= 36
    assert moved.median < 0.08


def measured_coverage(scored: list[Scored]) -> Coverage:
    found = coverage_of(scored)
    assert found is not None
    assert found.num >= MIN_INTERVALS
    return found


@pytest.mark.parametrize("gpu", ["h100-sxm", "h200"])
def test_intervals_cover_what_no_fit_has_seen(
    gpu: str, everything: dict[str, list[Scored]]
) -> None:
    assert MIN_COVERAGE <= measured_coverage(everything[gpu]).covered <= MAX_COVERAGE


@pytest.mark.parametrize("gpu", ["h100-sxm", "h200"])
def test_readme_names_the_coverage(gpu: str, everything: dict[str, list[Scored]]) -> None:
    found = measured_coverage(everything[gpu])
    row = (
        f"| {gpu} | {found.num} | {found.covered:.1%} | {found.median_half_width:.1%} | "
        f"{found.median_error:.1%} | {found.width_ratio:.2f} |"
    ).replace("%", " %")

    text = (ROOT / "calibration" / "README.md").read_text(encoding="utf-8")
    assert row in text

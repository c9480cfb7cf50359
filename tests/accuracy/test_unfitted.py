"""Intervals of ops whose kernel, head size or dtype no fit has seen, against the half set aside."""

from __future__ import annotations

import json
import math
from functools import cache

from layerwise.calibration.data import FOLDER, profile_path
from layerwise.calibration.pricing import price_point
from layerwise.calibration.unfitted import change_of, set_aside, unfitted
from layerwise.scenarios.calibrate.collect import GPU_KERNELS
from layerwise.sim.profile import load_profile

MEASURED = FOLDER / "traces" / "unfitted-h200" / "unfitted.jsonl"


@cache
def inside() -> dict[str, list[bool]]:
    """Whether each measurement set aside lies in its interval, by what sets it apart."""
    profile = load_profile(profile_path("h200"))
    points = unfitted(GPU_KERNELS)
    chosen, found = set_aside(points), dict[str, list[bool]]()
    rows = {row["name"]: row for row in map(json.loads, MEASURED.read_text().splitlines())}
    for point in points:
        seconds = rows[point.name].get("step_s")
        if point.name not in chosen or seconds is None or "/math-" in point.name:
            continue
        predicted_s, half_width = price_point(profile, point)
        is_inside = abs(math.log(seconds / predicted_s)) <= half_width
        found.setdefault(change_of(point), []).append(is_inside)
    return found


def test_nine_of_ten_set_aside_lie_inside() -> None:
    everything = [one for each in inside().values() for one in each]

    assert len(everything) > 200
    assert 0.85 <= sum(everything) / len(everything) <= 0.97


def test_no_change_is_mostly_outside() -> None:
    assert [] == [change for change, each in inside().items() if sum(each) < 0.6 * len(each)]


def test_every_point_was_measured_or_says_why_not() -> None:
    lines = MEASURED.read_text().splitlines()

    assert {point.name for point in unfitted(GPU_KERNELS)} == {
        json.loads(line)["name"] for line in lines
    }

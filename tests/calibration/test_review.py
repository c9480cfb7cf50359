from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from layerwise.calibration.fit import fit_kind
from layerwise.calibration.review import Reviewed, boxes, likely_reason, review, worst
from layerwise.sim.profile import OpFit
from tests.calibration.fabricated import GPU, true_tables

NORMAL = Reviewed(
    kind="matmul",
    name="matmul/a/cold",
    features=(8.0, 1024.0, 1024.0),
    is_cold=True,
    measured_s=1e-5,
    predicted_s=0.8e-5,
    distance=0.2,
    near=10,
    spread=0.3,
    miss_share=1.0,
    compute_share=0.1,
)


def fitted() -> OpFit:
    return fit_kind(true_tables()["norm"], GPU, "here")


def test_a_point_that_was_spoilt_is_the_worst_and_says_why() -> None:
    table = true_tables(0.0)["norm"]
    odd = table.take(np.arange(len(table)))
    odd.seconds[7] *= 2
    found = worst(review({"norm": fit_kind(odd, GPU, "")}, {"norm": odd}, GPU), 3)

    assert table.names[7] == found[0][0].name
    assert found[0][0].ratio < 0.6
    assert found[0][1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"near": 1, "distance": 1.3}, "few neighbours: 1 within a factor of two, the nearest 1.3"),
        ({"is_cold": False, "miss_share": 0.4}, "near the L2's edge: 40% of its bytes miss"),
        ({"measured_s": 1e-3, "predicted_s": 0.8e-3, "compute_share": 0.7}, "power cap"),
        ({"spread": 0.01}, "a slower kernel than its 10 neighbours ran: outside the tiles known"),
        ({"spread": 0.01, "predicted_s": 1.3e-5}, "a faster kernel"),
        ({}, "its 10 neighbours differ among themselves by 35%"),
    ],
)
def test_reasons(changes: dict[str, object], reason: str) -> None:
    assert reason in likely_reason(replace(NORMAL, **changes))  # type: ignore[arg-type]


def test_boxes_of_a_good_fit_say_yes() -> None:
    found = boxes({"norm": fitted()}, (), (200, 0.9))

    assert ["yes"] * 4 == [box.answer for box in found]
    assert "90.0% of 200 points kept apart" == found[3].detail


def test_each_box_says_no_for_its_own_reason() -> None:
    fit = fitted()
    low = replace(fit.constants["launch_s"], value=0.3e-6)
    bad = replace(fit, constants=fit.constants | {"launch_s": low}, held_out_median_error=0.2)
    found = boxes({"norm": bad}, ("embed: flat",), (200, 0.99))

    assert ["no"] * 4 == [box.answer for box in found]
    assert ["embed: flat", "norm.launch_s", "norm 20.0%"] == [box.detail for box in found[:3]]


def test_coverage_that_nobody_measured_is_neither() -> None:
    assert "not measured" == boxes({}, (), None)[3].answer

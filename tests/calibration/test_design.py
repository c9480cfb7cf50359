from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from layerwise.calibration.dataset import Measurement
from layerwise.calibration.design import (
    anchor_points,
    designed,
    is_edge,
    needed_points,
    run_to_run,
    to_repeat,
)
from layerwise.calibration.points import attention_point, matmul_point
from layerwise.sim.cost.kinds import KINDS
from tests.calibration.fabricated import GPU, KERNELS, every_point, own_points
from tests.calibration.pretend_gpu import shipped_truth

POINTS = (*every_point(), *own_points())


def test_every_point_comes_once() -> None:
    assert {p.name for p in POINTS} == {p.name for p in designed(POINTS, GPU)}
    assert len({p.name for p in POINTS}) == len(designed(POINTS, GPU))


def test_what_every_fit_needs_comes_first() -> None:
    have = Counter(p.kind for p in POINTS)
    needed = {kind: min(needed_points(kind), have[kind]) for kind in KINDS}
    first = designed(POINTS, GPU)[: sum(needed.values()) + have["graph_launch"]]

    assert needed | {"graph_launch": have["graph_launch"]} == Counter(p.kind for p in first)
    assert {"graph_launch"} == {p.kind for p in first[: have["graph_launch"]]}


def test_edges_come_before_the_rest() -> None:
    made = designed(POINTS, GPU)
    first = sum(min(needed_points(k), Counter(p.kind for p in POINTS)[k]) for k in KINDS) + 7
    after = [is_edge(p, GPU) for p in made[first:]]

    assert 100 < sum(after)
    assert sorted(after, reverse=True) == after


def test_order_is_the_seeds() -> None:
    names = [[p.name for p in designed(POINTS, GPU, seed)] for seed in (1, 1, 2)]

    assert names[0] == names[1] != names[2]


def test_where_the_reference_is_least_certain_comes_before_the_rest() -> None:
    profile = shipped_truth()
    matmuls = [p for p in POINTS if p.kind in ("matmul", "norm") and not is_edge(p, GPU)]
    wide = profile.fits["norm"].error_scale
    assert wide
    fits = profile.fits | {
        "norm": replace(profile.fits["norm"], error_scale=replace(wide, floor=0.5))
    }
    made = designed(matmuls, GPU, reference=replace(profile, fits=fits))
    first = needed_points("matmul") + needed_points("norm")
    norms = [p.kind == "norm" for p in made[first:]]

    # All of them lie in the third that comes first.
    assert any(norms)
    assert len(norms) - norms[::-1].index(True) <= round(len(norms) / 3)


@pytest.mark.parametrize(
    ("point", "edge"),
    [
        (matmul_point(128, 132 * 128, 1024), True),  # one wave exactly
        (matmul_point(128, 200 * 128, 1024), False),  # one and a half
        (matmul_point(8, 1024, 8192), True),  # few tiles, long inner side: split-k
        (matmul_point(8, 200 * 128, 1000, warm=True), True),  # 51 MB of 52
        (attention_point(132, 8, 1, 1, 300, "math"), True),  # one walk an SM
        (attention_point(20, 8, 1, 1, 300, "math"), False),
    ],
)
def test_edges_are_where_regimes_change(point: object, edge: bool) -> None:
    assert edge == is_edge(point, GPU)


def test_anchor_has_some_of_every_kind_and_graph_launches_first() -> None:
    points = anchor_points(KERNELS, KINDS)
    counts = Counter(p.kind for p in points)

    assert 60 <= len(points) <= 250
    assert KINDS.keys() | {"graph_launch"} == counts.keys()
    assert min(counts.values()) >= 7
    assert ["graph_launch"] * 7 == [p.kind for p in points[:7]]


def test_few_of_the_first_are_repeated() -> None:
    names = [str(n) for n in range(1000)]
    chosen = to_repeat(names)

    assert 30 == len(set(chosen)) == len(chosen)
    assert set(chosen) < set(names[:100])
    assert to_repeat(names) == chosen


def test_spread_is_of_the_points_measured_twice() -> None:
    first = {name: Measurement(1e-3, 2) for name in "abc"}
    again = {"a": Measurement(1.01e-3, 2), "b": Measurement(1.02e-3, 2), "d": Measurement(9.0, 2)}
    spread = run_to_run(first, again)

    assert spread
    assert 2 == spread.num
    assert spread.median == pytest.approx((math.log(1.01) + math.log(1.02)) / 2)
    assert spread.median == spread.drift
    assert None is run_to_run(first, {})

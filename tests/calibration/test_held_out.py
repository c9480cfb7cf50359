"""Coverage on synthetic truth: noise that differs from place to place, and grows with distance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from layerwise.calibration.held_out import (
    COVERAGE,
    MIN_DRAWN,
    HeldOut,
    conformal_quantile,
    error_scale,
    local_errors,
)
from layerwise.sim.residuals import MIN_SLOPE, ResidualPoint, ResidualTable

NUM, NUM_NEW = 600, 2000


def noise(places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Heavy-tailed, and five times as large at one end as at the other."""
    return rng.laplace(size=len(places)) * (0.01 + 0.04 * places[:, 0] / 4)


def held(places: np.ndarray, ratios: np.ndarray) -> HeldOut:
    found = HeldOut.empty(np.arange(len(places)), [tuple(row) for row in places.tolist()])
    table = ResidualTable(
        [
            ResidualPoint(place=tuple(p), log_ratio=float(r))
            for p, r in zip(places.tolist(), ratios, strict=True)
        ]
    )
    found.predict(np.arange(len(places)), table, ratios)
    return found


@pytest.fixture(scope="module", params=[1, 2, 3])
def world(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, HeldOut]:
    rng = np.random.default_rng(request.param)
    places = rng.uniform(0, 4, (NUM, 2))
    ratios = noise(places, rng)
    return places, ratios, held(places, ratios)


def test_new_points_are_covered_everywhere(
    world: tuple[np.ndarray, np.ndarray, HeldOut],
) -> None:
    """Over all of them, and where noise is small or large alike."""
    places, ratios, left_out = world
    scale = error_scale(left_out, np.ones(NUM, dtype=bool))
    sizes = np.abs(left_out.log_errors)
    table = ResidualTable(
        [
            ResidualPoint(place=tuple(p), log_ratio=float(r), held_out_error=float(e))
            for p, r, e in zip(places.tolist(), ratios, sizes, strict=True)
        ]
    )
    rng = np.random.default_rng(9)
    new = rng.uniform(0, 4, (NUM_NEW, 2))
    nearby = [table.look(tuple(place)) for place in new.tolist()]
    errors = np.abs(noise(new, rng) - [one.log_ratio for one in nearby])
    inside = errors <= [scale.half_width(one) for one in nearby]

    assert 0.86 < inside.mean() < 0.94
    assert 0.82 < inside[new[:, 0] < 1].mean() < 0.98
    assert 0.82 < inside[new[:, 0] > 3].mean() < 0.98


def test_intervals_are_wider_where_errors_are(
    world: tuple[np.ndarray, np.ndarray, HeldOut],
) -> None:
    places, _, left_out = world
    errors = local_errors(left_out, np.abs(left_out.log_errors))

    assert 2 * errors[places[:, 0] < 1].mean() < errors[places[:, 0] > 3].mean()


def test_quantile_of_scores_covers_ninety_percent_of_new_ones() -> None:
    rng = np.random.default_rng(4)
    draws = [rng.exponential(size=100) for _ in range(2000)]
    covered = [rng.exponential() <= conformal_quantile(scores) for scores in draws]

    assert COVERAGE - 0.02 < np.mean(covered) < COVERAGE + 0.03


def test_quantile_counts_the_new_score_too() -> None:
    # Of 21 scores, the new one among them, 90 % are 18.9: the nineteenth.
    assert 19.0 == conformal_quantile(np.arange(1.0, 21.0))


def test_too_few_scores_give_the_largest() -> None:
    assert 3.0 == conformal_quantile(np.array([1.0, 3.0, 2.0]))


def test_farthest_is_the_largest_distance_at_which_a_point_was_scored() -> None:
    places = np.array([[0.0], [1.0], [3.0]])

    assert 2.0 == error_scale(held(places, np.zeros(3)), np.ones(3, dtype=bool)).farthest


def test_errors_that_grow_with_distance_are_the_slope() -> None:
    """A ramp is met half way by near neighbours and not at all by far ones."""
    line = np.linspace(0, 6, 150)[:, None]
    scale = error_scale(held(line, 0.3 * line[:, 0]), np.ones(150, dtype=bool))

    assert scale.slope > 0.1


def test_errors_that_do_not_grow_leave_the_least_slope() -> None:
    grid = np.linspace(0, 6, 150)[:, None]
    scale = error_scale(held(grid, np.zeros(150)), np.ones(150, dtype=bool))

    assert MIN_SLOPE == scale.slope


def test_random_shapes_are_scored_alone_where_there_are_enough(
    world: tuple[np.ndarray, np.ndarray, HeldOut],
) -> None:
    _, _, left_out = world
    enough, few = np.arange(NUM) < MIN_DRAWN, np.arange(NUM) < MIN_DRAWN - 1

    assert (MIN_DRAWN, NUM) == (
        error_scale(left_out, enough).num_scores,
        error_scale(left_out, few).num_scores,
    )


def test_a_group_never_tells_its_own_error() -> None:
    places = [(0.0,), (0.0,), (1.0,)]
    found = HeldOut.empty(np.array([0, 0, 1]), places)
    ratios = np.array([0.5, 0.5, 0.0])
    table = ResidualTable(
        [ResidualPoint(place=p, log_ratio=float(r)) for p, r in zip(places, ratios, strict=True)]
    )
    found.predict(np.arange(3), table, ratios)

    assert [0.5, 0.5] == pytest.approx(found.log_errors[:2].tolist())
    assert [1.0, 1.0, 1.0] == pytest.approx(found.distances.tolist())
    assert math.isclose(-0.5, found.log_errors[2], rel_tol=0.2)

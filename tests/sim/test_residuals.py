"""How wide the interval of one op is: errors around it, and the distance to what was measured."""

from __future__ import annotations

import pytest

from layerwise.sim.residuals import ErrorScale, Nearby, ResidualPoint, ResidualTable

SCALE = ErrorScale(quantile=2.0, floor=0.01, slope=0.05, reach=0.3, farthest=1.0, num_scores=100)


def test_within_reach_the_local_error_alone_tells_the_width() -> None:
    assert 2.0 * (0.03 + 0.01) == SCALE.half_width(Nearby(0.0, 0.03, 0.3))


def test_interval_widens_steadily_with_distance() -> None:
    distances = [0.0, 0.2, 0.3, 0.31, 0.5, 1.0, 2.0, 5.0]
    widths = [SCALE.half_width(Nearby(0.0, 0.03, distance)) for distance in distances]

    assert widths == sorted(widths)
    assert widths[0] == widths[2] < widths[3] < widths[-1]
    assert 0.05 * 3.0 == pytest.approx(widths[-1] - widths[-2])


def test_only_what_lies_farther_than_every_scored_point_is_far() -> None:
    assert [False, True] == [SCALE.is_far(Nearby(0.0, 0.0, d)) for d in (1.0, 1.01)]


def test_local_error_is_that_of_the_points_around() -> None:
    easy = [ResidualPoint(place=(0.01 * n,), log_ratio=0.0, held_out_error=0.01) for n in range(40)]
    hard = [
        ResidualPoint(place=(9 + 0.01 * n,), log_ratio=0.0, held_out_error=0.2) for n in range(40)
    ]
    table = ResidualTable([*easy, *hard])

    assert (0.01, 0.2) == (
        pytest.approx(table.look((0.2,)).error),
        pytest.approx(table.look((9.2,)).error),
    )


def test_distance_is_to_the_nearest_point() -> None:
    table = ResidualTable([ResidualPoint(place=(x, 0.0), log_ratio=0.0) for x in (0.0, 3.0)])

    assert 2.0 == pytest.approx(table.look((5.0, 0.0)).distance)


def test_without_points_nothing_is_known_nearby() -> None:
    assert Nearby(0.0, 0.0, 0.0) == ResidualTable(()).look((1.0,))

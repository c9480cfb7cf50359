from __future__ import annotations

import random
from statistics import mean, median

import pytest

from layerwise.calibration.bootstrap import (
    bootstrap_error,
    intercept,
    intercept_error,
    resampled_constant,
)


def test_error_of_a_mean_is_its_deviation_over_the_root_of_runs() -> None:
    rng = random.Random(1)
    runs = [[rng.gauss(10, 2)] for _ in range(64)]

    assert bootstrap_error(runs, mean) == pytest.approx(2 / 8, rel=0.25)


def test_readings_of_one_run_are_not_independent() -> None:
    runs = [[value] * 50 for value in (1.0, 2.0, 3.0, 4.0)]
    alone = [[reading] for run in runs for reading in run]

    assert bootstrap_error(runs, mean) > 4 * bootstrap_error(alone, mean)


def test_single_run_is_resampled_by_its_readings() -> None:
    assert 0.0 < bootstrap_error([[1.0, 2.0, 3.0, 4.0]], median)
    assert 0.0 == bootstrap_error([[1.0]], median)


def test_constant_counts_its_readings() -> None:
    made = resampled_constant([[1.0, 2.0], [3.0]], median, "s", "here", "graphs")

    assert (2.0, 3, "s", "here", "graphs") == (
        made.value,
        made.num_points,
        made.unit,
        made.source,
        made.valid,
    )
    assert made.standard_error > 0


def test_intercept_of_a_line_is_found_with_no_error_and_its_error_grows_with_noise() -> None:
    repeats = (32, 64, 96, 128)
    line = [3e-6 + 1e-6 * n for n in repeats]
    bent = [seconds * factor for seconds, factor in zip(line, (1.02, 0.99, 1.01, 1), strict=True)]

    assert intercept(repeats, line) == pytest.approx(3e-6)
    assert intercept_error(repeats, line) < 1e-12
    assert 1e-7 < intercept_error(repeats, bent)

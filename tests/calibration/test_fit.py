from __future__ import annotations

import numpy as np
import pytest

from layerwise.calibration.fit import (
    fit_kind,
    form_for,
    held_out_errors,
    parameters_at_bound,
    parameters_of,
    places_of,
    residual_points,
)
from layerwise.calibration.least_squares import FitError
from tests.calibration.fabricated import GPU, KINDS, TRUTH, astray, true_tables

FEW = {f"chunked_prefill_attention.heads_{size}" for size in (64, 96, 256)}


@pytest.mark.parametrize("kind", KINDS)
def test_fit_recovers_the_constants_that_made_the_data(kind: str) -> None:
    fit = fit_kind(true_tables()[kind], GPU, "made up")

    # 24 chunks in heads of a size tell seconds, and not each of seven constants.
    if kind not in FEW:
        assert {} == astray(fit, TRUTH[kind])
    assert fit.form_median_error < 0.015
    assert fit.held_out_median_error < 0.02
    assert fit.held_out_p90_error < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_form_of_the_fit_is_that_of_the_simulator(kind: str) -> None:
    table = true_tables(0.0)[kind]

    seconds = form_for(kind, GPU)(TRUTH[kind], table)

    assert seconds == pytest.approx(table.seconds, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_points_are_refused(kind: str) -> None:
    few = true_tables()[kind].take(np.arange(2 * len(parameters_of(kind)) - 1))

    with pytest.raises(FitError, match=f"{kind}: .* points for .* parameters; measure more"):
        fit_kind(few, GPU, "")


def test_range_of_a_fit_is_what_was_measured() -> None:
    table = true_tables()["norm"]
    fit = fit_kind(table, GPU, "here")

    assert ("tokens", "hidden_size") == fit.features
    assert tuple(zip(table.features.min(axis=0), table.features.max(axis=0), strict=True)) == (
        fit.valid
    )
    assert len(table) == fit.num_points
    assert {"here"} == {constant.source for constant in fit.constants.values()}


def test_residuals_are_kept_for_warm_and_cold_points_each_in_its_place() -> None:
    table = true_tables()["decode_attention"]
    warm = int(np.flatnonzero(~table.is_cold)[0])
    cold = table.take(np.array([warm]))
    cold.hbm_bytes[:], cold.l2_bytes[:] = cold.l2_bytes.copy(), 0.0

    points = residual_points(table, table.seconds / 1.1)

    assert len(points) == len(table)
    assert all(point.log_ratio == pytest.approx(np.log(1.1), abs=1e-4) for point in points)
    assert places_of(cold)[0][:-1] == places_of(table)[warm][:-1]
    assert places_of(cold)[0][-1] > places_of(table)[warm][-1]


def test_held_out_errors_see_what_a_fit_that_saw_the_point_would_hide() -> None:
    table = true_tables(0.0)["norm"]
    odd = table.take(np.arange(len(table)))
    odd.seconds[7] *= 2

    errors = held_out_errors(odd, GPU)

    assert len(table) == len(errors)
    assert 0.4 < errors[7] == errors.max()


def test_a_parameter_that_the_data_do_not_move_is_reported_at_its_bound() -> None:
    table = true_tables(0.0)["residual_add"]
    free = fit_kind(table, GPU, "")
    no_l2 = table.take(np.arange(len(table)))
    no_l2.seconds[:] -= table.l2_bytes / TRUTH["residual_add"]["l2_bytes_per_s"]

    assert () == parameters_at_bound("residual_add", free)
    assert ("l2_bytes_per_s",) == parameters_at_bound("residual_add", fit_kind(no_l2, GPU, ""))

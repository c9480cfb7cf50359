from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from layerwise.calibration import least_squares
from layerwise.calibration.least_squares import (
    Estimate,
    FitError,
    Parameter,
    fit_linear,
    fit_positive,
    significant,
    standard_errors,
)

LINE = {
    "offset": Parameter(start=1.0, low=0.01, high=100.0, unit="s"),
    "slope": Parameter(start=1.0, low=0.01, high=100.0, unit="s"),
}
X = np.linspace(0.1, 10, 60)


def line(values: dict[str, float]) -> least_squares.Column:
    return values["offset"] + values["slope"] * X


def noisy(seed: int, noise: float = 0.02) -> least_squares.Column:
    truth = line({"offset": 3.0, "slope": 0.5})
    return truth * (1 + noise * np.random.default_rng(seed).standard_normal(len(X)))


def test_fit_finds_the_truth() -> None:
    fitted = fit_positive("line", LINE, line, noisy(1, noise=0.0), soft=0.1)

    assert {"offset": 3.0, "slope": 0.5} == pytest.approx({n: e.value for n, e in fitted.items()})


def test_standard_errors_are_the_spread_of_repeated_fits() -> None:
    fits = [fit_positive("line", LINE, line, noisy(seed), soft=0.1) for seed in range(60)]
    spread = np.std([fit["slope"].value for fit in fits])

    assert spread == pytest.approx(np.mean([fit["slope"].standard_error for fit in fits]), rel=0.3)


def test_an_outlier_does_not_rule() -> None:
    data = noisy(1, noise=0.0)
    data[10] *= 20

    assert 0.5 == pytest.approx(
        fit_positive("line", LINE, line, data, soft=0.1)["slope"].value, rel=0.02
    )


def test_a_parameter_that_the_data_do_not_move_is_as_uncertain_as_its_bounds() -> None:
    flat = fit_positive("flat", LINE, lambda v: v["offset"] + 0 * X, noisy(1) * 0 + 3, soft=0.1)

    assert 3.0 == pytest.approx(flat["offset"].value)
    assert flat["slope"].value * np.log(100 / 0.01) == pytest.approx(flat["slope"].standard_error)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(FitError, match="line: 3 points for 2 parameters; measure more"):
        fit_positive("line", LINE, line, np.ones(3), soft=0.1)


def test_a_fit_that_does_not_converge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "MAX_EVALUATIONS", 1)

    with pytest.raises(FitError, match="line: the fit did not converge: .*maximum number"):
        fit_positive("line", LINE, line, noisy(1), soft=0.1)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.01, True), (0.0102, False), (5.0, False), (99.9, True)]
)
def test_values_near_a_bound_are_stopped_by_it(value: float, expected: bool) -> None:
    assert expected == LINE["slope"].is_bound(value)


def test_constants_have_four_digits_unit_and_source() -> None:
    constant = Estimate(1.23456789e-6, 1e-12).constant("s", "here")

    assert (1.235e-06, 1e-12, "s", "here") == (
        constant.value,
        constant.standard_error,
        constant.unit,
        constant.source,
    )


def test_significant_digits() -> None:
    assert [0.0, 1.2, 120000.0] == [significant(v, 2) for v in (0.0, 1.249, 123456.0)]


def test_one_outlier_does_not_rule_a_linear_fit() -> None:
    design = np.array([[1.0, float(x)] for x in range(20)])
    target = design @ np.array([2.0, 0.5])
    target[7] += 5.0

    found, residuals = fit_linear(design, target, soft=0.01)

    assert [2.0, 0.5] == pytest.approx(found, abs=0.01)
    assert -5.0 == pytest.approx(residuals[7], abs=0.1)


def test_linear_fit_gives_nothing_below_zero() -> None:
    design = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])

    found, _ = fit_linear(design, design @ np.array([1.0, -1.0]), soft=10.0)

    assert 0.0 <= found.min() < 1e-6


def test_columns_that_nothing_tells_apart_are_not_known() -> None:
    column = np.linspace(1, 2, 9)
    widths = np.array([100.0, 100.0, 100.0])
    design = np.stack([column, column * (1 + 1e-9), column**2], axis=1)

    errors = standard_errors(design, np.full(9, 1e-12), widths, 1e-3)

    assert [100 / 2**0.5] * 2 == pytest.approx(errors[:2], rel=1e-3)
    assert errors[2] < 0.01


def test_no_other_module_calls_the_solver() -> None:
    folder = Path(least_squares.__file__).parent
    callers = [p.name for p in folder.glob("*.py") if "import least_squares" in p.read_text()]

    assert ["least_squares.py"] == callers

"""Least squares for positive constants, by relative error, with standard errors.

Parameters are fitted as logarithms on ln(predicted / measured) with a soft-L1 loss, so that every
point counts by its relative error and no outlier rules. Source: scipy's `least_squares` (Branch,
Coleman, Li 1999).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerwise.sim.plan.errors import LayerwiseError
from layerwise.sim.profile import Constant

Column = npt.NDArray[np.float64]
MAX_EVALUATIONS = 400
# A parameter this near to a bound (in its logarithm) was stopped by it.
AT_BOUND = 0.01
# Variance of residuals that are rounding alone.
TINY = 1e-20


class FitError(LayerwiseError):
    """A fit that did not converge, or has too little data: no profile is written."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A positive constant to fit: where it starts and between which values it must stay."""

    start: float
    low: float
    high: float
    unit: str

    def is_bound(self, value: float) -> bool:
        """Does the value lie at one of the bounds?"""
        log = math.log(value)
        return log < math.log(self.low) + AT_BOUND or log > math.log(self.high) - AT_BOUND


@dataclass(frozen=True)
class Estimate:
    """A fitted value and its standard error, same unit."""

    value: float
    standard_error: float

    def constant(self, unit: str, source: str) -> Constant:
        """As a profile keeps it: four significant digits, because people read profiles."""
        return Constant(
            value=significant(self.value),
            standard_error=significant(self.standard_error),
            unit=unit,
            source=source,
        )


def fit_positive(
    what: str,
    parameters: Mapping[str, Parameter],
    predict: Callable[[dict[str, float]], Column],
    measured: Column,
    *,
    soft: float,
) -> dict[str, Estimate]:
    """The parameters for which `predict` is nearest to `measured`; both are [points], positive.

    `soft`: the relative error above which a point counts as an outlier. Raises FitError, naming
    `what`, with fewer than two points a parameter or when the fit does not converge.
    """
    # Only fitting needs scipy: reading what was fitted does not.
    from scipy.optimize import least_squares

    if len(measured) < 2 * len(parameters):
        raise FitError(
            f"{what}: {len(measured)} points for {len(parameters)} parameters; measure more"
        )
    target = np.log(measured)

    def residuals(logs: Column) -> Column:
        return np.log(predict(dict(zip(parameters, np.exp(logs), strict=True)))) - target

    starts, lows, highs = np.log([(p.start, p.low, p.high) for p in parameters.values()]).T
    found = least_squares(
        residuals,
        starts,
        bounds=(lows, highs),
        loss="soft_l1",
        f_scale=soft,
        x_scale="jac",
        max_nfev=MAX_EVALUATIONS,
        diff_step=1e-3,
    )
    if not found.success:
        raise FitError(f"{what}: the fit did not converge: {found.message}")
    values, errors = np.exp(found.x), standard_errors(found.jac, found.fun, highs - lows)
    return {
        name: Estimate(float(value), float(value * error))
        for name, value, error in zip(parameters, values, errors, strict=True)
    }


def fit_linear(design: Column, target: Column, *, soft: float) -> tuple[Column, Column]:
    """(x, residuals) with x >= 0 for which `design @ x` is nearest to `target`: soft L1 beyond `soft`.

    `design`: [points, x], `target`: [points].
    """
    from scipy.optimize import least_squares

    found = least_squares(
        lambda x: design @ x - target,
        np.ones(design.shape[1]),
        bounds=(0, np.inf),
        loss="soft_l1",
        f_scale=soft,
        xtol=1e-10,
        ftol=1e-12,
        gtol=1e-12,
    )
    return found.x, found.fun


def standard_errors(
    jacobian: Column, residuals: Column, widths: Column, scatter: float = 0.0
) -> Column:
    """Residual variance times the diagonal of the inverse normal matrix, rooted.

    A parameter is known to lie within its bounds, `widths` apart, before any data: one that the
    data do not move gets that width, where the bare inverse would be singular and say 0.
    `scatter`: what residuals are of at least, however well so few are met.
    """
    freedom = max(1, len(residuals) - jacobian.shape[1])
    variance = max(float(residuals @ residuals) / freedom, scatter**2, TINY)
    # By singular values: columns that the data do not tell apart leave no inverse to rounding.
    _, strengths, directions = np.linalg.svd(jacobian * widths / math.sqrt(variance))
    known = np.zeros(jacobian.shape[1])
    known[: len(strengths)] = strengths
    return widths * np.sqrt((1 / (1 + known**2)) @ directions**2)


def significant(value: float, digits: int = 4) -> float:
    """The value to so many significant digits."""
    return float(f"{value:.{digits}g}")

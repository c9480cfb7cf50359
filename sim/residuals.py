"""What was left around a physics form at each calibrated point: the correction and its error.

Shared by the fit, which makes the points, and the simulator, which looks them up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

NEIGHBOURS = 16
# Of so many neighbours the held-out errors are averaged: a mean of sizes needs more than a middle.
# 12 to 64 of them give intervals of nearly the same width.
ERROR_NEIGHBOURS = 32
# Weights of neighbours level off nearer than this, and the form alone weighs like one so far off.
NEAR, FAR = 0.15, 2.0
# Added to the errors around, so that points met exactly by luck promise nothing. Stated, not fitted:
# 0.3 % to 2 % cover alike.
FLOOR = 0.01
# Every interval widens with distance: at least by this per unit, where no error was seen to grow.
MIN_SLOPE = 0.01
# Farther than any op lies from any point; a file of JSON knows no infinity.
UNBOUNDED = 1e9


@dataclass(frozen=True, kw_only=True)
class ResidualPoint:
    """ln(measured / physics form) of one calibrated point, at its place (`cost.kinds`).

    `held_out_error`: |ln(measured / predicted)| by a fit that had not seen its shape.
    """

    __pydantic_config__ = {"extra": "forbid"}

    place: tuple[float, ...]
    log_ratio: float
    held_out_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Nearby:
    """What the calibrated points say about a place.

    `log_ratio`: measured over form; `error`: the size of held-out errors around it; `distance`:
    to the nearest point. A distance of 0.7 is a factor of two in one dimension.
    """

    log_ratio: float
    error: float
    distance: float


@dataclass(frozen=True, kw_only=True)
class ErrorScale:
    """How wide the 90 % interval of an op is: split-conformal, normalised by the errors around it.

    `quantile` times (local held-out error + FLOOR) covers 90 % of `num_scores` held-out points.
    Beyond `reach`, the median distance at which these were scored, it widens by `slope` per unit
    of distance; beyond `farthest` none was scored at all. Source: Papadopoulos et al. 2002
    (normalised scores), Lei et al. 2018 (split-conformal regression).
    """

    __pydantic_config__ = {"extra": "forbid"}

    quantile: float
    floor: float
    slope: float
    reach: float
    farthest: float
    num_scores: int

    @classmethod
    def constant(cls, half_width: float) -> ErrorScale:
        """The same everywhere, of a profile that kept no error of any point."""
        return cls(
            quantile=1.0,
            floor=half_width,
            slope=MIN_SLOPE,
            reach=0.0,
            farthest=UNBOUNDED,
            num_scores=0,
        )

    def half_width(self, nearby: Nearby) -> float:
        """Of ln(measured / predicted)."""
        beyond = max(0.0, nearby.distance - self.reach)
        return self.quantile * (nearby.error + self.floor) + self.slope * beyond

    def is_far(self, nearby: Nearby) -> bool:
        """Farther from every calibrated point than any that was scored?"""
        return nearby.distance > self.farthest


class ResidualTable:
    """Calibrated points of one kind of op, ready to be searched.

    `places` [points, coordinates], `log_ratios` and `errors` [points].
    """

    def __init__(self, points: Sequence[ResidualPoint]) -> None:
        self.places = np.array([point.place for point in points], dtype=np.float64)
        self.log_ratios = np.array([point.log_ratio for point in points], dtype=np.float64)
        self.errors = np.array([point.held_out_error for point in points], dtype=np.float64)

    def squares(self, place: tuple[float, ...]) -> Numbers:
        """Squared distance of every point; infinity takes a point out of what follows."""
        return ((self.places - np.array(place)) ** 2).sum(axis=1)

    def look(self, place: tuple[float, ...]) -> Nearby:
        """All there is to know about a place, in one search."""
        if not len(self.log_ratios):
            return Nearby(0.0, 0.0, 0.0)
        squares = self.squares(place)
        return Nearby(
            self.middle(squares), self.local_error(squares), math.sqrt(float(squares.min()))
        )

    def local_error(self, squares: Numbers) -> float:
        """Mean held-out error of the nearest points, weighted by distance."""
        errors = self.errors
        if len(squares) > ERROR_NEIGHBOURS:
            bound = np.partition(squares, ERROR_NEIGHBOURS - 1)[ERROR_NEIGHBOURS - 1]
            inside = squares <= bound
            squares, errors = squares[inside], errors[inside]
        weights = 1 / (squares + NEAR**2)
        return float((weights * errors).sum() / weights.sum())

    def interpolate(self, place: tuple[float, ...]) -> float:
        """Middle ln(measured / form) of the nearest calibrated points, weighted by distance.

        Far from every point the answer shrinks to 0: the physics form alone. Source:
        inverse-distance weighting (Shepard 1968) on log dimensions; it scored best of the simple
        learners on unseen (N, K) in the design's comparison of model forms.
        """
        return self.middle(self.squares(place)) if len(self.log_ratios) else 0.0

    def middle(self, squares: Numbers) -> float:
        # Ties go to the smaller ratio, whatever order the points stand in.
        near = np.argpartition(squares, NEIGHBOURS - 1) if len(squares) > NEIGHBOURS else None
        bound = squares.max() if near is None else squares[near[NEIGHBOURS - 1]]
        inside = np.flatnonzero(squares <= bound)
        found = sorted(zip(squares[inside].tolist(), self.log_ratios[inside].tolist(), strict=True))
        found = found[:NEIGHBOURS]
        # The middle half of the neighbours in the order of their ratios, by weight: one shape for
        # which a library chose a strange kernel has no say.
        ratios = sorted((ratio, 1 / (square + NEAR**2)) for square, ratio in found)
        total = sum(weight for _, weight in ratios)
        passed = weighted = middle = 0.0
        for ratio, weight in ratios:
            share = min(passed + weight, 0.75 * total) - max(passed, 0.25 * total)
            passed += weight
            if share > 0:
                weighted += share * ratio
                middle += share
        return weighted / middle * total / (total + FAR**-2)

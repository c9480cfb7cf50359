"""Held-out errors of one kind of op -> how wide its intervals are.

Split-conformal, normalised: each held-out error is divided by the mean held-out error around it,
and the 90 % quantile of these scores is what intervals are made of. Intervals hold for queries
that are drawn like the points scored, so points of random shapes are scored where there are enough;
a grid of powers of two is easier than what users ask. How errors grow with distance is measured by
pretending that nearer points do not exist.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from layerwise.sim.residuals import FLOOR, MIN_SLOPE, ErrorScale, ResidualPoint, ResidualTable

Column = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

COVERAGE = 0.90
# Fewer random shapes than these tell a 90 % quantile worse than all points do.
MIN_DRAWN = 50
# Neighbours nearer than these are left out, to see how errors grow; of so many points at most.
RADII = (0.5, 1.0, 2.0)
MAX_FAR_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Points predicted by a fit that had not seen their group. All columns are [points].

    `log_errors`: ln(measured / predicted). `distances`: to the nearest point of another group.
    `far_errors`, `far_distances` [radii, points]: without points nearer than each radius; NaN
    where not asked. `fold_errors`: |predicted / measured - 1|, corrected by the other folds only.
    """

    group: Rows
    places: list[tuple[float, ...]]
    log_errors: Column
    distances: Column
    far_errors: Column
    far_distances: Column
    fold_errors: Column

    @classmethod
    def empty(cls, group: Rows, places: list[tuple[float, ...]]) -> HeldOut:
        """Nothing predicted yet."""
        num = len(group)
        far = (len(RADII), num)
        return cls(
            group=group,
            places=places,
            log_errors=np.zeros(num),
            distances=np.zeros(num),
            far_errors=np.full(far, np.nan),
            far_distances=np.full(far, np.nan),
            fold_errors=np.zeros(num),
        )

    def with_errors(self, fold_errors: Column) -> HeldOut:
        """With the errors that are printed."""
        return replace(self, fold_errors=fold_errors)

    def predict(self, rows: Rows, table: ResidualTable, log_ratios: Column) -> None:
        """Fill in some rows: each from all groups but its own. `log_ratios`: measured over form."""
        every = max(1, len(self.group) // MAX_FAR_POINTS)
        for row in rows.tolist():
            squares = self.squares_of_others(table, row)
            self.log_errors[row] = log_ratios[row] - table.middle(squares)
            self.distances[row] = math.sqrt(float(squares.min()))
            for number, radius in enumerate(RADII if row % every == 0 else ()):
                far = np.where(squares < radius**2, np.inf, squares)
                if np.isfinite(far).any():
                    self.far_errors[number, row] = log_ratios[row] - table.middle(far)
                    self.far_distances[number, row] = math.sqrt(float(far.min()))

    def squares_of_others(self, table: ResidualTable, row: int) -> Column:
        """Squared distances of a point from all others, infinite for those of its own group."""
        squares = table.squares(self.places[row])
        return np.where(self.group == self.group[row], np.inf, squares)


def error_scale(held: HeldOut, is_drawn: npt.NDArray[np.bool_]) -> ErrorScale:
    """The scale of one kind's intervals. `is_drawn` [points]: of a random shape.

    With fewer than nine points the quantile is the largest score: it promises less than 90 %.
    """
    scored = is_drawn if is_drawn.sum() >= MIN_DRAWN else np.ones(len(held.group), dtype=np.bool_)
    sizes = np.abs(held.log_errors)
    errors = local_errors(held, sizes)
    quantile = conformal_quantile(sizes[scored] / (errors[scored] + FLOOR))
    reach = float(np.median(held.distances[scored]))
    slope = max(MIN_SLOPE, _slope(held, quantile * (errors + FLOOR), reach))
    return ErrorScale(
        quantile=round(quantile, 4),
        floor=FLOOR,
        slope=round(slope, 4),
        reach=round(reach, 4),
        farthest=round(float(held.distances[scored].max()), 4),
        num_scores=int(scored.sum()),
    )


def conformal_quantile(scores: Column) -> float:
    """The score that a new one, exchangeable with these, stays below with 90 % at least."""
    rank = math.ceil((len(scores) + 1) * COVERAGE)
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def local_errors(held: HeldOut, sizes: Column) -> Column:
    """The mean held-out error around each point, of other groups than its own."""
    table = ResidualTable(
        [
            ResidualPoint(place=place, log_ratio=0.0, held_out_error=float(size))
            for place, size in zip(held.places, sizes, strict=True)
        ]
    )
    rows = range(len(held.places))
    return np.array([table.local_error(held.squares_of_others(table, row)) for row in rows])


def _slope(held: HeldOut, half_widths: Column, reach: float) -> float:
    """What must be added per unit of distance so that 90 % stay covered at every radius."""
    found: list[float] = []
    for errors, distances in zip(held.far_errors, held.far_distances, strict=True):
        asked = ~np.isnan(errors)
        if not asked.any():
            continue
        missing = conformal_quantile(np.abs(errors[asked]) - half_widths[asked])
        beyond = float(np.median(distances[asked])) - reach
        if beyond > 0:
            found.append(missing / beyond)
    return max(found, default=0.0)

"""A fit as a person checks it: every point, the worst with a likely reason, and yes/no boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from layerwise.calibration.dataset import Table
from layerwise.calibration.fit import form_for, groups_of, parameters_at_bound, places_of
from layerwise.calibration.held_out import HeldOut
from layerwise.sim.plan.hardware import GpuSpec
from layerwise.sim.profile import OpFit
from layerwise.sim.residuals import ResidualTable

HELD_OUT_BAR = 0.10
COVERAGE_BAR = (0.85, 0.95)
# A factor of two in one dimension; fewer neighbours within it than this tell little.
NEAR, FEW_NEIGHBOURS = 0.7, 4
# So long a kernel at the peak draws all the power there is, and the clock falls.
LONG_S, LONG_FLOPS_SHARE = 300e-6, 0.5
# Neighbours that agree this well among themselves, and not with the point, ran another kernel.
AGREE = 0.5
Answer = Literal["yes", "no", "not measured"]


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """One measured point. `predicted_s`: as if its shape had not been measured.

    `spread`: of the corrections of its neighbours, as a logarithm; `near`: how many lie within NEAR.
    """

    kind: str
    name: str
    features: tuple[float, ...]
    is_cold: bool
    measured_s: float
    predicted_s: float
    distance: float
    near: int
    spread: float
    miss_share: float
    compute_share: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted_s / self.measured_s

    @property
    def log_error(self) -> float:
        """ln(measured / predicted)."""
        return math.log(self.measured_s / self.predicted_s)


@dataclass(frozen=True, kw_only=True)
class Box:
    """One question about the fit, and its answer with what it rests on."""

    question: str
    answer: Answer
    detail: str


def review(fits: Mapping[str, OpFit], by_kind: Mapping[str, Table], gpu: GpuSpec) -> list[Reviewed]:
    """Every point of every fitted kind."""
    return [
        one
        for kind, table in by_kind.items()
        if kind in fits
        for one in _review_kind(fits[kind], table, gpu)
    ]


def _review_kind(fit: OpFit, table: Table, gpu: GpuSpec) -> list[Reviewed]:
    formed, places = form_for(table.kind, gpu)(fit.values, table), places_of(table)
    residuals = ResidualTable(fit.residuals)
    held = HeldOut.empty(groups_of(table), places)
    if len(residuals.log_ratios) != len(table):
        raise ValueError(f"{table.kind}: the profile was not fitted to these points")
    found: list[Reviewed] = []
    total = table.hbm_bytes + table.l2_bytes
    for row, name in enumerate(table.names):
        squares = held.squares_of_others(residuals, row)
        inside = squares < NEAR**2
        known = bool(np.isfinite(squares).any())
        correction = residuals.middle(squares) if known else 0.0
        ratios = residuals.log_ratios[inside]
        found.append(
            Reviewed(
                kind=table.kind,
                name=name,
                features=tuple(table.features[row].tolist()),
                is_cold=bool(table.is_cold[row]),
                measured_s=float(table.seconds[row]),
                predicted_s=float(formed[row]) * math.exp(correction),
                distance=math.sqrt(float(squares.min())),
                near=int(inside.sum()),
                spread=float(np.std(ratios)) if len(ratios) > 1 else 0.0,
                miss_share=float(table.hbm_bytes[row] / total[row]) if total[row] else 0.0,
                compute_share=_flops(table, row) / gpu.peak_flops_per_s / float(table.seconds[row]),
            )
        )
    return found


def _flops(table: Table, row: int) -> float:
    if table.kind.startswith("matmul"):
        return 2 * float(np.prod(table.features[row]))
    return float(table.flops[row])


def worst(reviewed: Sequence[Reviewed], count: int = 10) -> list[tuple[Reviewed, str]]:
    """The points that are farthest off, and what the likely reason is."""
    ordered = sorted(reviewed, key=lambda one: -abs(one.log_error))
    return [(one, likely_reason(one)) for one in ordered[:count]]


def likely_reason(one: Reviewed) -> str:
    """A guess from where the point lies: the first that fits."""
    if one.near < FEW_NEIGHBOURS:
        return (
            f"few neighbours: {one.near} within a factor of two, the nearest {one.distance:.2g} off"
        )
    if 0.0 < one.miss_share < 1.0 and not one.is_cold:
        return f"near the L2's edge: {one.miss_share:.0%} of its bytes miss"
    slower = one.log_error > 0
    if slower and one.measured_s > LONG_S and one.compute_share > LONG_FLOPS_SHARE:
        return "long and near the peak: the power cap lowers the clock"
    if one.spread < AGREE * abs(one.log_error):
        other = "slower" if slower else "faster"
        return f"a {other} kernel than its {one.near} neighbours ran: outside the tiles known"
    return f"its {one.near} neighbours differ among themselves by {math.expm1(one.spread):.0%}"


def boxes(
    fits: Mapping[str, OpFit], failures: Sequence[str], coverage: tuple[int, float] | None
) -> list[Box]:
    """The four questions. `coverage`: of points kept apart, how many and the share inside."""
    bound = [
        f"{kind}.{name}" for kind, fit in fits.items() for name in parameters_at_bound(kind, fit)
    ]
    bad = [
        f"{kind} {fit.held_out_median_error:.1%}"
        for kind, fit in fits.items()
        if fit.held_out_median_error >= HELD_OUT_BAR
    ]
    return [
        Box(
            question="converged",
            answer="no" if failures else "yes",
            detail=", ".join(failures) or f"{len(fits)} kinds of op",
        ),
        Box(
            question="no parameter at its bound",
            answer="no" if bound else "yes",
            detail=", ".join(bound) or "all inside",
        ),
        Box(
            question=f"held-out error under {HELD_OUT_BAR:.0%}",
            answer="no" if bad else "yes",
            detail=", ".join(bad) or _worst_median(fits),
        ),
        _coverage_box(coverage),
    ]


def _worst_median(fits: Mapping[str, OpFit]) -> str:
    if not fits:
        return "no fit"
    kind = max(fits, key=lambda name: fits[name].held_out_median_error)
    return f"the worst kind is {kind}, median {fits[kind].held_out_median_error:.1%}"


def _coverage_box(coverage: tuple[int, float] | None) -> Box:
    low, high = COVERAGE_BAR
    question = f"coverage inside {low:.0%} to {high:.0%}"
    if coverage is None:
        return Box(question=question, answer="not measured", detail="no points were kept apart")
    num, share = coverage
    return Box(
        question=question,
        answer="yes" if low <= share <= high else "no",
        detail=f"{share:.1%} of {num} points kept apart",
    )

"""Fit what a GPU draws to points measured in both regimes of the clock: `power.jsonl`.

Energies are linear in the measured power at the measured clock and time; the exponent of the clock
is searched for. The power cap is the power at which clocks were held. The fast limit, and how much
of its form's slowdown an op bound by HBM shows, are those for which sustained times come out
nearest to the bursts' at the measured clocks.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np

from layerwise.calibration.held_out import conformal_quantile
from layerwise.calibration.least_squares import Column, FitError, fit_linear, significant
from layerwise.calibration.points import SweepPoint
from layerwise.calibration.power_points import power_points, set_aside
from layerwise.calibration.pricing import (
    Sustained,
    cost_of_points,
    point_seconds,
    price_sustained,
    walked_ops,
)
from layerwise.sim.cost.kinds import FlopEnergy, kind_of
from layerwise.sim.cost.model import Calibrated
from layerwise.sim.cost.power import flop_constant, share_within
from layerwise.sim.machine.blocks import Walked, walk
from layerwise.sim.machine.l2 import L2State
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.files import scenario_from_data
from layerwise.sim.plan.hardware import Speed
from layerwise.sim.plan.ops import LocalOp
from layerwise.sim.plan.scenario import compile_run
from layerwise.sim.profile import Constant, PowerFit, Profile
from layerwise.sim.trace import Trace

POWER_FILE = "power.jsonl"
# Of the highest SM clock, which a GPU shows when nothing holds it. Source: nvidia-smi -q -d CLOCK.
MAX_SM_CLOCK_HZ = {"h100-sxm": 1.98e9, "h200": 1.98e9}
FLOP_ENERGIES: tuple[FlopEnergy, ...] = get_args(FlopEnergy)
EXPONENTS = tuple(n / 50 for n in range(30, 126))
FAST_LIMITS_W = tuple(range(700, 1201, 10))
HBM_BOUND_SHARES = tuple(n / 20 for n in range(21))
# Relative errors beyond which a point is an outlier.
SOFT_POWER, SOFT_TIME = 0.05, 0.01
NUM_FOLDS = 5
LOWEST_PERCENT = 50
MIN_POINTS = 12


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a step asks of the machine: FLOPs by what they draw, bytes through L2 and HBM."""

    flops: Mapping[FlopEnergy, float]
    l2_bytes: float
    hbm_bytes: float

    @classmethod
    def of(cls, walked: Iterable[Walked]) -> Asked:
        """Add up ops as they were walked."""
        flops, moved, hbm = defaultdict[FlopEnergy, float](float), 0.0, 0.0
        for one in walked:
            if not isinstance(one.op, LocalOp):
                continue
            if energy := kind_of(one.op).flop_energy:
                flops[energy] += demand_of(one.op).flops
            hbm += one.traffic.hbm_bytes
            moved += one.traffic.hbm_bytes + one.traffic.l2_bytes
        return cls(flops=dict(flops), l2_bytes=moved, hbm_bytes=hbm)

    def energies(self, values: Mapping[str, float]) -> tuple[float, float]:
        """Joules in SMs and L2 at full clock, and of traffic with HBM."""
        sm_j = sum(flops * values[flop_constant(name)] for name, flops in self.flops.items())
        return sm_j + self.l2_bytes * values["l2_byte_j"], self.hbm_bytes * values["hbm_byte_j"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured point. Its ops are alike, so the last one's traffic stands for all of them."""

    point: SweepPoint
    burst_step_s: float
    step_s: float
    watts: float
    clock_share: float
    is_held: bool
    rest_w: float
    asked: Asked
    last: Walked
    cost: Calibrated

    @cached_property
    def is_hbm_bound(self) -> bool:
        """Does HBM bound its ops?"""
        return self.cost.local(self.point.op, self.last.traffic).bound == "hbm"

    @cached_property
    def form_s(self) -> dict[int, float]:
        """Seconds of its form at each hundredth of full clock from the lowest that was seen."""
        shares = range(LOWEST_PERCENT, 101)
        return {n: self._form_s(Speed(clock_share=n / 100)) for n in shares}

    def _form_s(self, speed: Speed) -> float:
        return self.cost.at_speed(speed).form(self.point.op, self.last.traffic)[0]


@dataclass(frozen=True, kw_only=True)
class Whole:
    """One whole step that a fit may see, measured in sustained work."""

    step_s: float
    watts: float
    clock_share: float
    asked: Asked


def read_power(path: Path, kernels: KernelChoice) -> dict[str, dict[str, Any]]:
    """Read a sweep in both regimes: each point's line by its name.

    Raises FileFormatError for a line that is none, or of another sweep.
    """
    known = {point.name for point in power_points(kernels)}
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            name, power_w = row["name"], row.get("power_w")
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise FileFormatError(f"{path}: line {number} is no point in both regimes") from error
        if name not in known:
            raise FileFormatError(f"{path}: line {number}: {name!r} is no point of this sweep")
        if power_w is not None:
            found[name] = row
    return found


def fit_power(
    path: Path, profile: Profile, kernels: KernelChoice, source: str, steps: Sequence[Trace] = ()
) -> PowerFit:
    """Fit a folder's power.jsonl, but for the points put aside, beside a profile's fits of ops.

    `steps`: whole decode steps that a fit may see; those that carry power count as points do.
    Raises FitError with fewer than MIN_POINTS points, or where no clock was ever held.
    """
    measured = read_power(path, kernels)
    aside = set_aside(measured)
    rows = rows_of(profile, kernels, {n: r for n, r in measured.items() if n not in aside})
    wholes = [_whole(trace, profile) for trace in steps if "mean_power_w" in trace.measured]
    if len(rows) < MIN_POINTS or not any(row.is_held for row in rows):
        raise FitError(
            f"{path}: {len(rows)} points, {sum(row.is_held for row in rows)} of them at a held "
            f"clock; measure {MIN_POINTS} or more (calibrate --what power)"
        )
    clocks, slowdowns, energies = _held_out_errors(rows, wholes, profile)
    return PowerFit(
        constants={
            name: Constant(
                value=significant(value),
                standard_error=significant(error),
                unit=unit_of(name),
                source=source,
                num_points=len(rows),
            )
            for name, (value, error) in _with_errors(rows, wholes).items()
        },
        clock_half_width=round(conformal_quantile(np.abs(clocks)), 4),
        slowdown_half_width=round(conformal_quantile(np.abs(slowdowns)), 4),
        energy_half_width=round(conformal_quantile(np.abs(energies)), 4),
    )


def review_power(
    path: Path, profile: Profile, kernels: KernelChoice
) -> list[tuple[Row, Sustained]]:
    """Return the points that were put aside, and what the profile says of each."""
    measured = read_power(path, kernels)
    aside = set_aside(measured)
    rows = rows_of(profile, kernels, {n: r for n, r in measured.items() if n in aside})
    return [(row, price_sustained(profile, row.point)) for row in rows]


def unit_of(constant: str) -> str:
    """Return the unit of a constant of a PowerFit."""
    if constant.endswith("_w"):
        return "W"
    if constant.startswith("flop_j"):
        return "J/FLOP"
    return "J/byte" if constant.endswith("_byte_j") else "1"


def rows_of(
    profile: Profile, kernels: KernelChoice, measured: Mapping[str, Mapping[str, Any]]
) -> list[Row]:
    """Join points and lines, with what a step asks of the machine."""
    cost = cost_of_points(replace(profile, power=None))
    full_hz = MAX_SM_CLOCK_HZ.get(profile.gpu) or max(
        line["mean_sm_clock_hz"] for line in measured.values()
    )
    return [
        _row(point, measured[point.name], cost, full_hz)
        for point in power_points(kernels)
        if point.name in measured
    ]


def _row(point: SweepPoint, line: Mapping[str, Any], cost: Calibrated, full_hz: float) -> Row:
    walked = walked_ops(cost, point)
    return Row(
        point=point,
        burst_step_s=line["burst_step_s"],
        step_s=line["step_s"],
        watts=line["power_w"],
        clock_share=min(1.0, line["mean_sm_clock_hz"] / full_hz),
        is_held=line.get("throttled", {}).get("software power cap", 0.0) > 0.5,
        rest_w=line.get("rest_power_w") or math.nan,
        asked=Asked.of(walked),
        last=walked[-1],
        cost=cost,
    )


def _whole(trace: Trace, profile: Profile) -> Whole:
    """A steady decode step of one rank, with the traffic that the profile says it has."""
    scenario = scenario_from_data(trace.scenario, trace.name)
    run = compile_run(scenario)
    rank = max(0, scenario.run.only_rank)
    parts = run[len(run) // 2].programs[rank].parts
    state = L2State(Calibrated.about(scenario.cluster, profile))
    walk(parts, state)
    full_hz = MAX_SM_CLOCK_HZ.get(profile.gpu, trace.measured["mean_sm_clock_hz"])
    return Whole(
        step_s=median(trace.untraced_step_s),
        watts=trace.measured["mean_power_w"],
        clock_share=min(1.0, trace.measured["mean_sm_clock_hz"] / full_hz),
        asked=Asked.of(walk(parts, state)),
    )


def _fitted(rows: Sequence[Row], wholes: Sequence[Whole]) -> dict[str, float]:
    """Every constant, of these points and whole steps alone."""
    idle_w = median(row.rest_w for row in rows if not math.isnan(row.rest_w))
    best = min(
        (_energies((*rows, *wholes), idle_w, exponent) for exponent in EXPONENTS),
        key=lambda found: found[0],
    )
    values = best[1] | {"slow_limit_w": median(row.watts for row in rows if row.is_held)}
    power = _without_errors(values)
    fast_w, share = min(
        product(FAST_LIMITS_W, HBM_BOUND_SHARES),
        key=lambda pair: _soft(_slowdown_errors(rows, power, *pair), SOFT_TIME),
    )
    return values | {"fast_limit_w": float(fast_w), "hbm_bound_share": share}


def _energies(
    rows: Sequence[Row | Whole], idle_w: float, exponent: float
) -> tuple[float, dict[str, float]]:
    """(loss, constants) of power that is linear in everything but the exponent of the clock."""
    names = [*map(flop_constant, FLOP_ENERGIES), "l2_byte_j", "hbm_byte_j"]
    scale = np.array([row.clock_share**exponent / row.step_s for row in rows])
    columns = [scale * [row.asked.flops.get(name, 0.0) for row in rows] for name in FLOP_ENERGIES]
    columns.append(scale * [row.asked.l2_bytes for row in rows])
    columns.append(np.array([row.asked.hbm_bytes / row.step_s for row in rows]))
    measured_w = np.array([row.watts for row in rows])
    design = np.stack(columns, axis=1)
    # Each constant in a unit in which it is about one; what no point has draws nothing.
    units = design.max(axis=0) / 100
    seen = units > 0
    found, residuals = fit_linear(
        design[:, seen] / units[seen] / measured_w[:, None],
        1 - idle_w / measured_w,
        soft=SOFT_POWER,
    )
    values = dict.fromkeys(names, 0.0)
    for index, value in zip(np.flatnonzero(seen), found / units[seen], strict=True):
        values[names[index]] = float(value)
    return _soft(residuals, SOFT_POWER), values | {"idle_w": idle_w, "exponent": exponent}


def _slowdown_errors(
    rows: Sequence[Row], power: PowerFit, fast_w: float, hbm_bound_share: float
) -> Column:
    """ln(predicted / measured) of sustained over burst, at the measured clocks."""
    return np.array(
        [
            math.log(_slowdown(row, power, fast_w, hbm_bound_share))
            - math.log(row.step_s / row.burst_step_s)
            for row in rows
        ]
    )


def _without_errors(values: Mapping[str, float]) -> PowerFit:
    """Constants on trial: nothing is known yet of how far they are off."""
    return PowerFit(
        constants={
            name: Constant(value=value, standard_error=0.0, unit=unit_of(name), source="")
            for name, value in values.items()
        },
        clock_half_width=0.0,
        slowdown_half_width=0.0,
        energy_half_width=0.0,
    )


def _slowdown(row: Row, power: PowerFit, fast_w: float, hbm_bound_share: float) -> float:
    sm_j, hbm_j = row.asked.energies(power.values)
    burst = share_within(power, fast_w, row.burst_step_s, sm_j, hbm_j)
    held, free = (max(LOWEST_PERCENT, round(100 * s)) for s in (row.clock_share, burst))
    ratio = row.form_s[held] / row.form_s[max(held, free)]
    return ratio ** (hbm_bound_share if row.is_hbm_bound else 1.0)


def _with_errors(rows: Sequence[Row], wholes: Sequence[Whole]) -> dict[str, tuple[float, float]]:
    """Each constant, and its standard error by leaving out a fold of the points at a time."""
    all_of_them = _fitted(rows, wholes)
    folds = [_fitted(_others(rows, fold), _others(wholes, fold)) for fold in range(NUM_FOLDS)]
    shrink = math.sqrt((NUM_FOLDS - 1) / NUM_FOLDS)
    return {
        name: (value, shrink * math.sqrt(sum((f[name] - value) ** 2 for f in folds)))
        for name, value in all_of_them.items()
    }


def _held_out_errors(
    rows: Sequence[Row], wholes: Sequence[Whole], profile: Profile
) -> tuple[Column, Column, Column]:
    """ln(measured / predicted) by the other folds' fit: held clocks, slowdowns there, all energies."""
    clocks: list[float] = []
    slowdowns: list[float] = []
    energies: list[float] = []
    for fold in range(NUM_FOLDS):
        fitted = _without_errors(_fitted(_others(rows, fold), wholes))
        for row in rows[fold::NUM_FOLDS]:
            found = price_sustained(replace(profile, power=fitted), row.point)
            energies.append(math.log(row.watts * row.step_s / found.energy_j))
            if row.is_held:
                clocks.append(math.log(row.clock_share / found.clock_share))
                burst_s = point_seconds(profile, row.point)
                measured = math.log(row.step_s / row.burst_step_s)
                slowdowns.append(measured - math.log(found.seconds / burst_s))
    return np.array(clocks), np.array(slowdowns), np.array(energies)


def _others(rows: Sequence[Any], fold: int) -> list[Any]:
    return [row for index, row in enumerate(rows) if index % NUM_FOLDS != fold]


def _soft(residuals: Column, soft: float) -> float:
    """Soft L1: squares of small errors, and of large ones their size."""
    return float(np.sum(2 * soft**2 * (np.sqrt(1 + (residuals / soft) ** 2) - 1)))

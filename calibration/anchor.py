"""A profile measured elsewhere, moved to this machine: few points, one scale a kind of op.

HBM's rate comes from reads, and moves the HBM rate of every kind. What is left of a kind's shift
is one factor on all its times and rates: shapes, tiles and residuals stay as they were. The factor
is the median of ln(measured / predicted) shrunk towards none, the less points say. A point of the
profile's own sweep is compared with what was measured there, not with its neighbours' middle, so
that a strange kernel at one shape cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from layerwise.calibration.dataset import Table
from layerwise.calibration.fit import form_for, parameters_of, places_of
from layerwise.calibration.held_out import conformal_quantile
from layerwise.calibration.least_squares import Parameter, significant
from layerwise.sim.plan.hardware import GpuSpec
from layerwise.sim.profile import Constant, OpFit, Profile

# Two machines of one type, clock and driver apart, differ by about this much: the prior's width.
# Stated, not fitted: published spreads of H100s in one cluster are 3 to 6 %.
PRIOR = 0.05
# A median's error is never below that of readings which scatter by this much from run to run.
RUN_TO_RUN = 0.01
# The standard error of a median over that of a mean, for normal errors; MAD to deviation.
MEDIAN_OVER_MEAN, MAD_TO_DEVIATION = 1.2533, 1.4826
SIGNIFICANT = 2.0
# One-sided 95 %: what a 90 % interval takes of an error.
NORMAL_95 = 1.645
SAME_PLACE = 1e-3
MIN_SCORES = 9
MIN_POINTS = 30
HBM_RATES = ("hbm_bytes_per_s",)
# Constants that drift with driver and clock, and are taken as they are measured here.
REFITTED = (
    "hbm_bytes_per_s",
    "read_hbm_bytes_per_s",
    "graph_launch_s",
    "graph_gap_s",
    "eager_issue_s",
)


@dataclass(frozen=True, kw_only=True)
class Shift:
    """How far one thing moved: ln(time here / time there), its standard error, from how many points.

    `applied`: what the new profile takes of it.
    """

    name: str
    log_shift: float
    standard_error: float
    num_points: int
    applied: float

    @property
    def is_significant(self) -> bool:
        """Is it more than chance: twice its standard error?"""
        return abs(self.log_shift) > SIGNIFICANT * self.standard_error


@dataclass(frozen=True, kw_only=True)
class MachineShift:
    """A machine constant before and after."""

    name: str
    old: Constant
    new: Constant

    @property
    def standard_error(self) -> float:
        """Of the difference."""
        return math.hypot(self.old.standard_error, self.new.standard_error)

    @property
    def is_significant(self) -> bool:
        """Is it more than chance? False where no error of either is known."""
        return 0 < SIGNIFICANT * self.standard_error < abs(self.new.value - self.old.value)


@dataclass(frozen=True, kw_only=True)
class Anchored:
    """A profile for this machine, and how far it is from the one it came from."""

    profile: Profile
    hbm: Shift
    kinds: tuple[Shift, ...]
    machine: tuple[MachineShift, ...]


def anchored(
    profile: Profile,
    by_kind: Mapping[str, Table],
    machine: Mapping[str, Constant],
    gpu: GpuSpec,
    provenance: Mapping[str, str],
    hashes: Mapping[str, str],
) -> Anchored:
    """The profile for the machine where the tables and the constants were measured.

    `machine`: those of REFITTED that were measured; the others stay. `provenance` tells this
    machine, and joins that of the profile's.
    """
    hbm = hbm_shift(profile, machine)
    moved = {kind: _with_hbm(kind, fit, hbm.applied) for kind, fit in profile.fits.items()}
    errors = {
        kind: log_errors(moved[kind], table, gpu)
        for kind, table in by_kind.items()
        if kind in moved
    }
    kinds = tuple(shift_of(kind, errors.get(kind, np.zeros(0))) for kind in sorted(moved))
    fits = {
        one.name: _widened(
            _scaled(one.name, moved[one.name], one.applied), one, errors.get(one.name, np.zeros(0))
        )
        for one in kinds
    }
    changed = {name: machine[name] for name in REFITTED if name in machine}
    made = replace(
        profile,
        name=f"{profile.name}, anchored",
        fits=fits,
        machine=profile.machine | changed,
        provenance=_provenance(profile, provenance, kinds),
        data_hashes=profile.data_hashes | {f"anchor/{name}": h for name, h in hashes.items()},
    )
    return Anchored(
        profile=made,
        hbm=hbm,
        kinds=kinds,
        machine=tuple(
            MachineShift(name=n, old=profile.machine[n], new=c)
            for n, c in changed.items()
            if n in profile.machine
        ),
    )


def hbm_shift(profile: Profile, machine: Mapping[str, Constant]) -> Shift:
    """How much slower HBM is here by the read curve; not applied where it may be chance."""
    name = "read_hbm_bytes_per_s"
    if name not in machine or name not in profile.machine:
        return Shift(name="HBM", log_shift=0.0, standard_error=PRIOR, num_points=0, applied=0.0)
    old, new = profile.machine[name], machine[name]
    found = Shift(
        name="HBM",
        log_shift=math.log(old.value / new.value),
        standard_error=math.hypot(old.standard_error / old.value, new.standard_error / new.value)
        or RUN_TO_RUN,
        num_points=1,
        applied=0.0,
    )
    return replace(found, applied=found.log_shift if found.is_significant else 0.0)


def log_errors(
    fit: OpFit, table: Table, gpu: GpuSpec
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """ln(measured here / what the profile says) of each point of one kind. [points]"""
    formed = form_for(table.kind, gpu)(fit.values, table)
    own = {tuple(round(c, 3) for c in point.place): point.log_ratio for point in fit.residuals}
    found: list[float] = []
    for place, seconds, form in zip(places_of(table), table.seconds, formed, strict=True):
        known = own.get(tuple(round(c, 3) for c in place))
        found.append(
            math.log(seconds / form) - (fit.nearby(place).log_ratio if known is None else known)
        )
    return np.array(found)


def shift_of(kind: str, errors: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Shift:
    """One kind's shift: the median, shrunk to none by the prior's width over its own error."""
    num = len(errors)
    if not num:
        return Shift(name=kind, log_shift=0.0, standard_error=PRIOR, num_points=0, applied=0.0)
    middle = float(np.median(errors))
    deviation = MAD_TO_DEVIATION * float(np.median(np.abs(errors - middle)))
    # A few points have a small scatter by chance: they are held to the prior's as well.
    deviation = math.hypot(deviation, PRIOR / num) if num < MIN_SCORES else deviation
    error = MEDIAN_OVER_MEAN * max(deviation, RUN_TO_RUN) / math.sqrt(num)
    shrunk = middle * PRIOR**2 / (PRIOR**2 + error**2)
    return Shift(name=kind, log_shift=middle, standard_error=error, num_points=num, applied=shrunk)


def _with_hbm(kind: str, fit: OpFit, log_shift: float) -> OpFit:
    """The kind with slower HBM; residuals stay what they are around the form."""
    del kind
    factor = math.exp(-log_shift)
    return replace(
        fit,
        constants={
            name: _times(constant, factor) if name in HBM_RATES else constant
            for name, constant in fit.constants.items()
        },
    )


def _scaled(kind: str, fit: OpFit, log_shift: float) -> OpFit:
    """All times of a kind by one factor: its form is as much slower everywhere."""
    factor, parameters = math.exp(log_shift), parameters_of(kind)
    return replace(
        fit,
        constants={
            name: _times(constant, factor ** power_of(parameters[name]))
            if name in parameters
            else constant
            for name, constant in fit.constants.items()
        },
    )


def power_of(parameter: Parameter) -> int:
    """How a constant moves when all its kind's times double: with them, against them, or not."""
    if parameter.unit == "s":
        return 1
    return -1 if parameter.unit.startswith("bytes/s") or parameter.unit == "of peak" else 0


def _times(constant: Constant, factor: float) -> Constant:
    if factor == 1.0:
        return constant
    return replace(
        constant,
        value=significant(constant.value * factor, 6),
        standard_error=significant(constant.standard_error * factor),
        source=f"{constant.source}; anchored x {factor:.4g}",
    )


def _widened(
    fit: OpFit, shift: Shift, errors: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> OpFit:
    """Intervals that also hold what the shift may be off, and the scatter seen here.

    The shift's error is all of the prior where nothing was measured.
    """
    scale = fit.error_scale
    if scale is None:
        return fit
    left = (
        PRIOR
        if not shift.num_points
        else (PRIOR * shift.standard_error / math.hypot(PRIOR, shift.standard_error))
    )
    extra = NORMAL_95 * left
    if len(errors) >= MIN_SCORES:
        # What scatters here around the shift, beyond what the profile already grants.
        seen = conformal_quantile(np.abs(errors - shift.applied))
        usual = scale.quantile * (
            float(np.median([p.held_out_error for p in fit.residuals] or [0])) + scale.floor
        )
        extra = max(extra, seen - usual)
    return replace(
        fit, error_scale=replace(scale, floor=round(scale.floor + extra / scale.quantile, 5))
    )


def _provenance(
    profile: Profile, here: Mapping[str, str], kinds: Sequence[Shift]
) -> dict[str, str]:
    moved = ", ".join(
        f"{one.name} {math.expm1(one.applied):+.1%}" for one in kinds if one.is_significant
    )
    return {
        **profile.provenance,
        "anchored_from": f"{profile.name}, digest {profile.digest}",
        **{f"anchored_{key}": value for key, value in here.items()},
        "anchored_shifts": moved or "none is significant",
    }

"""One physics form per kind of op, then what remains around it at each calibrated shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt

from layerwise.calibration.dataset import Table
from layerwise.calibration.held_out import HeldOut, error_scale
from layerwise.calibration.least_squares import Parameter, fit_positive
from layerwise.sim.cost import forms, kinds
from layerwise.sim.cost.kinds import Rows, kind_named
from layerwise.sim.plan.hardware import GpuSpec
from layerwise.sim.profile import Constant, OpFit
from layerwise.sim.residuals import ResidualPoint, ResidualTable

Form = Callable[[dict[str, float], Table], npt.NDArray[np.float64]]
FOLDS = 5

MEMORY = {
    "hbm_bytes_per_s": Parameter(start=2.9e12, low=0.5e12, high=1e13, unit="bytes/s"),
    "l2_bytes_per_s": Parameter(start=5.5e12, low=1e12, high=2e13, unit="bytes/s"),
}
LAUNCH = {"launch_s": Parameter(start=2e-6, low=0.3e-6, high=30e-6, unit="s")}
MISS = {"miss_s": Parameter(start=0.6e-6, low=0.01e-6, high=5e-6, unit="s")}
PREFILL = LAUNCH | {
    "efficiency": Parameter(start=0.5, low=0.05, high=1.0, unit="of peak"),
    "block_s": Parameter(start=2e-6, low=0.01e-6, high=50e-6, unit="s"),
    "tail": Parameter(start=0.8, low=0.01, high=10.0, unit="tiles"),
}
MATMUL = (
    LAUNCH
    | MISS
    | MEMORY
    | {
        "efficiency": Parameter(start=0.85, low=0.3, high=1.1, unit="of peak"),
        "sm_bytes_per_s": Parameter(start=100e9, low=5e9, high=400e9, unit="bytes/s per SM"),
        "prologue_s": Parameter(start=0.3e-6, low=0.01e-6, high=5e-6, unit="s"),
        "epilogue_bytes_per_s": Parameter(start=50e9, low=1e9, high=5e12, unit="bytes/s per SM"),
        "split_s": Parameter(start=2e-6, low=0.05e-6, high=10e-6, unit="s"),
        "reduction_bytes_per_s": Parameter(start=2e12, low=0.2e12, high=2e13, unit="bytes/s"),
        "power": Parameter(start=3.0, low=1.0, high=20.0, unit="1"),
    }
)
DECODE = (
    LAUNCH
    | MISS
    | MEMORY
    | {
        "tile_s": Parameter(start=0.6e-6, low=0.01e-6, high=5e-6, unit="s"),
        "split_s": Parameter(start=2e-6, low=0.05e-6, high=20e-6, unit="s"),
    }
)
CHUNK = PREFILL | {
    "solo": Parameter(start=0.6, low=0.3, high=1.0, unit="1"),
    "split_efficiency": Parameter(start=1.0, low=0.3, high=2.0, unit="1"),
    "split_s": Parameter(start=5e-6, low=0.05e-6, high=100e-6, unit="s"),
}
# What is fitted of each form, whichever kinds have it.
PARAMETERS: dict[kinds.Form, dict[str, Parameter]] = {
    kinds.pointwise: LAUNCH | MEMORY,
    kinds.matmul: MATMUL,
    kinds.decode_attention: DECODE,
    kinds.decode_attention_in_one_wave: DECODE,
    kinds.skinny_matmul: LAUNCH
    | MISS
    | MEMORY
    | {
        "step_s": Parameter(start=0.1e-6, low=0.001e-6, high=2e-6, unit="s"),
        "split_s": Parameter(start=1e-6, low=0.01e-6, high=10e-6, unit="s"),
        "power": Parameter(start=3.0, low=1.0, high=20.0, unit="1"),
    },
    kinds.sample: LAUNCH
    | {
        "seconds_per_logit": Parameter(start=2e-10, low=1e-12, high=1e-8, unit="s"),
    },
    kinds.row_by_row: LAUNCH | {"row_s": Parameter(start=4e-7, low=1e-9, high=1e-5, unit="s")},
    kinds.prefill_attention: PREFILL,
    kinds.chunk_attention: CHUNK,
    kinds.chunk_attention_wide_heads: CHUNK,
}


def parameters_of(kind: str) -> dict[str, Parameter]:
    """Return what is fitted of a kind's physics form; raise UnknownKindError for no kind."""
    return PARAMETERS[kind_named(kind).form]


def parameters_at_bound(kind: str, fit: OpFit) -> tuple[str, ...]:
    """Constants that a bound stopped: the data do not tell them, or the form is wrong there."""
    return tuple(
        name
        for name, parameter in parameters_of(kind).items()
        if parameter.is_bound(fit.values[name])
    )


def form_for(kind: str, gpu: GpuSpec) -> Form:
    """Return the physics form of a kind, as a function of (constants, table)."""
    form = kind_named(kind).form

    def seconds(constants: dict[str, float], table: Table) -> npt.NDArray[np.float64]:
        asked = Rows(
            tuple(table.features.T),
            table.hbm_bytes,
            table.l2_bytes,
            table.head_dim,
            gpu.num_sms,
            gpu.peak_flops_per_s,
        )
        return form(constants, asked).seconds

    return seconds


def fit_kind(table: Table, gpu: GpuSpec, source: str, drawn: Collection[str] = ()) -> OpFit:
    """Fit one kind of op, with errors on points left out of the fit.

    `drawn`: names of the points whose shapes were drawn at random; they tell how wide intervals
    are. Raises FitError when there are too few points or the fit does not converge.
    """
    constants = fit_form(table, gpu, source)
    values = {name: constant.value for name, constant in constants.items()}
    form = form_for(table.kind, gpu)
    errors = np.abs(form(values, table) / table.seconds - 1)
    left_out = hold_out(table, gpu)
    printed = left_out.fold_errors
    features = table.features
    return OpFit(
        constants=constants,
        residuals=residual_points(table, form(values, table), np.abs(left_out.log_errors)),
        features=kind_named(table.kind).features,
        valid=tuple((float(c.min()), float(c.max())) for c in features.T),
        num_points=len(table),
        form_median_error=round(float(np.median(errors)), 5),
        held_out_median_error=round(float(np.median(printed)), 5),
        held_out_p90_error=round(float(np.quantile(printed, 0.9)), 5),
        error_scale=error_scale(left_out, np.array([name in drawn for name in table.names])),
        head_dims=_head_dims(table),
    )


def _head_dims(table: Table) -> tuple[int, ...]:
    """The head sizes of the points, or the usual one where ops have no heads."""
    return tuple(sorted({int(size) for size in table.head_dim.tolist() if size})) or OpFit.head_dims


def fit_form(table: Table, gpu: GpuSpec, source: str) -> dict[str, Constant]:
    """The constants of a kind's physics form with their standard errors."""
    parameters, form = parameters_of(table.kind), form_for(table.kind, gpu)
    fitted = fit_positive(
        table.kind, parameters, lambda values: form(values, table), table.seconds, soft=0.1
    )
    return {
        name: estimate.constant(parameters[name].unit, source) for name, estimate in fitted.items()
    }


def residual_points(
    table: Table,
    predicted: npt.NDArray[np.float64],
    held_out: npt.NDArray[np.float64] | None = None,
) -> tuple[ResidualPoint, ...]:
    """ln(measured / form) of every point. Warm and cold ones differ in place by what misses."""
    errors = np.zeros(len(table)) if held_out is None else held_out
    return tuple(
        ResidualPoint(
            place=tuple(round(value, 4) for value in place),
            log_ratio=round(math.log(measured / form), 4),
            held_out_error=round(float(error), 4),
        )
        for place, measured, form, error in zip(
            places_of(table), table.seconds, predicted, errors, strict=True
        )
    )


def places_of(table: Table) -> list[tuple[float, ...]]:
    """Where each point lies among the others."""
    place_of = kind_named(table.kind).place_of
    shares = np.asarray(forms.miss_share(table.hbm_bytes, table.l2_bytes))
    return [
        place_of(tuple(row), share)
        for row, share in zip(table.features.tolist(), shares.tolist(), strict=True)
    ]


def hold_out(table: Table, gpu: GpuSpec) -> HeldOut:
    """Every point, predicted as if its group had never been measured.

    Matmuls are grouped by (columns, inner), so a weight shape is held out whole; other kinds by
    shape. The form is fitted to the other folds. The errors that are printed correct it by these
    alone; those of intervals by every other group, for so many will stand around a new shape.
    """
    group = groups_of(table)
    fold = (group * 7) % FOLDS
    places = places_of(table)
    form = form_for(table.kind, gpu)
    fold_errors, found = np.zeros(len(table)), HeldOut.empty(group, places)
    for number in sorted(set(fold.tolist())):
        test = np.flatnonzero(fold == number)
        constants = {n: c.value for n, c in fit_form(table.take(fold != number), gpu, "").items()}
        predicted = form(constants, table)
        whole = ResidualTable(residual_points(table, predicted))
        for row in test:
            squares = np.where(fold == number, np.inf, whole.squares(places[row]))
            corrected = predicted[row] * math.exp(whole.middle(squares))
            fold_errors[row] = abs(corrected / table.seconds[row] - 1)
        found.predict(test, whole, np.log(table.seconds / predicted))
    return found.with_errors(fold_errors)


def groups_of(table: Table) -> npt.NDArray[np.int64]:
    """Return which points are left out together, such as those of a matmul's weight. [points]"""
    kind = kind_named(table.kind)
    by = kind.left_out_by or kind.features
    columns = [kind.features.index(name) for name in by]
    groups = [tuple(row) for row in table.features[:, columns].tolist()]
    order = {group: number for number, group in enumerate(sorted(set(groups)))}
    return np.array([order[one] for one in groups])


def held_out_errors(table: Table, gpu: GpuSpec) -> npt.NDArray[np.float64]:
    """|predicted / measured - 1| of each point, by a fit of the other folds."""
    return hold_out(table, gpu).fold_errors

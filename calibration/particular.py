"""The ops of one scenario, measured as they are: points that a profile is given beside its own.

A point repeats one op in a row of its kind, cold or warm, as a sweep does; what the scenario's own
state of the L2 makes of it stays the simulator's to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np

from layerwise.calibration.dataset import Table
from layerwise.calibration.fit import form_for, places_of
from layerwise.calibration.points import (
    SweepPoint,
    activation_point,
    attention_point,
    matmul_point,
    norm_point,
    point,
    residual_point,
    rotary_point,
)
from layerwise.sim.cost.kinds import kind_of
from layerwise.sim.cost.unfitted import changes_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.hardware import GpuSpec
from layerwise.sim.plan.ops import LocalOp
from layerwise.sim.plan.scenario import Scenario, compile_run, place
from layerwise.sim.profile import OpFit, Profile
from layerwise.sim.residuals import NEIGHBOURS, ResidualPoint

# A place is believed to be what was measured at it when the profile says it this exactly.
BELIEVED = 0.003
# A measured shape is known to within the spread from run to run.
RUN_TO_RUN = 0.01


@dataclass(frozen=True)
class Wanted:
    """The points of a scenario, and the ops that no point can stand for, with the reason."""

    points: tuple[SweepPoint, ...]
    left_out: tuple[str, ...]


def points_of(scenario: Scenario, profile: Profile) -> Wanted:
    """Every distinct local op of every rank, at each number of microbatches that may be chosen.

    Cold, and warm where its weights or KV may stay in the L2. Collectives are left to the profile.
    So are ops of a kernel, head size or dtype that the profile's fits have not seen: their points
    would be taken for the fitted kernel's.
    """
    points: dict[str, SweepPoint] = {}
    left_out: dict[str, None] = {}
    seen: set[tuple[str, tuple[float, ...]]] = set()
    for op in ops_of(scenario):
        kind = kind_of(op, profile.fits)
        key = (kind.name, kind.features_of(op))
        if key in seen:
            continue
        seen.add(key)
        if key[0] in profile.fits and (changes := changes_of(op, profile, scenario.cluster.gpu)):
            left_out[f"{key[0]} {op.name}: {', '.join(one.used for one in changes)}"] = None
            continue
        for is_warm in (False, True):
            made = replace(point_of(op, warm=is_warm), kind=kind.name)
            rotating_bytes = _own_bytes(made.op)
            if not is_warm or 0 < rotating_bytes <= scenario.cluster.gpu.l2_bytes:
                points.setdefault(made.name, made)
    return Wanted(tuple(points.values()), tuple(left_out))


def ops_of(scenario: Scenario) -> Iterable[LocalOp]:
    """The local ops of all ranks, under each number of microbatches that a search may try."""
    numbers = [scenario.workload.num_microbatches]
    if not numbers[0]:
        limit = scenario.workload.batch_size // place(scenario).data_parallel
        stages = min(place(scenario).num_stages, limit)
        numbers = sorted({max(1, min(limit, round(stages * 2.0**n))) for n in range(-16, 17)})
    for number in numbers:
        run = compile_run(scenario.with_microbatches(number))
        for step in run:
            for program in step.programs:
                for segment in {id(part.segment): part.segment for part in program.parts}.values():
                    for op in segment.ops:
                        if isinstance(op, LocalOp):
                            yield op


def point_of(op: LocalOp, *, warm: bool) -> SweepPoint:
    """The point that measures an op of this shape, under the name that a sweep gives it."""
    match op:
        case ops.Matmul():
            return matmul_point(op.rows, op.columns, op.inner, warm=warm, kernel=op.kernel)
        case ops.Attention():
            return attention_point(
                op.sequences,
                op.num_heads,
                op.num_key_value_heads,
                op.query_tokens,
                op.context_tokens,
                op.kernel,
                warm=warm,
                head_dim=op.head_dim,
            )
        case ops.Norm():
            return norm_point(op.tokens, op.hidden_size, fused=op.delta is not None)
        case ops.ResidualAdd():
            return residual_point(op.tokens, op.hidden_size)
        case ops.GatedActivation():
            return activation_point(op.tokens, op.intermediate_size)
        case ops.RotaryWrite():
            return rotary_point(op.tokens, op.num_heads, op.num_key_value_heads)
        case ops.Embed():
            return point(kind_of(op).name, f"t{op.tokens}.h{op.hidden_size}", op, 0)
        case ops.Sample():
            return point(kind_of(op).name, f"s{op.sequences}.v{op.vocab_size}", op, 0)
        case _:
            assert_never(op)


def _own_bytes(op: LocalOp) -> int:
    """Weights or KV that a cold point rotates; 0 of an op that has neither."""
    own = kind_of(op).own
    return getattr(op, own).num_bytes if own else 0


def with_points(
    profile: Profile,
    by_kind: Mapping[str, Table],
    gpu: GpuSpec,
    provenance: Mapping[str, str],
    hashes: Mapping[str, str],
) -> Profile:
    """The profile with what was measured at these shapes as points of its own.

    The form stays; each place says what was measured there, and ranges reach as far as the shapes.
    A kind that the profile does not have is left out: no form is known to correct.
    """
    fits = {
        kind: _with_table(fit, by_kind[kind], gpu) if kind in by_kind else fit
        for kind, fit in profile.fits.items()
    }
    return replace(
        profile,
        fits=fits,
        provenance={**profile.provenance, **provenance},
        data_hashes={**profile.data_hashes, **hashes},
    )


def _with_table(fit: OpFit, table: Table, gpu: GpuSpec) -> OpFit:
    ratios = np.log(table.seconds / form_for(table.kind, gpu)(fit.values, table))
    places = places_of(table)
    new = [
        ResidualPoint(
            place=tuple(round(value, 4) for value in where),
            log_ratio=round(float(ratio), 4),
            held_out_error=RUN_TO_RUN,
        )
        for where, ratio in zip(places, ratios, strict=True)
    ]
    own = {point.place for point in new}
    old = [point for point in fit.residuals if point.place not in own]
    features = table.features
    reach = zip(fit.valid, features.min(axis=0), features.max(axis=0), strict=True)
    valid = tuple((min(low, float(a)), max(high, float(b))) for (low, high), a, b in reach)
    return replace(
        fit,
        residuals=(*old, *_believed(old, new)),
        valid=valid,
        num_points=fit.num_points + len(table),
    )


def _believed(old: Sequence[ResidualPoint], new: Sequence[ResidualPoint]) -> list[ResidualPoint]:
    """Each new point as often as it takes for the middle of its neighbours to be what it says.

    A correction is the middle of sixteen neighbours by weight: among many that are near, one exact
    point has no say. Each copy counts as a neighbour.
    """
    copies = dict.fromkeys(range(len(new)), 1)
    for _ in range(int(math.log2(NEIGHBOURS))):
        made = [point for row, point in enumerate(new) for _ in range(copies[row])]
        table = OpFit(constants={}, residuals=(*old, *made))
        wrong = [
            row
            for row, point in enumerate(new)
            if abs(table.nearby(point.place).log_ratio - point.log_ratio) > BELIEVED
        ]
        if not wrong:
            break
        for row in wrong:
            copies[row] *= 2
    return [point for row, point in enumerate(new) for _ in range(copies[row])]

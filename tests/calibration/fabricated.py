"""Measurements made up from the synthetic profile: what a fit must find its way back from."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np

from layerwise.calibration.dataset import Measurement, Table, gpu_with_ramp, steady_traffic, tables
from layerwise.calibration.edges import fitted_edges
from layerwise.calibration.l2_curve import pass_seconds
from layerwise.calibration.points import SweepPoint
from layerwise.calibration.sweeps import (
    flash_attention,
    skinny_matmuls,
    split_decodes,
    supplement,
    sweep,
)
from layerwise.sim.cost import kinds
from layerwise.sim.cost.kinds import kind_named
from layerwise.sim.cost.model import Calibrated
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario, compile_run
from layerwise.sim.plan.workload import Workload
from layerwise.sim.profile import OpFit, Profile
from layerwise.sim.simulate import simulate
from layerwise.sim.trace import Trace, as_data
from tests.sim.scenes import scenario_of
from tests.synthetic import FORMS, POINTWISE, constant, synthetic_profile

GPU = GPUS["h100-sxm"]
KERNELS = KernelChoice()
L2 = gpu_with_ramp("h100-sxm", 0.75, 0.95)
GRAPH_LAUNCH_S = 3e-6
MACHINE_L2 = {
    "read_launch_s": 1.8e-6,
    "read_miss_s": 0.7e-6,
    "read_l2_bytes_per_s": 7.4e12,
    "read_hbm_bytes_per_s": 3.0e12,
    "l2_full_hit": 0.75,
    "l2_no_hit": 0.95,
}
MODEL = ModelSpec(
    name="small",
    num_layers=4,
    hidden_size=2048,
    intermediate_size=8192,
    num_attention_heads=16,
    num_key_value_heads=16,
    head_dim=128,
)
ENVIRONMENT = {
    "gpu": "pretend H100",
    "num_sms": "132",
    "l2_bytes": "52428800",
    "driver": "1",
    "date_utc": "2026-01-02T03:04:05+00:00",
    "python": "3",
}


TRUTH = {kind: FORMS.get(kind, POINTWISE) for kind in kinds.KINDS}
# Attention over prompts so short that the simulator's memory floor, which the form lacks, holds.
FLOORED = ("q128.c128", "q256.c256")


@cache
def every_point() -> tuple[SweepPoint, ...]:
    return tuple(sweep(KERNELS))


@cache
def own_points() -> tuple[SweepPoint, ...]:
    """Points of the kinds that a profile may go without: kernels beside the chosen ones."""
    return (
        *split_decodes(KERNELS),
        *flash_attention(KERNELS),
        *skinny_matmuls(KERNELS),
        *(point for point in fitted_edges(KERNELS) if kind_named(point.kind).is_optional),
    )


@cache
def some_points(per_kind: int = 120, matmuls: int = 240) -> tuple[SweepPoint, ...]:
    """The first points of each kind, in the sweep's shuffled order."""
    taken: dict[str, int] = {}
    chosen: list[SweepPoint] = []
    for point in every_point():
        if any(part in point.name for part in FLOORED):
            continue
        taken[point.kind] = taken.get(point.kind, 0) + 1
        if taken[point.kind] <= (matmuls if point.kind == "matmul" else per_kind):
            chosen.append(point)
    return tuple(chosen)


@cache
def true_profile() -> Profile:
    """The synthetic profile with the constants in TRUTH."""
    profile = synthetic_profile()
    fits = {
        name: replace(
            profile.fits[kind.else_priced_as or name],
            constants={n: constant(v) for n, v in TRUTH[name].items()},
        )
        for name, kind in kinds.KINDS.items()
    }
    return replace(profile, fits=fits)


@cache
def _by_name() -> dict[str, SweepPoint]:
    return {point.name: point for point in (*supplement(KERNELS), *every_point(), *own_points())}


@cache
def true_op_seconds(name: str) -> float:
    """What the simulator's own cost model says the op of this point takes."""
    return op_seconds_under(_by_name()[name], true_profile())


def op_seconds_under(point: SweepPoint, truth: Profile) -> float:
    """The same for any point, under any truth."""
    found = Calibrated(dgx_cluster(GPU, 1), truth).local(point.op, steady_traffic(point, L2))
    return found.launch_s + found.kernel_s


def measured(
    points: Iterable[SweepPoint], noise: float = 0.01, seed: int = 3
) -> dict[str, Measurement]:
    rng = random.Random(seed)
    return {
        point.name: Measurement(
            GRAPH_LAUNCH_S
            + true_op_seconds(point.name)
            * point.num_repeats
            * (1 + rng.gauss(0, noise * (point.kind != "graph_launch"))),
            point.num_repeats,
        )
        for point in points
    }


@cache
def true_tables(noise: float = 0.01) -> dict[str, Table]:
    own = [one for one in own_points() if not any(part in one.name for part in FLOORED)]
    by_kind = ([p for p in own if p.kind == kind][:240] for kind in sorted(kinds.OPTIONAL_KINDS))
    points = (*some_points(), *chain.from_iterable(by_kind))
    return tables(points, measured(points, noise), L2, GRAPH_LAUNCH_S)


def write_sweep(found: dict[str, Measurement], path: Path) -> None:
    lines = [
        json.dumps({"name": name, "step_s": one.step_s, "num_ops": one.num_ops})
        for name, one in found.items()
    ]
    path.write_text("\n".join(lines) + "\n")


def read_curve(noise: float = 0.003) -> list[tuple[int, float]]:
    rng = np.random.default_rng(5)
    sizes = np.arange(4, 200, 2) * 2**20
    seconds = pass_seconds(MACHINE_L2, sizes.astype(np.float64), GPU.l2_bytes)
    seconds = seconds * (1 + noise * rng.standard_normal(len(sizes)))
    return [(int(size), float(second)) for size, second in zip(sizes, seconds, strict=True)]


def stage_scenario(hidden: int = 2048, **run: object) -> Scenario:
    """One GPU of a small decode, alone."""
    model = replace(
        MODEL,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 128,
    )
    scenario = scenario_of(PlacementSpec(), model=model, cluster=dgx_cluster(GPU, 4))
    return replace(
        scenario,
        name=f"h{hidden}",
        kernels=KERNELS,
        workload=Workload(batch_size=64, context_tokens=2048, num_microbatches=4),
        run=replace(RunSpec(num_steps=3, only_rank=1), **run),  # type: ignore[arg-type]
    )


def with_interleaving(profile: Profile, code_s: float, hbm_s: float) -> Profile:
    return replace(
        profile,
        machine=profile.machine
        | {
            "interleaved_code_s": constant(code_s),
            "interleaved_hbm_s": constant(hbm_s),
        },
    )


def stage_trace(scenario: Scenario, truth: Profile, **values: object) -> Trace:
    """A run as the simulator sees it under `truth`, written as if measured for fitting."""
    simulation = simulate(
        compile_run(scenario),
        Calibrated.about(scenario.cluster, truth),
        scenario.cluster,
        launch=scenario.run.launch,
        alone=scenario.run.only_rank,
    )
    is_stream = scenario.workload.phase == "decode"
    step = len(simulation.step_end_s) - 2
    rows = tuple(row for row in simulation.rows if row.step == step or not is_stream)
    ends_s = (0.0, *simulation.step_end_s)
    duration = ends_s[step + 1] - ends_s[step] if is_stream else ends_s[-1]
    trace = Trace(
        source="measured",
        name=scenario.name,
        scenario=as_data(scenario),
        kernel_set="pretend",
        rows=rows,
        untraced_step_s=(duration,) * 3,
        timing="cupti",
        purpose="fit",
        measured={"read_bandwidth_bytes_per_s": 3.1e12},
    )
    return replace(trace, **values)  # type: ignore[arg-type]


def astray(fit: OpFit, truth: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Constants that are neither within three standard errors nor 5 % of the truth."""
    return {
        name: (found.value, truth[name])
        for name, found in fit.constants.items()
        if abs(found.value - truth[name]) > max(3 * found.standard_error, 0.05 * truth[name])
    }


KINDS = sorted(kinds.KINDS)

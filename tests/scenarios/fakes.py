"""Traces of two GPUs and of growing contexts that look measured: the prediction's own rows."""

from __future__ import annotations

from dataclasses import replace

from layerwise.scenarios.compare.accounts import COLLECTIVES, members_of
from layerwise.scenarios.predict.alone import PredictedRun, predict_run
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario
from layerwise.sim.plan.workload import Workload
from layerwise.sim.profile import Profile
from layerwise.sim.trace import Row, Trace, as_data

LAYER_WISE = PlacementSpec(strategy="layer-wise")
TENSORS = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2)
GROWING_STEPS = 6


def two_gpus(profile: Profile, placement: PlacementSpec, microbatches: int = 4) -> Scenario:
    """Two of the paper's layers on two GPUs."""
    return Scenario(
        name="two",
        model=replace(MODELS["paper-16"], num_layers=2),
        cluster=dgx_cluster(GPUS["h100-sxm"], 2),
        placement=placement,
        workload=Workload(batch_size=32, context_tokens=1000, num_microbatches=microbatches),
        run=RunSpec(repeats=3),
        kernels=profile.kernels,
    )


def growing(profile: Profile) -> Scenario:
    """One layer on one GPU, 1,000 more tokens each step."""
    return Scenario(
        name="growing",
        model=replace(MODELS["paper-16"], num_layers=1),
        cluster=dgx_cluster(GPUS["h100-sxm"], 1),
        placement=PlacementSpec(strategy="layer-wise", num_gpus=1),
        workload=Workload(batch_size=32, context_tokens=1000, num_microbatches=1),
        run=RunSpec(num_steps=GROWING_STEPS, context_growth_tokens=1000, repeats=2),
    ).with_kernels(profile.kernels)


def trace_of(scenario: Scenario, profile: Profile, *, num_repeats: int = 3) -> Trace:
    """Spans as a tracer sees them: a receive from when it was posted, a collective from its start."""
    predicted = predict_run(scenario, profile)
    steps = predicted.repeated_steps
    rows = _as_traced(predicted)
    untraced = (predicted.step_s,)
    if predicted.grows:
        untraced = tuple(predicted.duration_s(step) for step in steps)
    return Trace(
        source="measured",
        name=scenario.name,
        scenario=as_data(scenario),
        kernel_set=predicted.kernel_set(scenario.run.only_rank, steps),
        timing="cupti",
        rows=tuple(replace(row, repeat=n) for n in range(num_repeats) for row in rows),
        untraced_step_s=untraced * num_repeats,
        purpose="validation",
        environment={"gpu": "pretend H100"},
    )


def _as_traced(predicted: PredictedRun) -> list[Row]:
    steps = predicted.repeated_steps
    members = members_of(predicted.run, range(len(predicted.run[0].template)), steps)
    sent = {(r.step, r.rank, r.op): r.duration_s for r in predicted.rows if r.kind == "Send"}
    found: list[Row] = []
    for row in predicted.rows:
        if row.step in steps:
            begin = row.start_s
            if row.kind == "Recv" and not row.replaced:
                sender = members[row.step, row.rank, row.op][0]
                begin = min(row.ready_s, row.end_s - sent[sender])
            elif row.kind in COLLECTIVES:
                begin = row.ready_s
            found.append(replace(row, ready_s=begin, start_s=begin, bound=""))
    return found

"""A scenario small enough for any CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario
from layerwise.sim.plan.workload import Workload

TINY = ModelSpec(
    name="tiny",
    num_layers=4,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    dtype="float32",
)


def scenario(
    *, pipeline_parallel: int = 1, tensor_parallel: int = 1, workload: Any = None, **run: Any
) -> Scenario:
    """A tiny decode on the CPU, run eagerly; keywords go to `run`."""
    return Scenario(
        name="tiny",
        model=TINY,
        cluster=dgx_cluster(GPUS["h100-sxm"], 4),
        placement=PlacementSpec(
            strategy="tensor-pipeline",
            pipeline_parallel=pipeline_parallel,
            tensor_parallel=tensor_parallel,
        ),
        workload=workload or Workload(batch_size=4, context_tokens=8, num_microbatches=2),
        run=replace(RunSpec(launch="eager", repeats=4), **run),
    )

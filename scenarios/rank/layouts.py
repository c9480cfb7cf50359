"""Every way to lay a model over all GPUs of a cluster, and why the others are none.

A layer-wise placement is a pipeline whose stages are one GPU each: TP=1 x PP=p and p layer groups
compile to the same programs. Such a layout is listed once, as layer-wise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from layerwise.sim.plan.errors import PlacementError, SpecError
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.model import ModelSpec, divisors
from layerwise.sim.plan.ops import AllReduceAlgorithm
from layerwise.sim.plan.scenario import PlacementSpec, Scenario, place
from layerwise.sim.plan.workload import Workload
from layerwise.sim.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A placement of the model over all GPUs, and who reduces inside its tensor-parallel groups."""

    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    all_reduce: AllReduceAlgorithm = "nccl"

    @property
    def is_layer_wise(self) -> bool:
        """Whole layers on single GPUs, in groups."""
        return self.tensor_parallel == 1 and self.pipeline_parallel > 1

    @property
    def num_gpus(self) -> int:
        """GPUs used."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def spec(self) -> PlacementSpec:
        """As a scenario says it."""
        if self.is_layer_wise:
            return PlacementSpec(strategy="layer-wise", data_parallel=self.data_parallel)
        return PlacementSpec(
            strategy="tensor-pipeline",
            tensor_parallel=self.tensor_parallel,
            pipeline_parallel=self.pipeline_parallel,
            data_parallel=self.data_parallel,
        )

    @property
    def name(self) -> str:
        """Its degrees above one; the all-reduce where it is not NCCL's."""
        degrees = {
            "TP": self.tensor_parallel,
            "PP": self.pipeline_parallel,
            "DP": self.data_parallel,
        }
        text = " x ".join(f"{key}={degree}" for key, degree in degrees.items() if degree > 1)
        text = ("layer-wise " if self.is_layer_wise else "") + (text or "one GPU")
        return text + (", 1-shot" if self.all_reduce == "one_shot" else "")


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A layout that uses all GPUs and cannot be run or predicted, and why."""

    name: str
    reason: str


def layouts_of(
    model: ModelSpec, cluster: ClusterSpec, workload: Workload, profile: Profile | None
) -> tuple[tuple[Layout, ...], tuple[Refused, ...]]:
    """All valid layouts over all GPUs, and the refused ones with the rule that each breaks.

    One-shot all-reduces are tried where the profile has their table.
    """
    found: list[Layout] = []
    refused: list[Refused] = []
    for layout in _factorings(cluster.num_gpus):
        reason = _refusal(layout, model, cluster, workload)
        if reason:
            refused.append(Refused(name=layout.name, reason=reason))
        else:
            found += _with_algorithms(layout, profile)
    return tuple(found), tuple(refused)


def microbatch_grid(limit: int, num_stages: int) -> tuple[int, ...]:
    """Powers of two, and those times the stages, from 1 to `limit` sequences of a replica."""
    starts = {1, min(num_stages, limit)}
    return tuple(
        sorted({s << k for s in starts for k in range(limit.bit_length()) if s << k <= limit})
    )


def _factorings(number: int) -> Iterator[Layout]:
    for tensor in divisors(number):
        for pipeline in divisors(number // tensor):
            yield Layout(
                tensor_parallel=tensor,
                pipeline_parallel=pipeline,
                data_parallel=number // tensor // pipeline,
            )


def _refusal(layout: Layout, model: ModelSpec, cluster: ClusterSpec, workload: Workload) -> str:
    """The rule that it breaks; "" if none."""
    if layout.data_parallel > workload.batch_size:
        return (
            f"placement.data_parallel={layout.data_parallel} is more than "
            f"workload.batch_size={workload.batch_size}"
        )
    try:
        place(
            Scenario(
                name=layout.name,
                model=model,
                cluster=cluster,
                placement=layout.spec,
                workload=workload,
            )
        )
    except PlacementError as error:
        return f"{error.key}={error.value} {error.problem}"
    except SpecError as error:
        return str(error)
    per_node, size = cluster.gpus_per_node, layout.tensor_parallel
    if size > 1 and per_node % size and size % per_node:
        return (
            f"placement.tensor_parallel={size}: some groups lie in one node of {per_node} GPUs "
            "and others across two; collectives of such groups are not modelled"
        )
    return ""


def _with_algorithms(layout: Layout, profile: Profile | None) -> Iterator[Layout]:
    yield layout
    size = layout.tensor_parallel
    if profile and size > 1 and f"all_reduce.one_shot.{size}" in profile.transfers:
        yield Layout(
            tensor_parallel=size,
            pipeline_parallel=layout.pipeline_parallel,
            data_parallel=layout.data_parallel,
            all_reduce="one_shot",
        )

"""A scenario: one question put to both sides, resolved from what a user wrote."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from layerwise.sim.plan.compile import (
    GivenKernels,
    KernelChoice,
    compile_steps,
    microbatches_of,
)
from layerwise.sim.plan.errors import PlacementError, SpecError
from layerwise.sim.plan.hardware import GPUS, MAX_GPUS, MAX_QUANTITY, ClusterSpec, dgx_cluster
from layerwise.sim.plan.model import MODELS, ModelSpec
from layerwise.sim.plan.ops import AllReduceAlgorithm
from layerwise.sim.plan.placement import Placement, layer_wise, tensor_pipeline
from layerwise.sim.plan.program import StepPrograms
from layerwise.sim.plan.workload import Step, Workload, decode_steps, prefill_steps

Strategy = Literal["tensor-pipeline", "layer-wise"]
Launch = Literal["graph", "eager"]
Regime = Literal["sustained", "burst"]
# Steps, repeats or tokens of growth: what is gone through in a minute or so.
MAX_RUN = 100_000


@dataclass(frozen=True, kw_only=True)
class PlacementSpec:
    """How the model is placed, as a user writes it.

    `num_gpus` 0 takes the cluster's; `on_chip_bytes` 0 takes the GPU's L2 (layer-wise only).
    """

    __pydantic_config__ = {"extra": "forbid"}

    strategy: Strategy = "layer-wise"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    num_gpus: int = 0
    on_chip_bytes: int = 0

    def __post_init__(self) -> None:
        for key in ("tensor_parallel", "pipeline_parallel", "data_parallel", "num_gpus"):
            if getattr(self, key) > MAX_GPUS:
                raise SpecError(
                    key, getattr(self, key), "is beyond any cluster", f"use at most {MAX_GPUS}"
                )
        if not 0 <= self.on_chip_bytes <= MAX_QUANTITY:
            raise SpecError(
                "on_chip_bytes",
                self.on_chip_bytes,
                "is beyond any machine",
                "use 0 for the GPU's L2",
            )

    @property
    def num_ranks(self) -> int:
        """GPUs that a tensor-pipeline placement takes."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """How it is run: `launch` mode, `num_steps`, and `only_rank` to run one rank by itself.

    `only_rank` -1 runs all ranks; otherwise its peers are replaced by local buffers.
    `context_growth_tokens` 0 holds the context, so that every step is the same measurement.
    `persisting_weights` asks the L2 to keep the rank's weights from step to step, as far as its
    set-aside goes: access-policy windows on the kernels of a graph (see `layerwise.sim.plan.residency`).
    `steps_per_graph` equal steps share one graph, so that short steps are not hidden behind the
    launch of the next one.
    `regime`: "sustained" steps follow each other for seconds, at the clock that the GPU's power
    limit holds then; a "burst" after a rest is over before that limit acts, within 20 ms.
    """

    __pydantic_config__ = {"extra": "forbid"}

    launch: Launch = "graph"
    num_steps: int = 4
    only_rank: int = -1
    context_growth_tokens: int = 0
    repeats: int = 20
    persisting_weights: bool = False
    steps_per_graph: int = 1
    regime: Regime = "sustained"

    def __post_init__(self) -> None:
        lowest = {
            "num_steps": 1,
            "repeats": 1,
            "only_rank": -1,
            "context_growth_tokens": 0,
            "steps_per_graph": 1,
        }
        for key, low in lowest.items():
            if getattr(self, key) < low:
                raise SpecError(key, getattr(self, key), "is too small", f"use {low} or more")
            if getattr(self, key) > MAX_RUN:
                raise SpecError(key, getattr(self, key), "is too large", f"use at most {MAX_RUN}")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Everything that both sides need to know.

    `kernels` come from a profile unless given; `given_kernels` are those that were, where others
    are still the profile's.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    model: ModelSpec
    cluster: ClusterSpec
    placement: PlacementSpec
    workload: Workload = field(default_factory=Workload)
    run: RunSpec = field(default_factory=RunSpec)
    kernels: KernelChoice | None = None
    given_kernels: GivenKernels | None = None

    @property
    def given_all_reduce(self) -> AllReduceAlgorithm | None:
        """Who reduces, where the scenario says so itself."""
        own = self.kernels or self.given_kernels
        return own.all_reduce if own else None

    def with_microbatches(self, num_microbatches: int) -> Scenario:
        """The same scenario with a fixed number of microbatches."""
        return replace(self, workload=replace(self.workload, num_microbatches=num_microbatches))

    def with_kernels(self, kernels: KernelChoice) -> Scenario:
        """The same scenario with these kernels, but for those that it names itself.

        A context that grows inside a graph takes the one kernel that reads it on the device.
        """
        if self.kernels:
            return self
        if self.run.context_growth_tokens and self.run.launch == "graph":
            kernels = replace(kernels, decode_attention="split_kv")
        return replace(self, kernels=self.kernels_on(kernels), given_kernels=None)

    def kernels_on(self, default: KernelChoice | None = None) -> KernelChoice:
        """Return its own kernels, and for those it does not name the default's (or plain ones)."""
        if self.kernels:
            return self.kernels
        kernels = default or KernelChoice()
        return self.given_kernels.over(kernels) if self.given_kernels else kernels


def paper_scenario(
    strategy: Strategy, model: str = "paper-16", workload: Workload | None = None
) -> Scenario:
    """The paper's experiment: 16 H100s in two DGX nodes, its baseline or its proposal."""
    spec = (
        PlacementSpec(strategy="tensor-pipeline", tensor_parallel=8, pipeline_parallel=2)
        if strategy == "tensor-pipeline"
        else PlacementSpec(strategy="layer-wise")
    )
    return Scenario(
        name=f"{model} {strategy}",
        model=MODELS[model],
        cluster=dgx_cluster(GPUS["h100-sxm"], 16),
        placement=spec,
        workload=workload or Workload(),
    )


def place(scenario: Scenario) -> Placement:
    """The placement a scenario asks for.

    Raises PlacementError when it needs more GPUs than the cluster has, or does not divide.
    """
    spec, cluster = scenario.placement, scenario.cluster
    _refuse_unused(spec)
    if spec.strategy == "layer-wise":
        placement = layer_wise(
            scenario.model,
            num_gpus=spec.num_gpus or cluster.num_gpus,
            key="placement.num_gpus" if spec.num_gpus else "cluster.num_gpus",
            on_chip_bytes=spec.on_chip_bytes or cluster.gpu.l2_bytes,
            data_parallel=spec.data_parallel,
        )
    else:
        _refuse_too_many(spec)
        placement = tensor_pipeline(
            scenario.model,
            tensor_parallel=spec.tensor_parallel,
            pipeline_parallel=spec.pipeline_parallel,
            data_parallel=spec.data_parallel,
        )
    if placement.num_ranks > cluster.num_gpus:
        raise PlacementError(
            "placement",
            placement.name,
            f"needs {placement.num_ranks} GPUs and cluster.num_gpus={cluster.num_gpus}",
            "use a smaller placement or a larger cluster",
        )
    if scenario.run.only_rank >= placement.num_ranks:
        raise PlacementError(
            "run.only_rank",
            scenario.run.only_rank,
            f"is no rank of {placement.name} over {placement.num_ranks} GPUs",
            f"use 0 to {placement.num_ranks - 1}, or -1 for all",
        )
    if scenario.workload.batch_size % placement.data_parallel:
        raise PlacementError(
            "placement.data_parallel",
            placement.data_parallel,
            f"does not divide workload.batch_size={scenario.workload.batch_size}",
            "choose a batch that every replica gets an equal share of",
        )
    return placement


def _refuse_too_many(spec: PlacementSpec) -> None:
    """Before they are all written down."""
    if spec.num_ranks > MAX_GPUS:
        raise PlacementError(
            "placement.data_parallel",
            spec.data_parallel,
            f"makes {spec.num_ranks} ranks",
            f"use at most {MAX_GPUS} ranks in all",
        )


def _refuse_unused(spec: PlacementSpec) -> None:
    """A key that the strategy does not read is a misunderstanding: say so."""
    unused = (
        ("tensor_parallel", "pipeline_parallel")
        if spec.strategy == "layer-wise"
        else ("num_gpus", "on_chip_bytes")
    )
    for key in unused:
        if getattr(spec, key) != PlacementSpec.__dataclass_fields__[key].default:
            raise PlacementError(
                f"placement.{key}",
                getattr(spec, key),
                f"has no meaning with strategy {spec.strategy!r}",
                "remove it",
            )


def steps_of(scenario: Scenario) -> list[Step]:
    """The steps of a run: decode steps, or the chunks of one prefill.

    Raises SpecError when the number of microbatches is left open.
    """
    workload, run = scenario.workload, scenario.run
    if not workload.num_microbatches:
        raise SpecError(
            "workload.num_microbatches",
            0,
            "is not decided",
            "`layerwise predict FILE` prints the best number found; write it under [workload]",
        )
    limit = workload.batch_size // scenario.placement.data_parallel
    if workload.num_microbatches > limit:
        raise SpecError(
            "workload.num_microbatches",
            workload.num_microbatches,
            f"is more than the {limit} sequences of one replica",
            f"use 1 to {limit}",
        )
    sizes = microbatches_of(
        workload.batch_size, scenario.placement.data_parallel, workload.num_microbatches
    )
    if workload.phase == "prefill":
        return prefill_steps(sizes, workload.context_tokens, workload.prefill_chunk_tokens)
    return decode_steps(
        sizes,
        workload.context_tokens,
        run.num_steps,
        context_growth_tokens=run.context_growth_tokens,
    )


def compile_run(scenario: Scenario) -> list[StepPrograms]:
    """Place a scenario and compile every step of it for every rank."""
    kernels = scenario.kernels_on()
    return compile_steps(scenario.model, place(scenario), steps_of(scenario), kernels)

"""What is run on a host of N GPUs: every placement of N layers, in two models and two phases.

Questions are what placements are ranked on: runs of one question do the same work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Literal

from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.hardware import GPUS, ClusterSpec, dgx_cluster
from layerwise.sim.plan.model import MODELS, ModelSpec
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario
from layerwise.sim.plan.workload import Workload

Scale = Literal["full", "quick"]
MOST_GPUS = 8
MICROBATCHES = (1, 2, 4, 8, 16)
DECODE_REPEATS, PREFILL_REPEATS, SMALL_REPEATS = 20, 8, 60
PAPER_CONTEXT_TOKENS, PAPER_BATCH = 10_000, 128
# 16 sequences of 128 and 625 tokens: 2,048 cached tokens a GPU leave room in the L2 for a layer of
# 33.6 MB, 10,000 (41 MB) do not.
SMALL_BATCH, SMALL_CONTEXTS_TOKENS = 16, (128, 625)
# The order in which a budget buys most; "more" is what only adds points to a question.
Part = Literal["paper", "small", "prefill", "windows", "evicted", "more"]
PARTS: tuple[Part, ...] = ("paper", "small", "prefill", "windows", "evicted", "more")


@dataclass(frozen=True, kw_only=True)
class HostRun:
    """A scenario that takes all GPUs. `question`: what its placement is ranked on.

    `placement`: `tp4pp2`, or `layers` for one layer a GPU.
    """

    scenario: Scenario
    part: Part
    question: str
    placement: str

    @property
    def name(self) -> str:
        """Of the scenario, its prediction and its trace."""
        return self.scenario.name

    @property
    def is_small(self) -> bool:
        """Is it of the model whose layers fit in the L2?"""
        return self.question.startswith("small")

    @property
    def reduces(self) -> bool:
        """Is a layer split, so that its parts are summed over the group?"""
        return self.scenario.placement.tensor_parallel > 1


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Dimensions of a scale. `graphs`: repeated steps are captured, and windows can be asked for.

    `most_repeats`: of any run.
    """

    paper: ModelSpec
    small: ModelSpec
    paper_batch: int
    paper_context_tokens: int
    small_batch: int
    small_contexts_tokens: tuple[int, int]
    prefill: Workload
    graphs: bool
    kernels: KernelChoice
    most_repeats: int = 1000
    microbatches: tuple[int, ...] = MICROBATCHES


def host_runs(
    gpu: str, num_gpus: int, scale: Scale = "full", kernels: KernelChoice | None = None
) -> tuple[HostRun, ...]:
    """Every run, most valuable first. `kernels`: the profile's; the quick scale runs plain ones.

    Raises SpecError for a number of GPUs that is no power of two from 2 to 8, or an unknown GPU.
    """
    if num_gpus not in (2, 4, 8):
        raise SpecError("--gpus", num_gpus, "is no host that tp and pp divide", "use 2, 4 or 8")
    if gpu not in GPUS:
        raise SpecError("--gpu", gpu, "is not known", f"use one of {', '.join(GPUS)}")
    shapes = _full(num_gpus, kernels) if scale == "full" else _quick(num_gpus)
    found: dict[str, HostRun] = {}
    for run in _runs(shapes, dgx_cluster(GPUS[gpu], num_gpus)):
        found.setdefault(run.name, run)
    return tuple(sorted(found.values(), key=lambda run: PARTS.index(run.part)))


def asked_of(scenario: Scenario) -> dict[str, Any]:
    """What decides a run's time, as data: all that differs from a default.

    Names, datasheet values and the number of repeats are left out: a later version may spell them
    otherwise and still run the same.
    """
    return {
        "model": _chosen(scenario.model, "name"),
        "gpu": scenario.cluster.gpu.name,
        "num_gpus": scenario.cluster.num_gpus,
        "placement": _chosen(scenario.placement),
        "workload": _chosen(scenario.workload),
        "run": _chosen(scenario.run, "repeats"),
        "kernels": _chosen(scenario.kernels_on()),
    }


def _chosen(spec: Any, *without: str) -> dict[str, Any]:
    return {
        field.name: getattr(spec, field.name)
        for field in fields(spec)
        if field.name not in without
        and (field.default is MISSING or getattr(spec, field.name) != field.default)
    }


def _runs(shapes: Shapes, cluster: ClusterSpec) -> Iterator[HostRun]:
    num_gpus = cluster.num_gpus
    for label, placement, num_stages in _placements(num_gpus):
        make = _Maker(shapes, cluster, label, placement)
        yield make.paper("paper", num_stages)
        yield make.small("small", num_stages, shapes.small_contexts_tokens[0])
        yield make.prefill()
        yield make.small("evicted", num_stages, shapes.small_contexts_tokens[1])
        if shapes.graphs and cluster.gpu.persisting_l2_bytes:
            for context in shapes.small_contexts_tokens:
                yield make.small("windows", num_stages, context, windows=True)
        for number in shapes.microbatches:
            # Of a placement without stages more microbatches only read the weights again.
            if num_stages > 1 or number in (1, 4):
                yield make.paper("more", number)
        if placement.tensor_parallel > 1 and shapes.graphs:
            yield make.paper("more", num_stages, one_shot=True)
            yield make.small("more", num_stages, shapes.small_contexts_tokens[0], one_shot=True)


def _placements(num_gpus: int) -> Iterator[tuple[str, PlacementSpec, int]]:
    """(label, placement, stages): all GPUs in one group, halves of it, ..., one layer a GPU."""
    tensor = num_gpus
    while tensor > 1:
        spec = PlacementSpec(
            strategy="tensor-pipeline", tensor_parallel=tensor, pipeline_parallel=num_gpus // tensor
        )
        yield f"tp{tensor}pp{num_gpus // tensor}", spec, num_gpus // tensor
        tensor //= 2
    yield "layers", PlacementSpec(strategy="layer-wise"), num_gpus


@dataclass(frozen=True)
class _Maker:
    """Makes the runs of one placement."""

    shapes: Shapes
    cluster: ClusterSpec
    label: str
    placement: PlacementSpec

    def paper(self, part: Part, microbatches: int, *, one_shot: bool = False) -> HostRun:
        shapes = self.shapes
        workload = Workload(
            batch_size=shapes.paper_batch,
            context_tokens=shapes.paper_context_tokens,
            num_microbatches=microbatches,
        )
        question = "paper.decode"
        return self._run(part, question, shapes.paper, workload, DECODE_REPEATS, one_shot=one_shot)

    def prefill(self) -> HostRun:
        shapes = self.shapes
        return self._run("prefill", "paper.prefill", shapes.paper, shapes.prefill, PREFILL_REPEATS)

    def small(
        self,
        part: Part,
        microbatches: int,
        context_tokens: int,
        *,
        windows: bool = False,
        one_shot: bool = False,
    ) -> HostRun:
        shapes = self.shapes
        workload = Workload(
            batch_size=shapes.small_batch,
            context_tokens=context_tokens,
            num_microbatches=microbatches,
        )
        question = f"small.{context_tokens * shapes.small_batch}{'.windows' if windows else ''}"
        return self._run(
            part,
            question,
            shapes.small,
            workload,
            SMALL_REPEATS,
            windows=windows,
            one_shot=one_shot,
        )

    def _run(
        self,
        part: Part,
        question: str,
        model: ModelSpec,
        workload: Workload,
        repeats: int,
        *,
        windows: bool = False,
        one_shot: bool = False,
    ) -> HostRun:
        kernels = self.shapes.kernels
        name = f"{question}.{self.label}.m{workload.num_microbatches}"
        scenario = Scenario(
            name=f"{name}.one_shot" if one_shot else name,
            model=model,
            cluster=self.cluster,
            placement=self.placement,
            workload=workload,
            kernels=replace(kernels, all_reduce="one_shot") if one_shot else kernels,
            run=RunSpec(
                launch="graph" if self.shapes.graphs else "eager",
                repeats=min(repeats, self.shapes.most_repeats),
                persisting_weights=windows,
            ),
        )
        return HostRun(scenario=scenario, part=part, question=question, placement=self.label)


def _full(num_gpus: int, kernels: KernelChoice | None) -> Shapes:
    """The paper's layer, and one that fits in the L2; as many layers as GPUs."""
    return Shapes(
        paper=replace(MODELS["paper-16"], num_layers=num_gpus),
        small=_model("h1024", num_gpus, 1024),
        paper_batch=PAPER_BATCH,
        paper_context_tokens=PAPER_CONTEXT_TOKENS,
        small_batch=SMALL_BATCH,
        small_contexts_tokens=SMALL_CONTEXTS_TOKENS,
        prefill=Workload(
            phase="prefill",
            batch_size=8,
            context_tokens=8192,
            prefill_chunk_tokens=2048,
            num_microbatches=8,
        ),
        graphs=True,
        kernels=kernels or KernelChoice(),
    )


def _quick(num_gpus: int) -> Shapes:
    """So small that two cores go through every stage in a minute: what it measures means nothing."""
    paper, small = (
        replace(_model(f"tiny{hidden}", num_gpus, hidden, head_dim=8), dtype="float32")
        for hidden in (128, 64)
    )
    return Shapes(
        paper=paper,
        small=small,
        paper_batch=16,
        paper_context_tokens=32,
        small_batch=16,
        small_contexts_tokens=(4, 8),
        prefill=Workload(
            phase="prefill",
            batch_size=4,
            context_tokens=32,
            prefill_chunk_tokens=16,
            num_microbatches=4,
        ),
        graphs=False,
        kernels=KernelChoice(),
        most_repeats=2,
        microbatches=(1, 4),
    )


def _model(name: str, num_layers: int, hidden: int, head_dim: int = 128) -> ModelSpec:
    heads = hidden // head_dim
    return ModelSpec(
        name=name,
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
    )

"""Does it fit? The memory budget of every rank, and what would make it fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from layerwise.sim.plan.compile import compile_step
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.hardware import MAX_GPUS
from layerwise.sim.plan.model import DTYPE_BYTES
from layerwise.sim.plan.ops import Buffer, BufferKey, BufferKind
from layerwise.sim.plan.placement import Placement
from layerwise.sim.plan.program import Program, Segment, StepPrograms
from layerwise.sim.plan.scenario import Scenario, place, steps_of
from layerwise.sim.plan.workload import Step

MIB = 2**20
# Of a KV cache's shape, see `LayerBuilder.kv`.
KV_CAPACITY_AXIS = 3

Held = list[tuple[BufferKind, int]]
"""Kind and bytes of every tensor that programs touch; of a KV cache, bytes per token it has room for."""
WorkloadKey = Literal["workload.batch_size", "workload.context_tokens"]

BATCH, CONTEXT = "batch_size at most", "context_tokens at most"
KV_HEADS = "num_key_value_heads at most (GQA)"
KV_BITS = "KV bits per element at most (bf16 is 16)"
MORE_GPUS = "times as many GPUs, weights and KV spread over them"
REMEDY_WORDS = {
    BATCH: "a batch of at most {value:,}",
    CONTEXT: "a context of at most {value:,} tokens",
    KV_HEADS: "at most {value:,} KV heads (GQA)",
    KV_BITS: "a KV cache of at most {value:,} bits per element",
    MORE_GPUS: "{value:,} times as many GPUs, with weights and KV spread over them",
}
# A placement is spread this many times beyond the least that could do: layers and heads divide unevenly.
NUM_MULTIPLES = 4

# Bytes over capacity are nearly a straight line in what grows, so that a few guesses by
# interpolation meet the answer; what is rounded may bend it, and halving takes over then.
NUM_INTERPOLATIONS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """Bytes on one GPU, by what they hold.

    `slack_bytes`: what the allocator rounds up. `reserved_bytes`: context, libraries, graphs.
    """

    rank: int
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int
    communication_bytes: int
    slack_bytes: int
    reserved_bytes: int
    capacity_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything."""
        return (
            self.weight_bytes
            + self.kv_bytes
            + self.activation_bytes
            + self.communication_bytes
            + self.slack_bytes
            + self.reserved_bytes
        )

    @property
    def fits(self) -> bool:
        """Is there room for all of it?"""
        return self.total_bytes <= self.capacity_bytes


def memory_budgets(
    run: Sequence[StepPrograms],
    capacity_bytes: int,
    reserved_bytes: int = 0,
    known: dict[tuple[int, ...], Held] | None = None,
) -> tuple[MemoryBudget, ...]:
    """The budget of each rank over all steps of a run: every buffer of its programs, once.

    `known`: what programs hold, by their identities, for as long as somebody keeps them alive.
    """
    known = {} if known is None else known
    by_step = {compiled.step: compiled for compiled in run}
    telling = [by_step[step] for step in _telling_steps(by_step)]
    kv_capacity_tokens = max(step.kv_capacity_tokens for step in by_step)
    seen: dict[tuple[int, bool, bool], MemoryBudget] = {}
    budgets: list[MemoryBudget] = []
    for stages in run[0].placement.replicas:
        for stage in stages:
            # Shards of a stage are equal, and so are stages in the middle of as many layers: count
            # one, name all.
            key = (stage.num_layers, stage is stages[0], stage is stages[-1])
            if key not in seen:
                # A template's contexts are another's, its buffers are the same but for their caches.
                programs = [compiled.template[len(budgets)] for compiled in telling]
                same = tuple(map(id, programs))
                if same not in known:
                    known[same] = _held(programs)
                sizes: Held = [
                    (kind, size * (kv_capacity_tokens if kind == "kv" else 1))
                    for kind, size in known[same]
                ]
                seen[key] = _budget(len(budgets), sizes, capacity_bytes, reserved_bytes)
            budgets += [replace(seen[key], rank=rank) for rank in stage.ranks]
    return tuple(budgets)


def _telling_steps(steps: Iterable[Step]) -> list[Step]:
    """Few steps that touch every buffer which all of them do.

    Contexts change no buffer's size, and one that takes tokens touches whatever those otherwise
    alike do. What a step gives at its end decides where its output goes.
    """
    alike: dict[tuple[object, ...], Step] = {}
    for step in sorted(steps, key=lambda step: step.takes_feedback):
        sizes = (step.phase, step.query_tokens, step.microbatch_sizes, step.kv_capacity_tokens)
        alike[*sizes, step.gives_feedback, step.gives_output] = step
    return list(alike.values())


def _telling_stages(placement: Placement) -> Placement:
    """One stage of each sort: stages of as many layers in the middle of a pipeline are alike."""
    stages = placement.replicas[0]
    sorts = {(stage.num_layers, stage is stages[0], stage is stages[-1]): stage for stage in stages}
    return replace(placement, replicas=(tuple(sorts.values()),))


def _places(programs: list[Program]) -> dict[Segment, list[tuple[int, int]]]:
    """The layers and microbatches at which each segment is repeated."""
    places: dict[Segment, list[tuple[int, int]]] = {}
    for part in chain.from_iterable(program.parts for program in programs):
        places.setdefault(part.segment, []).append((part.layer, part.microbatch))
    return places


def _keys(buffer: Buffer, places: list[tuple[int, int]]) -> set[BufferKey]:
    """The tensors that one buffer stands for over all places."""
    if buffer.per_layer and buffer.per_microbatch:
        return {buffer.key(layer, microbatch) for layer, microbatch in places}
    if buffer.per_layer:
        return {buffer.key(layer, -1) for layer in {layer for layer, _ in places}}
    return {buffer.key(-1, microbatch) for microbatch in {batch for _, batch in places}}


def _held(programs: list[Program]) -> Held:
    held: dict[BufferKey, tuple[BufferKind, int]] = {}
    for segment, places in _places(programs).items():
        for buffer in segment.touched:
            one = places if buffer.per_layer or buffer.per_microbatch else places[:1]
            tokens = buffer.shape[KV_CAPACITY_AXIS] if buffer.kind == "kv" else 1
            size = buffer.num_bytes // tokens
            for key in _keys(buffer, one):
                # Steps and microbatches of unlike sizes share scratch: the largest one counts.
                if key not in held or held[key][1] < size:
                    held[key] = (buffer.kind, size)
    return list(held.values())


def _budget(rank: int, sizes: Held, capacity_bytes: int, reserved_bytes: int) -> MemoryBudget:
    of_kind: Counter[BufferKind] = Counter()
    for kind, size in sizes:
        of_kind[kind] += size
    return MemoryBudget(
        rank=rank,
        weight_bytes=of_kind["weight"],
        kv_bytes=of_kind["kv"],
        activation_bytes=of_kind["activation"],
        communication_bytes=of_kind["communication"] + of_kind["tokens"],
        slack_bytes=slack_bytes_of(size for _, size in sizes),
        reserved_bytes=reserved_bytes,
        capacity_bytes=capacity_bytes,
    )


def slack_bytes_of(sizes_bytes: Iterable[int]) -> int:
    """What PyTorch's caching allocator takes beyond tensors of these sizes.

    Tensors up to 1 MiB share segments of 2 MiB and those below 10 MiB segments of 20 MiB, in
    multiples of 512 bytes; each larger one has a segment of its own, a multiple of 2 MiB. Holes
    that freed tensors leave are not counted: an engine that allocates once has none.
    Source: PyTorch 2.13, c10/core/AllocatorConfig.h (kMinBlockSize, kSmallSize, kSmallBuffer,
    kMinLargeAlloc, kRoundLarge) and c10/cuda/CUDACachingAllocator.cpp (20 MiB segments).
    """
    total = small = medium = large = 0
    for size in sizes_bytes:
        total += size
        block = _rounded_up(size, 512)
        if block <= MIB:
            small += block
        elif block < 10 * MIB:
            medium += block
        else:
            large += _rounded_up(block, 2 * MIB)
    return _rounded_up(small, 2 * MIB) + _rounded_up(medium, 20 * MIB) + large - total


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One change that, alone, would make a placement fit; `value` 0 when it cannot."""

    change: str
    value: int

    @property
    def words(self) -> str:
        """The change with its value, as people say it."""
        return REMEDY_WORDS[self.change].format(value=self.value)


def remedies(scenario: Scenario, budget: MemoryBudget) -> tuple[Remedy, ...]:
    """The largest batch, longest context, most KV heads, most KV bits, or fewest GPUs that fit.

    Batch, context and GPUs are exact; heads and bits are what is left for KV over what KV needs.
    """
    left = budget.capacity_bytes - (budget.total_bytes - budget.kv_bytes)
    share = max(0.0, left / budget.kv_bytes) if budget.kv_bytes else 1.0
    model = scenario.model
    shards = scenario.placement.tensor_parallel
    heads = [
        h
        for h in range(shards, model.num_key_value_heads + 1, shards)
        if model.num_attention_heads % h == 0 and h <= model.num_key_value_heads * share
    ]
    stored = 8 * DTYPE_BYTES[model.stored_kv_dtype]
    bits = [b for b in (8, 4) if b < stored and b <= stored * share]
    batch, context = (
        largest_that_fits(scenario, key, budget.reserved_bytes)
        for key in ("workload.batch_size", "workload.context_tokens")
    )
    return (
        Remedy(change=BATCH, value=batch),
        Remedy(change=CONTEXT, value=context),
        Remedy(change=KV_HEADS, value=max(heads, default=0)),
        Remedy(change=KV_BITS, value=max(bits, default=0)),
        Remedy(change=MORE_GPUS, value=_times_as_many(scenario, budget)),
    )


def _times_as_many(scenario: Scenario, budget: MemoryBudget) -> int:
    """How many times the GPUs a placement fits on, longer or wider in one direction; 0 if on none.

    More stages or more shards divide weights and KV, more replicas only KV.
    """
    spread = budget.weight_bytes + budget.kv_bytes
    left = budget.capacity_bytes - (budget.total_bytes - spread)
    if left <= 0:
        return 0
    # No GPU of k times as many holds less than a k-th of what the fullest one does.
    least = max(2, -(-spread // left))
    most = min(NUM_MULTIPLES * least, MAX_GPUS // scenario.cluster.num_gpus)
    return next(
        (
            times
            for times in range(least, most + 1)
            if any(_fits(wider, budget.reserved_bytes) for wider in _spread_over(scenario, times))
        ),
        0,
    )


def _spread_over(scenario: Scenario, times: int) -> Iterator[Scenario]:
    """The scenario on `times` its GPUs: that many times the stages, the shards, or the replicas."""
    spec, cluster = scenario.placement, scenario.cluster
    number = spec.num_gpus and times * spec.num_gpus
    larger = replace(cluster, num_nodes=times * cluster.num_nodes)
    degrees = {
        key: times * getattr(spec, key)
        for key in ("pipeline_parallel", "tensor_parallel", "data_parallel")
    }
    # A layer-wise placement's stages are its GPUs.
    changes = [{key: value} for key, value in degrees.items()]
    if spec.strategy == "layer-wise":
        changes = [{}, {"data_parallel": degrees["data_parallel"]}]
    for change in changes:
        if change.get("tensor_parallel", 1) <= max(spec.tensor_parallel, cluster.gpus_per_node):
            placement = replace(spec, num_gpus=number, **change)
            yield replace(scenario, cluster=larger, placement=placement)


def _fits(scenario: Scenario, reserved_bytes: int) -> bool:
    """On the fullest GPU, with one microbatch a stage or as many as were asked for."""
    try:
        same = _with(scenario, "workload.batch_size", scenario.workload.batch_size)
        return free_bytes(same, reserved_bytes) >= 0
    except SpecError:
        return False  # no placement of this model at all


def largest_that_fits(scenario: Scenario, key: WorkloadKey, reserved_bytes: int) -> int:
    """The largest batch, or the longest context, with which every GPU's budget fits; 0 if none.

    All else stays, except that a replica has no more microbatches than sequences. An open number
    of them is one per stage. A batch is a multiple of `placement.data_parallel`.
    """
    replicas = place(scenario).data_parallel
    unit = replicas if key == "workload.batch_size" else 1

    def left_bytes(value: int) -> int:
        try:
            changed = _with(scenario, key, value * unit)
        except SpecError:
            # Beyond what a workload may be at all: no answer either.
            return -scenario.cluster.gpu.hbm_bytes
        return free_bytes(changed, reserved_bytes)

    asked = getattr(scenario.workload, key.removeprefix("workload.")) // unit
    return unit * _largest(left_bytes, asked)


def _with(scenario: Scenario, key: WorkloadKey, value: int) -> Scenario:
    asked = scenario.workload.num_microbatches
    opened = replace(scenario.workload, num_microbatches=0)
    workload = replace(opened, **{key.removeprefix("workload."): value})
    placement = place(replace(scenario, workload=workload))
    most = workload.batch_size // placement.data_parallel
    return replace(scenario, workload=workload).with_microbatches(
        min(asked or placement.num_stages, most)
    )


def free_bytes(scenario: Scenario, reserved_bytes: int) -> int:
    """What the fullest GPU has left; below 0 when it does not fit.

    Raises SpecError when the number of microbatches is left open, PlacementError as `place` does.
    """
    placement = _telling_stages(place(scenario))
    kernels = scenario.kernels_on()
    run = [
        compile_step(scenario.model, placement, step, kernels)
        for step in _telling_steps(steps_of(scenario))
    ]
    budgets = memory_budgets(run, scenario.cluster.gpu.hbm_bytes, reserved_bytes)
    return min(budget.capacity_bytes - budget.total_bytes for budget in budgets)


def _largest(left_bytes: Callable[[int], int], start: int) -> int:
    """The largest number from 1 up that leaves 0 bytes free or more, 0 if 1 does not.

    `left_bytes` falls as its number grows. The answer was tried, and so was the next number.
    """
    tried: dict[int, int] = {}
    low, high, guess = 0, 0, start
    while high != low + 1:
        tried[guess] = left_bytes(guess)
        if tried[guess] >= 0:
            low = guess
        else:
            high = guess
        guess = _next_guess(tried, low, high)
    return low


def _next_guess(tried: dict[int, int], low: int, high: int) -> int:
    """Between what fits and what does not; `high` 0: nothing failed yet."""
    if not high:
        return 2 * low
    if not low or len(tried) > NUM_INTERPOLATIONS:
        return (low + high) // 2
    found = low + (high - low) * tried[low] // (tried[low] - tried[high])
    return min(max(found, low + 1), high - 1)

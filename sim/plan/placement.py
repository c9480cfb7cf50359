"""Placements: which rank holds which layers, and which ranks share a layer."""

from __future__ import annotations

from dataclasses import dataclass

from layerwise.sim.plan.errors import PlacementError
from layerwise.sim.plan.model import ModelSpec, divisors


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive layers `[first_layer, end_layer)` on a tensor-parallel group of ranks."""

    first_layer: int
    end_layer: int
    ranks: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        """Layers of this stage."""
        return self.end_layer - self.first_layer


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One or more equal replicas, each a pipeline of stages.

    `on_chip_bytes` is the capacity a layer-wise partition aimed at (0: it aimed at none).
    """

    name: str
    replicas: tuple[tuple[Stage, ...], ...]
    on_chip_bytes: int = 0

    @property
    def num_ranks(self) -> int:
        """GPUs used."""
        return sum(len(stage.ranks) for stages in self.replicas for stage in stages)

    @property
    def num_stages(self) -> int:
        """Pipeline depth of one replica."""
        return len(self.replicas[0])

    @property
    def tensor_parallel(self) -> int:
        """Ranks that share a layer."""
        return len(self.replicas[0][0].ranks)

    @property
    def data_parallel(self) -> int:
        """Replicas."""
        return len(self.replicas)


def tensor_pipeline(
    model: ModelSpec,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    data_parallel: int = 1,
) -> Placement:
    """Megatron's placement: column and row shards inside a stage, stages in a pipeline.

    Ranks of one tensor-parallel group are neighbours, so a group of 8 fills a node.
    Raises PlacementError when a size does not divide or there are more stages than layers.
    """
    _check_tensor_parallel(model, tensor_parallel)
    _check_stages("placement.pipeline_parallel", pipeline_parallel, model.num_layers)
    if data_parallel < 1:
        raise PlacementError(
            "placement.data_parallel", data_parallel, "is not positive", "use 1 or more"
        )
    groups = partition_layers([1] * model.num_layers, pipeline_parallel)
    name = f"TP={tensor_parallel} x PP={pipeline_parallel}"
    if data_parallel > 1:
        name += f" x DP={data_parallel}"
    return Placement(name=name, replicas=_replicas(groups, tensor_parallel, data_parallel))


def layer_wise(
    model: ModelSpec,
    *,
    num_gpus: int,
    on_chip_bytes: int,
    data_parallel: int = 1,
    key: str = "placement.num_gpus",
) -> Placement:
    """The paper's placement: consecutive layers grouped, one group on each GPU.

    The partition makes the largest group as small as it can be, so a group fits
    `on_chip_bytes` whenever any partition over these GPUs does; `stage_fits` tells.
    `key` names the number of GPUs in errors. Raises PlacementError when there are more GPUs than
    layers.
    """
    per_replica = num_gpus // max(data_parallel, 1)
    if data_parallel < 1 or num_gpus % data_parallel:
        raise PlacementError(
            "placement.data_parallel",
            data_parallel,
            f"does not divide num_gpus={num_gpus}",
            f"use one of {divisors(num_gpus)}",
        )
    _check_stages(key, per_replica, model.num_layers)
    groups = partition_layers([model.layer_weight_bytes] * model.num_layers, per_replica)
    return Placement(
        name="layer-wise",
        replicas=_replicas(groups, 1, data_parallel),
        on_chip_bytes=on_chip_bytes,
    )


def partition_layers(sizes: list[int], num_groups: int) -> list[tuple[int, int]]:
    """Cut a row of sizes into consecutive groups whose largest sum is smallest.

    Returns half-open (first, end) pairs. Raises PlacementError when there are more groups than
    sizes. The bound is found by bisection; groups are then filled evenly under it.
    """
    _check_stages("num_groups", num_groups, len(sizes))
    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        if _groups_needed(sizes, middle) <= num_groups:
            high = middle
        else:
            low = middle + 1
    return _fill_under_bound(sizes, num_groups, low)


def stage_fits(model: ModelSpec, placement: Placement) -> tuple[bool, ...]:
    """Per stage of one replica: do its weights fit `placement.on_chip_bytes`?"""
    return tuple(
        stage.num_layers * model.layer_weight_bytes <= placement.on_chip_bytes
        for stage in placement.replicas[0]
    )


def _groups_needed(sizes: list[int], bound: int) -> int:
    groups, filled = 1, 0
    for size in sizes:
        if filled + size > bound:
            groups, filled = groups + 1, 0
        filled += size
    return groups


def _fill_under_bound(sizes: list[int], num_groups: int, bound: int) -> list[tuple[int, int]]:
    """Greedy cuts near the mean of what is left, never above the bound, never an empty group."""
    cuts: list[tuple[int, int]] = []
    first = 0
    for groups_left in range(num_groups, 0, -1):
        target = sum(sizes[first:]) / groups_left
        end, filled = first + 1, sizes[first]
        while (
            len(sizes) - end >= groups_left
            and filled + sizes[end] <= bound
            and (filled + sizes[end] / 2 <= target or _must_take(sizes, end, groups_left, bound))
        ):
            filled += sizes[end]
            end += 1
        if groups_left == 1:
            end = len(sizes)
        cuts.append((first, end))
        first = end
    return cuts


def _must_take(sizes: list[int], end: int, groups_left: int, bound: int) -> bool:
    """Leaving sizes[end:] to the groups after this one would break the bound."""
    return groups_left == 1 or _groups_needed(sizes[end:], bound) > groups_left - 1


def _replicas(
    groups: list[tuple[int, int]], tensor_parallel: int, data_parallel: int
) -> tuple[tuple[Stage, ...], ...]:
    per_replica = tensor_parallel * len(groups)

    def stage(replica: int, index: int) -> Stage:
        start = replica * per_replica + index * tensor_parallel
        first, end = groups[index]
        ranks = tuple(range(start, start + tensor_parallel))
        return Stage(first_layer=first, end_layer=end, ranks=ranks)

    return tuple(
        tuple(stage(replica, index) for index in range(len(groups)))
        for replica in range(data_parallel)
    )


def _check_tensor_parallel(model: ModelSpec, tensor_parallel: int) -> None:
    limits = {
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "intermediate_size": model.intermediate_size,
    }
    if model.vocab_size:
        limits["vocab_size"] = model.vocab_size
    if tensor_parallel < 1:
        raise PlacementError(
            "placement.tensor_parallel", tensor_parallel, "is not positive", "use 1 or more"
        )
    for key, limit in limits.items():
        if limit % tensor_parallel:
            allowed = [
                d
                for d in divisors(model.num_key_value_heads)
                if all(v % d == 0 for v in limits.values())
            ]
            raise PlacementError(
                "placement.tensor_parallel",
                tensor_parallel,
                f"does not divide model.{key}={limit}",
                f"use one of {allowed}",
            )


def _check_stages(key: str, stages: int, num_layers: int) -> None:
    if not 1 <= stages <= num_layers:
        raise PlacementError(
            key,
            stages,
            f"stages for model.num_layers={num_layers} leave some without a layer",
            f"use 1 to {num_layers}",
        )

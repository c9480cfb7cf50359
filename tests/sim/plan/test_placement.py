from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerwise.sim.plan.errors import PlacementError
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.placement import layer_wise, partition_layers, stage_fits, tensor_pipeline
from tests.sim.scenes import TINY

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=9)


def largest(sizes: list[int], groups: list[tuple[int, int]]) -> int:
    return max(sum(sizes[first:end]) for first, end in groups)


def brute_force(sizes: list[int], num_groups: int) -> int:
    inner = itertools.combinations(range(1, len(sizes)), num_groups - 1)
    cuts = ((0, *places, len(sizes)) for places in inner)
    return min(largest(sizes, list(itertools.pairwise(cut))) for cut in cuts)


@given(SIZES, st.data())
def test_largest_group_is_as_small_as_it_can_be(sizes: list[int], data: st.DataObject) -> None:
    num_groups = data.draw(st.integers(1, len(sizes)))

    groups = partition_layers(sizes, num_groups)

    assert brute_force(sizes, num_groups) == largest(sizes, groups)


@given(SIZES, st.data())
def test_groups_cover_every_layer_once_in_order(sizes: list[int], data: st.DataObject) -> None:
    num_groups = data.draw(st.integers(1, len(sizes)))

    groups = partition_layers(sizes, num_groups)

    covered = [layer for first, end in groups for layer in range(first, end)]
    assert list(range(len(sizes))) == covered
    assert num_groups == sum(1 for first, end in groups if end > first)


@given(st.integers(1, 40), st.data())
def test_equal_layers_are_spread_to_within_one(num_layers: int, data: st.DataObject) -> None:
    num_groups = data.draw(st.integers(1, num_layers))

    sizes = [end - first for first, end in partition_layers([7] * num_layers, num_groups)]

    assert max(sizes) - min(sizes) <= 1


def test_more_groups_than_layers_is_refused() -> None:
    with pytest.raises(PlacementError, match="num_groups=3 .*num_layers=2.* use 1 to 2"):
        partition_layers([1, 1], 3)


def test_layer_wise_group_that_fits_on_chip_says_so() -> None:
    placement = layer_wise(TINY, num_gpus=4, on_chip_bytes=2 * TINY.layer_weight_bytes)

    assert (True,) * 4 == stage_fits(TINY, placement)


def test_layer_wise_group_that_does_not_fit_on_chip_says_so() -> None:
    placement = layer_wise(TINY, num_gpus=3, on_chip_bytes=2 * TINY.layer_weight_bytes)

    assert [3, 3, 2] == sorted((s.num_layers for s in placement.replicas[0]), reverse=True)
    assert 2 == stage_fits(TINY, placement).count(False)


def test_paper_layer_does_not_fit_in_l2() -> None:
    placement = layer_wise(MODELS["paper-16"], num_gpus=16, on_chip_bytes=50 * 2**20)

    assert (False,) * 16 == stage_fits(MODELS["paper-16"], placement)


def test_tensor_parallel_groups_are_neighbours() -> None:
    placement = tensor_pipeline(TINY, tensor_parallel=2, pipeline_parallel=2, data_parallel=2)

    ranks = [stage.ranks for stages in placement.replicas for stage in stages]
    assert [(0, 1), (2, 3), (4, 5), (6, 7)] == ranks


@pytest.mark.parametrize(
    ("given_sizes", "key", "fix"),
    [
        ({"tensor_parallel": 3}, "placement.tensor_parallel=3", "use one of [1, 2, 4, 8]"),
        ({"tensor_parallel": 0}, "placement.tensor_parallel=0", "use 1 or more"),
        ({"pipeline_parallel": 9}, "placement.pipeline_parallel=9", "use 1 to 8"),
        ({"pipeline_parallel": 0}, "placement.pipeline_parallel=0", "use 1 to 8"),
        ({"data_parallel": 0}, "placement.data_parallel=0", "use 1 or more"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(
    given_sizes: dict[str, int], key: str, fix: str
) -> None:
    with pytest.raises(PlacementError) as error:
        tensor_pipeline(TINY, **given_sizes)

    assert str(error.value).startswith(key)
    assert str(error.value).endswith(fix)


def test_data_parallel_that_does_not_divide_the_gpus_is_refused() -> None:
    with pytest.raises(PlacementError, match="placement.data_parallel=3 .*num_gpus=8; use one of"):
        layer_wise(TINY, num_gpus=8, on_chip_bytes=1, data_parallel=3)


def test_more_gpus_than_layers_is_refused() -> None:
    with pytest.raises(PlacementError, match="placement.num_gpus=9 .*num_layers=8"):
        layer_wise(TINY, num_gpus=9, on_chip_bytes=1)

"""Where a model fits that does not on the GPUs asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.scenarios.rank.asked import Asked
from layerwise.scenarios.rank.fitting import left_bytes, resized, rooms_of
from layerwise.scenarios.rank.layouts import layouts_of
from layerwise.sim.plan.hardware import GPUS, SlowParts, dgx_cluster
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.workload import Workload
from tests.synthetic import synthetic_profile

H100 = GPUS["h100-sxm"]
# Source: config.json of Llama 3.1 70B and 405B.
SEVENTY = ModelSpec(
    name="70b",
    num_layers=80,
    hidden_size=8192,
    intermediate_size=28672,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128_256,
)
FOUR_HUNDRED = replace(
    SEVENTY,
    name="405b",
    num_layers=126,
    hidden_size=16384,
    intermediate_size=53248,
    num_attention_heads=128,
)


def asked_of(model: ModelSpec, num_gpus: int) -> Asked:
    return Asked(
        model=model,
        cluster=dgx_cluster(H100, num_gpus),
        workload=Workload(batch_size=64, context_tokens=8000),
        profile=synthetic_profile(),
    )


def fits_somehow(asked: Asked, num_gpus: int) -> bool:
    cluster = resized(asked.cluster, num_gpus)
    assert cluster is not None
    layouts, _ = layouts_of(asked.model, cluster, asked.workload, None)
    there = replace(asked, cluster=cluster)
    return any(left_bytes(there, layout, asked.reserved_bytes) >= 0 for layout in layouts)


def test_fewest_gpus_fit_and_fewer_do_not() -> None:
    asked = asked_of(SEVENTY, 2)
    fewest = rooms_of(asked)[0]

    assert (5, "layer-wise PP=5") == (fewest.num_gpus, fewest.layout.name)
    assert [False, False, True] == [fits_somehow(asked, number) for number in (3, 4, 5)]


def test_the_next_power_of_two_is_named_too() -> None:
    assert [("h100-sxm", 5), ("h100-sxm", 8), ("b200", 2)] == [
        (room.gpu, room.num_gpus) for room in rooms_of(asked_of(SEVENTY, 2))
    ]


def test_a_full_node_grows_by_nodes_and_larger_gpus_are_tried() -> None:
    found = rooms_of(asked_of(FOUR_HUNDRED, 8))

    assert [("h100-sxm", 16), ("h200", 8), ("b200", 8)] == [
        (room.gpu, room.num_gpus) for room in found
    ]
    assert "TP=8 x PP=2" == found[0].layout.name
    assert all(room.total_bytes <= GPUS[room.gpu].hbm_bytes for room in found)


def test_what_no_number_of_gpus_holds_has_no_room() -> None:
    # One sequence of one KV head's cache fills more than a GPU, and neither is divided.
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 256}
    one = replace(SEVENTY, num_layers=1, **heads)
    asked = replace(asked_of(one, 2), workload=Workload(batch_size=1, context_tokens=100_000_000))

    assert () == tuple(room for room in rooms_of(asked) if room.gpu == "h100-sxm")


def test_what_would_need_more_gpus_than_are_tried_is_told_at_once() -> None:
    huge = Workload(batch_size=10_000, context_tokens=10_000_000)

    assert () == rooms_of(replace(asked_of(SEVENTY, 2), workload=huge))


@pytest.mark.parametrize(
    ("start", "number", "expected"),
    [
        (2, 5, (1, 5)),
        (2, 8, (1, 8)),
        (2, 16, (2, 8)),
        (8, 24, (3, 8)),
        (16, 4, (1, 4)),
        (2, 12, None),
        (16, 20, None),
    ],
)
def test_nodes_of_another_number_of_gpus(
    start: int, number: int, expected: tuple[int, int] | None
) -> None:
    found = resized(dgx_cluster(H100, start), number)

    assert expected == (found and (found.num_nodes, found.gpus_per_node))


def test_other_gpus_are_at_full_speed() -> None:
    slow = dgx_cluster(H100, 8, slow=SlowParts(gpus=(7,), clock_share=0.5))
    found = resized(slow, 4)

    assert found is not None
    assert () == found.slow.gpus
    assert "4x h100-sxm" == found.name

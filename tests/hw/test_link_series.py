"""What is timed: payloads to fit and to score, groups, and pairs by how they are joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.links.series import (
    MIB,
    Pair,
    Request,
    Series,
    group_sizes,
    ops_per_replay,
    pairs_of,
    parse_sizes,
    score_sizes_between,
    series_of,
    sizes_between,
    sizes_of,
)


def request(**changed: Any) -> Request:
    asked: dict[str, Any] = {
        "out": Path(),
        "device": "cuda",
        "ops": ("send", "all_reduce"),
        "modes": ("graph", "eager"),
        "sizes_bytes": sizes_between(512, 512 * MIB),
        "score_bytes": score_sizes_between(512, 512 * MIB),
        "budget_s": 1.0,
    }
    return Request(**asked | changed)


def test_no_payload_is_both_fitted_and_scored() -> None:
    asked = request()

    assert (21, 10) == (len(asked.sizes_bytes), len(asked.score_bytes))
    assert not set(asked.sizes_bytes) & set(asked.score_bytes)
    assert (512, 512 * MIB) == (min(asked.every_size), max(asked.every_size))
    assert ["fit", "score", "fit"] == [asked.use_of(size) for size in asked.every_size[:3]]


def test_every_payload_divides_among_eight_ranks() -> None:
    assert {0} == {size % 16 for size in request().every_size}


@pytest.mark.parametrize(
    ("world_size", "sizes"), [(2, (2,)), (3, (2, 3)), (4, (2, 4)), (8, (2, 4, 8))]
)
def test_groups_are_powers_of_two_and_all_ranks(world_size: int, sizes: tuple[int, ...]) -> None:
    assert sizes == group_sizes(world_size)


def test_the_first_and_the_farthest_pair_of_a_class_are_timed_in_full_and_others_surveyed() -> None:
    pairs = [Pair((0, 1), "a"), Pair((0, 2), "b"), Pair((0, 3), "a"), Pair((1, 2), "a")]
    found = series_of(request(), 3, pairs)

    assert [
        Series("send", "graph", (0, 1)),
        Series("send", "graph", (0, 2)),
        Series("all_reduce", "graph", (0, 1)),
        Series("all_reduce", "graph", (0, 1, 2)),
        Series("send", "graph", (0, 3)),
        Series("send", "graph", (1, 2), is_survey=True),
    ] == list(found[:6])
    assert ["eager"] * 4 == [series.mode for series in found[6:]]


def test_the_ring_is_of_all_ranks_where_it_is_more_than_one_link() -> None:
    asked = request(ops=("all_reduce", "ring"))
    every = (0, 1, 2, 3)

    assert (
        Series("all_reduce", "eager", every),
        Series("ring", "eager", every),
        Series("ring", "graph", every),
    ) == series_of(asked, 4, [])[-3:]
    assert {"all_reduce"} == {series.op for series in series_of(asked, 2, [])}


def test_a_survey_takes_a_few_payloads() -> None:
    whole = Series("send", "graph", (0, 1))
    survey = Series("send", "graph", (0, 1), is_survey=True)

    assert [4096, MIB, 64 * MIB] == sizes_of(survey, request())
    assert request().every_size == sizes_of(whole, request())


def test_ranks_on_different_hosts_are_joined_by_the_network() -> None:
    found = pairs_of([("a", 0), ("a", 1), ("b", 0)])

    assert [(0, 1), (0, 2), (1, 2)] == [pair.ranks for pair in found]
    assert ["one host", "the network", "the network"] == [pair.joined_by for pair in found]


def test_larger_payloads_are_repeated_less() -> None:
    assert [20, 8, 2] == [ops_per_replay(size) for size in (512, 64 * MIB, 512 * MIB)]


def test_sizes_are_read_in_bytes() -> None:
    assert (512, 512 * MIB) == parse_sizes("512..512MiB")
    assert (2048, 4096) == parse_sizes("2KiB..4096B")


@pytest.mark.parametrize("text", ["512", "512..1MB", "1..16", "1KiB..512", "0..16"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(NotAvailableError, match=f"--sizes {text} .*use|write"):
        parse_sizes(text)

"""Pairs of shared tensors, over memory whose sums are twice the source: as with one equal peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from layerwise.hw.engine.peer_memory import PeerMemory, ReducePairs, padded_bytes
from layerwise.hw.errors import NotAvailableError
from layerwise.sim.plan.ops import ONE_SHOT_MAX_BYTES


class OneEqualPeer:
    """Peer memory's sums, with the algorithms that ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype)

    def one_shot(self, source: Tensor, output: Tensor) -> None:
        self.ran.append("one_shot")
        output.copy_(2 * source)

    def two_shot(self, tensor: Tensor) -> None:
        self.ran.append("two_shot")
        tensor.mul_(2)


def pairs_of(memory: OneEqualPeer) -> ReducePairs:
    return ReducePairs(cast("PeerMemory", cast("Any", memory)))


def test_the_sum_is_in_the_tensor_that_is_returned() -> None:
    pairs = pairs_of(OneEqualPeer())
    bound = torch.full((4, 2), 1.5)
    for value in (1.5, 2.0, 3.0, 4.0):
        bound.fill_(value)  # the producer writes what the buffer is bound to
        bound = pairs.all_reduce(bound)
        assert torch.equal(torch.full((4, 2), 2 * value), bound)


def test_a_tensor_seen_once_alternates_with_its_twin() -> None:
    pairs = pairs_of(OneEqualPeer())
    first = pairs.all_reduce(torch.ones(4))
    second = pairs.all_reduce(first)

    assert first.data_ptr() != second.data_ptr()
    assert first.data_ptr() == pairs.all_reduce(second).data_ptr()


def test_tensors_do_not_share_a_twin() -> None:
    pairs = pairs_of(OneEqualPeer())
    one, other = pairs.all_reduce(torch.ones(4)), pairs.all_reduce(torch.full((4,), 5.0))

    assert [2.0, 10.0] == [float(one[0]), float(other[0])]


@pytest.mark.parametrize(("extra", "algorithm"), [(0, "one_shot"), (4, "two_shot")])
def test_larger_payloads_take_two_shots_in_place(extra: int, algorithm: str) -> None:
    memory = OneEqualPeer()
    pairs = pairs_of(memory)
    tensor = torch.ones((ONE_SHOT_MAX_BYTES + extra) // 4)
    first = pairs.all_reduce(tensor)
    second = pairs.all_reduce(first)

    assert [algorithm] * 2 == memory.ran
    assert (algorithm == "two_shot") == (first.data_ptr() == second.data_ptr())
    assert 4.0 == float(second[0])


def test_a_pair_takes_two_padded_tensors() -> None:
    assert 2 * padded_bytes(100) + 2 * padded_bytes(256) == ReducePairs.num_bytes((100, 256))
    assert (256, 256, 512) == tuple(map(padded_bytes, (1, 256, 257)))


def test_the_cpu_has_no_peer_memory() -> None:
    with pytest.raises(NotAvailableError, match="'one_shot' is not available on the cpu"):
        PeerMemory(cast("Any", None), 1, torch.device("cpu"))

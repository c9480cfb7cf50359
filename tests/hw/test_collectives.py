"""Routes and failures: one communicator per group, edge and channel; one failure ends all ranks."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from layerwise.hw.engine.collectives import FEW_BLOCKS, SMALL_BYTES, edge_options, routes_of
from layerwise.hw.engine.peer_memory import ReducePairs
from layerwise.hw.errors import RankFailedError
from layerwise.hw.ranks.local import local_ranks
from layerwise.hw.ranks.session import Session
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.placement import tensor_pipeline
from layerwise.sim.plan.workload import Step
from tests.hw.scenes import TINY

STEP = Step(
    phase="decode",
    microbatch_sizes=(1, 1),
    query_tokens=1,
    context_tokens=4,
    kv_capacity_tokens=4,
    takes_feedback=True,
    gives_feedback=True,
)


def test_activations_and_tokens_travel_on_communicators_of_their_own() -> None:
    placement = tensor_pipeline(TINY, tensor_parallel=2, pipeline_parallel=2)
    routes = routes_of(compile_step(TINY, placement, STEP, KernelChoice()).programs)
    assert ((0, 1), (2, 3)) == routes.groups
    act = token = TINY.hidden_size * 4  # what comes back is the hidden state: no head
    edges = {(0, 2, "act"): act, (1, 3, "act"): act, (2, 0, "token"): token, (3, 1, "token"): token}
    assert edges == routes.edges


def test_only_edges_of_small_messages_on_gpus_take_few_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Options:
        config = SimpleNamespace(max_ctas=0)

    monkeypatch.setattr(dist, "ProcessGroupNCCL", SimpleNamespace(Options=Options), raising=False)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    made = edge_options(SMALL_BYTES, cuda)

    assert made is not None
    assert FEW_BLOCKS == made.config.max_ctas  # type: ignore[attr-defined]
    assert [None, None] == [edge_options(SMALL_BYTES + 1, cuda), edge_options(8, cpu)]


def test_one_shot_sums_have_a_pair_of_tensors_in_peer_memory() -> None:
    placement = tensor_pipeline(TINY, tensor_parallel=2, pipeline_parallel=2)
    kernels = KernelChoice(all_reduce="one_shot")
    one_shot, nccl = (
        routes_of(compile_step(TINY, placement, STEP, choice).programs)
        for choice in (kernels, KernelChoice())
    )
    # Attention's and the MLP's output of one token, float32, shared by layers and microbatches.
    num_bytes = ReducePairs.num_bytes((TINY.hidden_size * 4,) * 2)
    assert {(0, 1): num_bytes, (2, 3): num_bytes} == one_shot.peer_bytes
    assert {} == nccl.peer_bytes
    assert (nccl.groups, nccl.edges) == (one_shot.groups, one_shot.edges)


def die_or_wait(session: Session, how: str) -> None:
    """Rank 1 fails; the others wait for a message that never comes."""
    if session.rank == 1 and how == "raise":
        raise ValueError("out of ideas")
    if session.rank == 1:
        os._exit(1)
    session.align()


@pytest.mark.parametrize(
    ("how", "message"), [("raise", "rank 1 failed.*out of ideas"), ("exit", "rank 1 .* died")]
)
def test_a_failed_rank_ends_all_ranks_at_once(how: str, message: str) -> None:
    started_s = time.monotonic()
    with local_ranks(2, "cpu") as ranks:
        with pytest.raises(RankFailedError, match=message):
            ranks.call(die_or_wait, how)
        assert not any(process.is_alive() for process in ranks.processes)
    assert time.monotonic() - started_s < 30


def test_values_of_all_ranks_are_gathered_again_and_again() -> None:
    with local_ranks(2, "cpu") as ranks:
        assert [[[0, 1], [0, 1]], [[], []]] == ranks.call(gather_twice)


def gather_twice(session: Session) -> list[list[int]]:
    return [session.gather("rank", session.rank) for _ in range(2)]

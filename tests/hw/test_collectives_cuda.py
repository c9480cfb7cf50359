"""On two GPUs: sums over peer memory are NCCL's, eager and in a graph, alone and in the engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from layerwise.hw.engine.collectives import DistributedPeers, Routes
from layerwise.hw.engine.peer_memory import ReducePairs
from layerwise.hw.engine.steps import run_steps
from layerwise.hw.engine.weights import RandomWeights
from layerwise.hw.links.measuring import time_links
from layerwise.hw.links.ops import OPS
from layerwise.hw.links.series import request_of
from layerwise.hw.ranks.local import LocalRanks, local_ranks
from layerwise.hw.ranks.session import Session
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.ops import AllReduceAlgorithm, Buffer
from layerwise.sim.plan.placement import tensor_pipeline
from layerwise.sim.plan.workload import decode_steps, prefill_steps

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")

BOTH = (0, 1)
KIB = 2**10
# One shot up to 256 KiB, two shots above; one that no vector of 16 bytes divides.
SIZES_BYTES = (512, 1000, 64 * KIB, 256 * KIB, 4096 * KIB)
ROUNDS = 20
MODEL = ModelSpec(
    name="small",
    num_layers=3,
    hidden_size=512,
    intermediate_size=1024,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=128,
    dtype="bfloat16",
)


@pytest.fixture(scope="module")
def ranks() -> Iterator[LocalRanks]:
    with local_ranks(2, "cuda") as started:
        yield started


def reduce_op(num_bytes: int, algorithm: AllReduceAlgorithm) -> ops.AllReduce:
    buffer = Buffer("sum", "activation", (num_bytes // 2,), "bfloat16")
    return ops.AllReduce(
        name="sum", buffer=buffer, payload_bytes=num_bytes, group=BOTH, algorithm=algorithm
    )


def peers_of(session: Session, num_bytes: int) -> DistributedPeers:
    peer_bytes = {BOTH: ReducePairs.num_bytes((num_bytes,))}
    return DistributedPeers(Routes((BOTH,), {}, peer_bytes), session.rank, session.device)


def values(session: Session, num_bytes: int, seed: int) -> Tensor:
    """Small whole numbers, others on each rank: sums of them are exact in bf16."""
    generator = torch.Generator(session.device).manual_seed(2 * seed + session.rank)
    found = torch.randint(-2, 3, (num_bytes // 2,), generator=generator, device=session.device)
    return found.to(torch.bfloat16)


def eager_rounds(session: Session, num_bytes: int) -> int:
    """In how many rounds of changing values the sum was NCCL's."""
    peers = peers_of(session, num_bytes)
    bound, equal = values(session, num_bytes, 0), 0
    for seed in range(ROUNDS):
        expected = values(session, num_bytes, seed)
        bound.copy_(expected)
        bound = peers.all_reduce(reduce_op(num_bytes, "one_shot"), bound)
        peers.all_reduce(reduce_op(num_bytes, "nccl"), expected)
        equal += torch.equal(expected, bound)
    peers.close()
    return equal


def replayed_rounds(session: Session, num_bytes: int) -> int:
    """The same of a graph of three sums in a row of 1, 2 and 3 times its input."""
    peers, one_shot = peers_of(session, num_bytes), reduce_op(num_bytes, "one_shot")
    source, total = values(session, num_bytes, 0), values(session, num_bytes, 0)
    bound = peers.all_reduce(one_shot, values(session, num_bytes, 0))
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(session.device)
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        total.zero_()
        for factor in (1, 2, 3):
            torch.mul(source, factor, out=bound)
            bound = peers.all_reduce(one_shot, bound)
            total.add_(bound)
        graph.capture_end()
    equal = 0
    for seed in range(ROUNDS):
        expected = values(session, num_bytes, seed)
        source.copy_(expected)
        # Replays follow one another without a wait between them: a slow peer would be overtaken.
        for _ in range(3):
            graph.replay()
        peers.all_reduce(reduce_op(num_bytes, "nccl"), expected)
        equal += torch.equal(6 * expected, total)
    graph.reset()
    peers.close()
    return equal


def first_seen_in_a_capture(session: Session) -> str:
    peers = peers_of(session, 512)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(session.device)
    tensor, message = values(session, 512, 0), ""
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            peers.all_reduce(reduce_op(512, "one_shot"), tensor)
        except RuntimeError as error:
            message = str(error)
        tensor.zero_()
        graph.capture_end()
    graph.reset()
    peers.close()
    return message


@pytest.mark.parametrize("num_bytes", SIZES_BYTES)
def test_eager_sums_are_nccls(ranks: LocalRanks, num_bytes: int) -> None:
    assert [ROUNDS, ROUNDS] == ranks.call(eager_rounds, num_bytes, timeout_s=60)


@pytest.mark.parametrize("num_bytes", SIZES_BYTES)
def test_replayed_sums_are_nccls(ranks: LocalRanks, num_bytes: int) -> None:
    assert [ROUNDS, ROUNDS] == ranks.call(replayed_rounds, num_bytes, timeout_s=60)


def test_a_tensor_first_seen_in_a_capture_is_refused(ranks: LocalRanks) -> None:
    for message in ranks.call(first_seen_in_a_capture, timeout_s=60):
        assert "once before its capture" in message


def test_the_engine_computes_the_same_with_either(ranks: LocalRanks) -> None:
    """Sums of two ranks are one rounding of one addition, whoever adds."""
    steps = [
        *prefill_steps((2, 2), 512, 512, kv_capacity_tokens=515, gives_feedback=True),
        *decode_steps((2, 2), 513, 3, kv_capacity_tokens=515, primed=True),
    ]
    inputs = {
        (0, 0, m): torch.randn(1024, 512, generator=torch.Generator().manual_seed(m))
        for m in range(2)
    }

    def last_hidden(algorithm: AllReduceAlgorithm) -> Tensor:
        kernels = replace(
            KernelChoice(decode_attention="cudnn", prefill_attention="cudnn"), all_reduce=algorithm
        )
        placement = tensor_pipeline(MODEL, tensor_parallel=2)
        run = [compile_step(MODEL, placement, step, kernels) for step in steps]
        source = RandomWeights(MODEL, torch.device("cpu"))
        outputs = run_steps(run, MODEL, source, inputs, device="cuda", ranks=ranks)
        return outputs.hidden[len(steps) - 1, 0, 1].float()

    nccl, one_shot = last_hidden("nccl"), last_hidden("one_shot")
    assert float((nccl - one_shot).norm() / nccl.norm()) < 1e-3


def test_every_op_is_timed_in_graphs_and_eagerly(tmp_path: Path) -> None:
    out = tmp_path / "links.json"
    assert time_links(request_of(out, "cuda", sizes="512..8KiB", budget_s=60.0))
    data = json.loads(out.read_text())

    assert [] == data["refused"]
    # Seven ops at five payloads that are fitted and two that are not, in two modes.
    assert 2 * 7 * len(OPS) == len(data["timings"])
    assert all(0 < timing["median_s"] < 1e-3 for timing in data["timings"])

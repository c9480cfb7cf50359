"""Numbers worked out by hand from the paper's layer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.demand import closed_form_flops, demand_of
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.ops import Buffer, Demand, Op, all_reduce_wire_bytes
from layerwise.sim.plan.placement import tensor_pipeline
from layerwise.sim.plan.workload import decode_steps, prefill_steps

PAPER = MODELS["paper-16"]
ONE_LAYER = replace(PAPER, num_layers=1)


def demands(sequences: int = 8, tensor_parallel: int = 1) -> dict[str, Demand]:
    placement = tensor_pipeline(ONE_LAYER, tensor_parallel=tensor_parallel)
    step = decode_steps((sequences,), 10_000, 1)[0]
    compiled = compile_step(ONE_LAYER, placement, step, KernelChoice())
    return {placed.op.name: demand_of(placed.op) for placed in compiled.programs[0]}


def test_layer_has_268_million_parameters() -> None:
    assert 268_435_456 == PAPER.matmul_parameters_per_layer


def test_layer_weighs_537_megabytes() -> None:
    assert 536_870_912 == PAPER.matmul_parameters_per_layer * PAPER.dtype_bytes


def test_token_takes_16_kib_of_kv_per_layer() -> None:
    assert 16 * 1024 == PAPER.kv_bytes_per_token_per_layer


def test_layer_reads_its_weights_once() -> None:
    layer = demands()
    weights = sum(
        size
        for demand in layer.values()
        for buffer, size in demand.reads
        if buffer.kind == "weight" and "norm" not in buffer.name
    )

    assert 536_870_912 == weights


def test_gate_up_counts_a_multiply_add_as_two() -> None:
    assert 2 * 8 * 32_768 * 4096 == demands()["mlp.gate_up"].flops


def test_attention_reads_the_whole_cache() -> None:
    reads = {buffer.name: size for buffer, size in demands()["attn.sdpa"].reads}

    assert {"attn.qkv.out": 8 * 4096 * 2, "kv": 8 * 10_000 * 16_384} == reads


def test_decode_attention_flops() -> None:
    assert 4 * 8 * 4096 * 10_000 == demands()["attn.sdpa"].flops


def test_prefill_attention_counts_what_the_causal_mask_lets_through() -> None:
    step = prefill_steps((1,), 4, 4)[0]
    compiled = compile_step(ONE_LAYER, tensor_pipeline(ONE_LAYER), step, KernelChoice())
    attention = next(p.op for p in compiled.programs[0] if isinstance(p.op, ops.Attention))

    assert 4 * 4096 * (1 + 2 + 3 + 4) == demand_of(attention).flops


def test_rotary_writes_one_token_of_kv() -> None:
    writes = {buffer.name: size for buffer, size in demands()["attn.rope"].writes}

    assert {"attn.qkv.out": 8 * 4096 * 2, "kv": 8 * 16_384} == writes


def test_shard_reads_an_eighth_of_the_weights() -> None:
    layer = demands(tensor_parallel=8)
    sizes = [size for buffer, size in layer["mlp.down"].reads if buffer.kind == "weight"]

    assert [16_384 * 4096 * 2 // 8] == sizes


def test_ring_moves_twice_all_but_its_own_share() -> None:
    assert 2 * 7 * 1000 == all_reduce_wire_bytes(8000, 8, "nccl")


def test_one_shot_sends_a_copy_to_every_peer() -> None:
    assert 7 * 8000 == all_reduce_wire_bytes(8000, 8, "one_shot")


def test_all_reduce_of_a_decode_layer_carries_the_residual_stream() -> None:
    assert 2 * 7 * (8 * 4096 * 2) // 8 == demands(tensor_parallel=8)["attn.all_reduce"].wire_bytes


def test_decode_step_of_the_paper_takes_18_teraflops() -> None:
    step = decode_steps((128,), 10_000, 1)[0]
    weights, attention = 2 * 268_435_456 * 128, 4 * 4096 * 10_000 * 128

    assert 16 * (weights + attention) == closed_form_flops(PAPER, step)


def buffer(name: str, *shape: int) -> Buffer:
    return Buffer(name, "activation", shape, "bfloat16")


@pytest.mark.parametrize(
    ("op", "read", "written", "wire"),
    [
        (
            ops.GatedActivation(
                name="a",
                source=buffer("s", 2, 8),
                output=buffer("o", 2, 4),
                tokens=2,
                intermediate_size=4,
            ),
            32,
            16,
            0,
        ),
        (
            ops.Embed(
                name="e",
                token_ids=Buffer("i", "tokens", (3,), "int64"),
                weight=buffer("w", 100, 4),
                output=buffer("o", 3, 4),
                tokens=3,
                hidden_size=4,
            ),
            3 * 8 + 24,
            24,
            0,
        ),
        (
            ops.Sample(
                name="s",
                logits=buffer("l", 2, 10),
                sequences=2,
                vocab_size=10,
                token_ids=Buffer("i", "tokens", (2,), "int64"),
            ),
            40,
            16,
            0,
        ),
        (
            ops.AllGather(
                name="g",
                source=buffer("s", 2, 5),
                output=buffer("o", 2, 10),
                payload_bytes=40,
                group=(0, 1),
            ),
            20,
            40,
            20,
        ),
        (
            ops.Send(name="s", buffer=buffer("b", 4), payload_bytes=8, peer=1, channel="act"),
            8,
            0,
            8,
        ),
        (
            ops.Recv(name="r", buffer=buffer("b", 4), payload_bytes=8, peer=1, channel="act"),
            0,
            8,
            0,
        ),
        (
            ops.ResidualAdd(
                name="r",
                source=buffer("s", 6, 4),
                delta=buffer("d", 6, 4),
                output=buffer("o", 2, 4),
                sequences=2,
                query_tokens=3,
                hidden_size=4,
                select_last=True,
            ),
            32,
            16,
            0,
        ),
    ],
)
def test_bytes_of_an_op(op: Op, read: int, written: int, wire: int) -> None:
    demand = demand_of(op)

    assert (read, written, wire) == (demand.read_bytes, demand.written_bytes, demand.wire_bytes)

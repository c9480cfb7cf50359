"""Tensor-parallel shards: put together they are the whole, cut where Megatron cuts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from layerwise.hw.engine.collectives import ReplacedPeers
from layerwise.hw.engine.execute import Engine
from layerwise.hw.engine.memory import allocate, model_fill, slots_of
from layerwise.hw.engine.schedule import actions_of
from layerwise.hw.engine.weights import RESIDUAL_SCALE, RandomWeights, shard, whole_shape
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.errors import ProgramError
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.placement import tensor_pipeline
from layerwise.sim.plan.workload import prefill_steps

MODEL = ModelSpec(
    name="tiny",
    num_layers=2,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=32,
    dtype="float32",
)


def parts(name: str, full: torch.Tensor) -> list[torch.Tensor]:
    return [shard(name, full, MODEL, rank, 2) for rank in range(2)]


def test_query_key_and_value_are_cut_each_by_heads() -> None:
    full = torch.arange(32.0)[:, None].expand(32, 16)
    first, second = (part[:, 0].tolist() for part in parts("attn.qkv.weight", full))
    assert [*range(0, 8), *range(16, 20), *range(24, 28)] == first
    assert [*range(8, 16), *range(20, 24), *range(28, 32)] == second


def test_gate_and_up_are_cut_each_by_rows() -> None:
    full = torch.arange(48.0)[:, None].expand(48, 16)
    first, _ = (part[:, 0].tolist() for part in parts("mlp.gate_up.weight", full))
    assert [*range(0, 12), *range(24, 36)] == first


@pytest.mark.parametrize("name", ["attn.out.weight", "mlp.down.weight"])
def test_row_parallel_weights_are_cut_along_the_inner_dimension(name: str) -> None:
    full = torch.randn(whole_shape(name, MODEL))
    assert torch.equal(full, torch.cat(parts(name, full), dim=1))


def test_the_head_is_cut_by_vocabulary() -> None:
    full = torch.randn(32, 16)
    assert torch.equal(full, torch.cat(parts("head.matmul.weight", full)))


def test_norms_and_embedding_are_whole() -> None:
    for name in ("attn.norm.weight", "embed.weight"):
        full = torch.randn(whole_shape(name, MODEL))
        assert all(torch.equal(full, part) for part in parts(name, full))


def test_random_weights_are_equal_wherever_they_are_made() -> None:
    one, other = (RandomWeights(MODEL, torch.device("cpu"), seed=3) for _ in range(2))
    assert torch.equal(one("attn.qkv.weight", 1), other("attn.qkv.weight", 1))
    assert not torch.equal(one("attn.qkv.weight", 0), one("attn.qkv.weight", 1))


def test_random_norm_weights_lie_near_one() -> None:
    weight = RandomWeights(MODEL, torch.device("cpu"))("attn.norm.weight", 0)
    assert 0.8 < weight.mean() < 1.2 and weight.std() > 0.02


def test_an_unknown_weight_is_named() -> None:
    with pytest.raises(ProgramError, match="'mlp.router.weight' belongs to no layer"):
        whole_shape("mlp.router.weight", MODEL)


def test_weights_that_write_to_the_residual_stream_are_scaled_and_no_others() -> None:
    whole, small = (
        RandomWeights(MODEL, torch.device("cpu"), residual_scale=scale) for scale in (1.0, 0.25)
    )

    assert torch.equal(whole("mlp.down.weight", 0) * 0.25, small("mlp.down.weight", 0))
    assert torch.equal(whole("mlp.gate_up.weight", 0), small("mlp.gate_up.weight", 0))


@pytest.mark.parametrize(("residual_scale", "stay_apart"), [(RESIDUAL_SCALE, True), (1.0, False)])
def test_tokens_of_a_stage_repeated_on_its_own_output(
    residual_scale: float, stay_apart: bool
) -> None:
    model = replace(MODEL, hidden_size=256, intermediate_size=512, head_dim=64)
    steps = prefill_steps((1,), 32, 32)
    program = compile_step(
        model, tensor_pipeline(model, pipeline_parallel=2), steps[0], KernelChoice()
    ).programs[1]
    device = torch.device("cpu")
    weights = RandomWeights(model, device, residual_scale=residual_scale)
    slots = slots_of([program])
    memory = allocate(slots, device, model_fill(model, weights, program, device))
    engine, actions = Engine(1, memory, ReplacedPeers()), actions_of(program)

    for _ in range(100):
        engine.run(actions)

    received = next(slot for slot in slots.values() if slot.buffer.name == "act.in")
    alike = torch.corrcoef(memory.tensor(received.buffer, received.layer, 0).float()).mean()
    assert stay_apart == (float(alike) < 0.2)

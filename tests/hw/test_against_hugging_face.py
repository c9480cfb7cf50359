"""Outputs of every placement equal Hugging Face's Llama with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from layerwise.hw.engine.steps import Outputs, run_steps
from layerwise.hw.engine.weights import GivenWeights
from layerwise.hw.ranks.local import LocalRanks, local_ranks
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.placement import Placement, layer_wise, tensor_pipeline
from layerwise.sim.plan.validate import validate_run
from layerwise.sim.plan.workload import Step, decode_steps, prefill_steps, split_evenly

BATCH, PROMPT, DECODE_STEPS, VOCAB = 4, 6, 3, 96
TOLERANCE = 1e-5
PLACEMENTS = ["tp1", "tp2", "pp2", "tp2-pp2", "layer-wise-2", "layer-wise-4", "pp2-dp2"]


def spec(num_key_value_heads: int, vocab_size: int) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        num_layers=4,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=num_key_value_heads,
        head_dim=16,
        vocab_size=vocab_size,
        dtype="float32",
    )


def place(name: str, model: ModelSpec) -> Placement:
    match name:
        case "tp1":
            return tensor_pipeline(model)
        case "tp2":
            return tensor_pipeline(model, tensor_parallel=2)
        case "pp2":
            return tensor_pipeline(model, pipeline_parallel=2)
        case "tp2-pp2":
            return tensor_pipeline(model, tensor_parallel=2, pipeline_parallel=2)
        case "pp2-dp2":
            return tensor_pipeline(model, pipeline_parallel=2, data_parallel=2)
        case _:
            return layer_wise(model, num_gpus=int(name[-1]), on_chip_bytes=50 * 2**20)


@cache
def reference(num_key_value_heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=num_key_value_heads,
        vocab_size=VOCAB,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    return model


def weights_of(model: LlamaForCausalLM) -> GivenWeights:
    found: dict[tuple[str, int], Tensor] = {
        ("embed.weight", -1): model.model.embed_tokens.weight,
        ("head.norm.weight", -1): model.model.norm.weight,
        ("head.matmul.weight", -1): model.lm_head.weight,
    }
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        heads = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        found |= {
            ("attn.norm.weight", index): layer.input_layernorm.weight,
            ("attn.qkv.weight", index): torch.cat(heads),
            ("attn.out.weight", index): attention.o_proj.weight,
            ("mlp.norm.weight", index): layer.post_attention_layernorm.weight,
            ("mlp.gate_up.weight", index): torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            ("mlp.down.weight", index): mlp.down_proj.weight,
        }
    return GivenWeights({key: value.detach().clone() for key, value in found.items()})


@dataclass(frozen=True)
class Expected:
    """Per decoding position: logits, or hidden states where there is no head."""

    rows: list[Tensor]
    prefill: Tensor


@cache
def expected(num_key_value_heads: int, with_head: bool) -> Expected:
    """Feed back the greedy token, or without a head the last hidden state, without a cache."""
    model = reference(num_key_value_heads)
    fed = prompt(with_head)
    rows: list[Tensor] = []
    prefill = torch.empty(0)
    with torch.inference_mode():
        for index in range(DECODE_STEPS + 1):
            if with_head:
                logits = model(input_ids=fed).logits[:, -1]
                rows.append(logits)
                fed = torch.cat([fed, logits.argmax(-1, keepdim=True)], dim=1)
            else:
                hidden = headless(model, fed)
                rows.append(hidden[:, -1])
                fed = torch.cat([fed, hidden[:, -1:]], dim=1)
                prefill = hidden if index == 0 else prefill
    return Expected(rows, prefill)


def headless(model: LlamaForCausalLM, embeddings: Tensor) -> Tensor:
    """Hidden states before the final norm [sequences, tokens, hidden]."""
    norm = model.model.norm
    model.model.norm = torch.nn.Identity()
    try:
        return model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    finally:
        model.model.norm = norm


@cache
def prompt(with_head: bool) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if with_head:
        return torch.randint(0, VOCAB, (BATCH, PROMPT), generator=generator)
    return torch.randn((BATCH, PROMPT, 64), generator=generator)


def steps(sizes: tuple[int, ...], chunk: int) -> list[Step]:
    capacity = PROMPT + DECODE_STEPS
    prefill = prefill_steps(sizes, PROMPT, chunk, kv_capacity_tokens=capacity, gives_feedback=True)
    decode = decode_steps(sizes, PROMPT + 1, DECODE_STEPS, kv_capacity_tokens=capacity, primed=True)
    return [*prefill, *decode]


def sequences_of(
    replica: int, microbatch: int, data_parallel: int, sizes: tuple[int, ...]
) -> slice:
    start = replica * BATCH // data_parallel + sum(sizes[:microbatch])
    return slice(start, start + sizes[microbatch])


def inputs_of(
    run_steps_: list[Step], data_parallel: int, fed: Tensor
) -> dict[tuple[int, int, int], Tensor]:
    """The prompt, cut into chunks and microbatches; rows sequence by sequence."""
    inputs: dict[tuple[int, int, int], Tensor] = {}
    for index, step in enumerate(run_steps_):
        if step.takes_feedback:
            continue
        columns = slice(step.context_tokens - step.query_tokens, step.context_tokens)
        for replica in range(data_parallel):
            for microbatch in range(len(step.microbatch_sizes)):
                rows = sequences_of(replica, microbatch, data_parallel, step.microbatch_sizes)
                inputs[index, replica, microbatch] = fed[rows, columns].flatten(0, 1)
    return inputs


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[LocalRanks]:
    with local_ranks(2, "cpu") as ranks:
        yield ranks


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[LocalRanks]:
    with local_ranks(4, "cpu") as ranks:
        yield ranks


def run_placement(
    request: pytest.FixtureRequest, name: str, model: ModelSpec, microbatches: int, chunk: int
) -> tuple[list[Step], Placement, Outputs]:
    placement = place(name, model)
    sizes = split_evenly(BATCH // placement.data_parallel, microbatches)
    all_steps = steps(sizes, chunk)
    run = [compile_step(model, placement, step, KernelChoice()) for step in all_steps]
    validate_run(run)
    pools = {1: None, 2: "two_ranks", 4: "four_ranks"}
    pool = pools[placement.num_ranks]
    outputs = run_steps(
        run,
        model,
        weights_of(reference(model.num_key_value_heads)),
        inputs_of(all_steps, placement.data_parallel, prompt(bool(model.vocab_size))),
        ranks=request.getfixturevalue(pool) if pool else None,
    )
    return all_steps, placement, outputs


def assert_decoded(
    found: dict[tuple[int, int, int], Tensor],
    all_steps: list[Step],
    placement: Placement,
    rows: list[Tensor],
) -> None:
    first = len(all_steps) - len(rows)
    for index, expected_rows in enumerate(rows):
        sizes = all_steps[first + index].microbatch_sizes
        for replica in range(placement.data_parallel):
            for microbatch in range(len(sizes)):
                part = sequences_of(replica, microbatch, placement.data_parallel, sizes)
                torch.testing.assert_close(
                    found[first + index, replica, microbatch],
                    expected_rows[part],
                    atol=TOLERANCE,
                    rtol=TOLERANCE,
                )


@pytest.mark.parametrize("chunk", [PROMPT, 4])
@pytest.mark.parametrize("microbatches", [1, 2, 4])
@pytest.mark.parametrize("num_key_value_heads", [4, 2])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_hidden_states_without_a_head(
    request: pytest.FixtureRequest,
    name: str,
    num_key_value_heads: int,
    microbatches: int,
    chunk: int,
) -> None:
    # Two replicas of two sequences each make at most two microbatches.
    microbatches = min(microbatches, 2) if name == "pp2-dp2" else microbatches
    model = spec(num_key_value_heads, 0)
    all_steps, placement, outputs = run_placement(request, name, model, microbatches, chunk)
    assert_decoded(outputs.hidden, all_steps, placement, expected(num_key_value_heads, False).rows)


@pytest.mark.parametrize("chunk", [PROMPT, 4])
@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("num_key_value_heads", [4, 2])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_logits_and_greedy_tokens(
    request: pytest.FixtureRequest,
    name: str,
    num_key_value_heads: int,
    microbatches: int,
    chunk: int,
) -> None:
    model = spec(num_key_value_heads, VOCAB)
    all_steps, placement, outputs = run_placement(request, name, model, microbatches, chunk)
    logits = expected(num_key_value_heads, True).rows
    assert_decoded(outputs.logits, all_steps, placement, logits)
    assert_decoded(outputs.token_ids, all_steps, placement, [row.argmax(-1) for row in logits])


def test_every_position_of_a_prefill(request: pytest.FixtureRequest) -> None:
    model = spec(2, 0)
    placement = tensor_pipeline(model, pipeline_parallel=2)
    (step,) = prefill_steps((BATCH,), PROMPT, PROMPT)
    run = [compile_step(model, placement, step, KernelChoice())]
    outputs = run_steps(
        run,
        model,
        weights_of(reference(2)),
        inputs_of([step], 1, prompt(False)),
        ranks=request.getfixturevalue("two_ranks"),
    )
    torch.testing.assert_close(
        outputs.hidden[0, 0, 0],
        expected(2, False).prefill.flatten(0, 1),
        atol=TOLERANCE,
        rtol=TOLERANCE,
    )

"""The paper's two placements over sixteen processes of this machine: as Hugging Face's Llama."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from layerwise.hw.engine.steps import run_steps
from layerwise.hw.ranks.local import LocalRanks, local_ranks
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.placement import Placement, layer_wise, tensor_pipeline
from layerwise.sim.plan.workload import decode_steps, prefill_steps
from tests.hw.test_against_hugging_face import TOLERANCE, headless, weights_of

MODEL = ModelSpec(
    name="sixteen",
    num_layers=16,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=8,
    dtype="float32",
)
PROMPT, DECODE_STEPS, SEQUENCES, MICROBATCHES = 4, 2, 1, 4
SIZES = (SEQUENCES,) * MICROBATCHES
PLACEMENTS = {
    "TP=8 x PP=2": tensor_pipeline(MODEL, tensor_parallel=8, pipeline_parallel=2),
    "layer-wise": layer_wise(MODEL, num_gpus=16, on_chip_bytes=50 * 2**20),
}


@cache
def reference() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=32,
        rms_norm_eps=1e-5,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


@cache
def prompt() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((MICROBATCHES, PROMPT, 64), generator=generator)


@cache
def expected() -> list[Tensor]:
    """The last hidden state of each position from the prompt's last on, fed back without a cache."""
    fed, rows = prompt(), list[Tensor]()
    with torch.inference_mode():
        for _ in range(DECODE_STEPS + 1):
            rows.append(headless(reference(), fed)[:, -1])
            fed = torch.cat([fed, rows[-1][:, None]], dim=1)
    return rows


@pytest.fixture(scope="module")
def sixteen_ranks() -> Iterator[LocalRanks]:
    with local_ranks(16, "cpu") as ranks:
        yield ranks


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS.keys())
def test_sixteen_ranks_decode_what_one_process_does(
    sixteen_ranks: LocalRanks, placement: Placement
) -> None:
    capacity = PROMPT + DECODE_STEPS
    steps = [
        *prefill_steps(SIZES, PROMPT, PROMPT, kv_capacity_tokens=capacity, gives_feedback=True),
        *decode_steps(SIZES, PROMPT + 1, DECODE_STEPS, kv_capacity_tokens=capacity, primed=True),
    ]
    run = [compile_step(MODEL, placement, step, KernelChoice()) for step in steps]
    inputs = {(0, 0, m): prompt()[m] for m in range(MICROBATCHES)}
    outputs = run_steps(run, MODEL, weights_of(reference()), inputs, ranks=sixteen_ranks)
    assert 16 == placement.num_ranks
    for index, rows in enumerate(expected()):
        for microbatch in range(MICROBATCHES):
            torch.testing.assert_close(
                outputs.hidden[index, 0, microbatch],
                rows[microbatch][None],
                atol=TOLERANCE,
                rtol=TOLERANCE,
            )

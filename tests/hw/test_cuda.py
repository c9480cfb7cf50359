"""On a GPU, in bf16, with the fused kernels: the engine's outputs stay near the CPU's in fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hw.steps import run_steps
from hw.weights import RandomWeights
from sim.plan.compile import KernelChoice, compile_step
from sim.plan.model import ModelSpec
from sim.plan.ops import AttentionKernel
from sim.plan.placement import tensor_pipeline
from sim.plan.workload import decode_steps, prefill_steps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

MODEL = ModelSpec(
    name="small", num_layers=2, hidden_size=512, intermediate_size=1024, num_attention_heads=4,
    num_key_value_heads=2, head_dim=128, dtype="bfloat16",
)  # fmt: skip
PROMPT = 96


@pytest.mark.parametrize("decode", ["cudnn", "flash", "split_kv"])
def test_outputs_on_the_gpu_are_near_the_cpu(decode: AttentionKernel) -> None:
    source = RandomWeights(MODEL, torch.device("cpu"))
    inputs = {(0, 0, m): torch.randn(2 * PROMPT, 512, generator=torch.Generator().manual_seed(m))
              for m in range(2)}  # fmt: skip
    steps = [
        *prefill_steps((2, 2), PROMPT, 64, kv_capacity_tokens=PROMPT + 3, gives_feedback=True),
        *decode_steps((2, 2), PROMPT + 1, 3, kv_capacity_tokens=PROMPT + 3, primed=True),
    ]
    inputs = {(0, 0, m): value.view(2, PROMPT, 512)[:, :64].reshape(-1, 512)
              for (_, _, m), value in inputs.items()} | {
        (1, 0, m): value.view(2, PROMPT, 512)[:, 64:].reshape(-1, 512)
        for (_, _, m), value in inputs.items()
    }  # fmt: skip

    def run(model: ModelSpec, kernels: KernelChoice, device: str) -> torch.Tensor:
        placement = tensor_pipeline(model)
        compiled = [compile_step(model, placement, step, kernels) for step in steps]
        outputs = run_steps(compiled, model, source, inputs, device=device)
        return outputs.hidden[len(steps) - 1, 0, 1].float()

    on_cpu = run(replace(MODEL, dtype="float32"), KernelChoice(), "cpu")
    on_gpu = run(
        MODEL,
        KernelChoice(decode_attention=decode, prefill_attention="cudnn",
                     chunked_prefill_attention="flash"),
        "cuda",
    )  # fmt: skip
    assert float((on_gpu - on_cpu).norm() / on_cpu.norm()) < 2e-2

"""On a GPU, in bf16, with the fused kernels: near what the CPU computes in wider numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from layerwise.hw.engine.collectives import ReplacedPeers
from layerwise.hw.engine.contexts import DeviceContexts
from layerwise.hw.engine.execute import Engine
from layerwise.hw.engine.graphs import capture
from layerwise.hw.engine.memory import DeviceMemory, allocate, random_fill, slots_of
from layerwise.hw.engine.schedule import actions_of
from layerwise.hw.engine.steps import run_steps
from layerwise.hw.engine.weights import RandomWeights
from layerwise.hw.kernels import dispatch as kernels
from layerwise.sim.plan.compile import KernelChoice, compile_step, compile_steps
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.ops import AttentionKernel
from layerwise.sim.plan.placement import tensor_pipeline
from layerwise.sim.plan.program import Program
from layerwise.sim.plan.workload import decode_steps, prefill_steps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

MODEL = ModelSpec(
    name="small",
    num_layers=2,
    hidden_size=512,
    intermediate_size=1024,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=128,
    dtype="bfloat16",
)
PROMPT = 96


@pytest.mark.parametrize("decode", ["cudnn", "flash", "split_kv"])
def test_outputs_on_the_gpu_are_near_the_cpu(decode: AttentionKernel) -> None:
    source = RandomWeights(MODEL, torch.device("cpu"))
    inputs = {
        (0, 0, m): torch.randn(2 * PROMPT, 512, generator=torch.Generator().manual_seed(m))
        for m in range(2)
    }
    steps = [
        *prefill_steps((2, 2), PROMPT, 64, kv_capacity_tokens=PROMPT + 3, gives_feedback=True),
        *decode_steps((2, 2), PROMPT + 1, 3, kv_capacity_tokens=PROMPT + 3, primed=True),
    ]
    inputs = {
        (0, 0, m): value.view(2, PROMPT, 512)[:, :64].reshape(-1, 512)
        for (_, _, m), value in inputs.items()
    } | {
        (1, 0, m): value.view(2, PROMPT, 512)[:, 64:].reshape(-1, 512)
        for (_, _, m), value in inputs.items()
    }

    def run(model: ModelSpec, kernels: KernelChoice, device: str) -> torch.Tensor:
        placement = tensor_pipeline(model)
        compiled = [compile_step(model, placement, step, kernels) for step in steps]
        outputs = run_steps(compiled, model, source, inputs, device=device)
        return outputs.hidden[len(steps) - 1, 0, 1].float()

    on_cpu = run(replace(MODEL, dtype="float32"), KernelChoice(), "cpu")
    on_gpu = run(
        MODEL,
        KernelChoice(
            decode_attention=decode, prefill_attention="cudnn", chunked_prefill_attention="flash"
        ),
        "cuda",
    )
    assert float((on_gpu - on_cpu).norm() / on_cpu.norm()) < 2e-2


@pytest.mark.parametrize("rows", [1, 5, 8, 16])
@pytest.mark.parametrize("shape", [(192, 128), (1024, 1024), (1024, 4096), (4096, 16_384)])
def test_a_skinny_matmul_is_near_float64_every_time(rows: int, shape: tuple[int, int]) -> None:
    columns, inner = shape
    counters = torch.zeros(columns, dtype=torch.int32, device="cuda")
    for _ in range(50):
        source = torch.randn(rows, inner, device="cuda", dtype=torch.bfloat16)
        weight = torch.randn(columns, inner, device="cuda", dtype=torch.bfloat16)
        out = torch.full((rows, columns), torch.nan, device="cuda", dtype=torch.bfloat16)
        kernels.skinny_matmul(source, weight, out, counters)
        expected = source.double() @ weight.double().t()
        assert float((out.double() - expected).norm() / expected.norm()) < 4e-3
        assert 0 == int(counters.abs().sum())


@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
@pytest.mark.parametrize("context", [1, 63, 64, 65, 700, 4097])
def test_attention_reads_a_context_on_the_device(heads: tuple[int, int], context: int) -> None:
    query = torch.randn(3, heads[0], 128, device="cuda", dtype=torch.bfloat16)
    kv = torch.randn(2, 3, heads[1], 5000, 128, device="cuda", dtype=torch.bfloat16)
    # What lies beyond the context must not be read.
    kv[:, :, :, context:] = torch.nan
    out = torch.full((3, heads[0] * 128), torch.nan, device="cuda", dtype=torch.bfloat16)
    expected = torch.empty_like(out, dtype=torch.float64)
    on_device = torch.tensor([context], dtype=torch.int32, device="cuda")
    kernels.split_kv_attention(query, kv, on_device, out)
    kernels.split_kv_attention(query.double(), kv.double(), context, expected)
    assert float((out.double() - expected).norm() / expected.norm()) < 1e-2


def test_one_graph_serves_a_context_that_grows() -> None:
    choice = KernelChoice(decode_attention="split_kv", small_matmul="skinny")
    steps = decode_steps((2, 2), 60, 13, primed=True)[:-1]
    run = [s.programs[0] for s in compile_steps(MODEL, tensor_pipeline(MODEL), steps, choice)]
    stated, counted = _memory(run), _memory(run)
    for program in run:
        Engine(0, stated, ReplacedPeers()).run(actions_of(program))
    contexts = DeviceContexts(run[0], 60, 1, torch.device("cuda"))
    engine = Engine(0, counted, ReplacedPeers(), contexts=contexts)
    engine.run(actions_of(run[0]))  # compiles; the first replay writes the same again
    graph = capture(engine, [actions_of(run[0])])
    for buffer, fresh in zip(_lasting(counted, run), _lasting(_memory(run), run), strict=True):
        buffer.copy_(fresh)
    contexts.restart()
    for _ in run:
        graph.replay()
    for expected, found in zip(_lasting(stated, run), _lasting(counted, run), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)


def _memory(run: list[Program]) -> DeviceMemory:
    device = torch.device("cuda")
    return allocate(slots_of(run), device, random_fill(device, seed=5))


def _lasting(memory: DeviceMemory, run: list[Program]) -> list[torch.Tensor]:
    """KV caches, and the hidden states that one step hands to the next."""
    return [
        memory.tensor(slot.buffer, slot.layer, slot.microbatch)
        for slot in slots_of(run).values()
        if slot.buffer.kind == "kv" or slot.buffer.name == "act.in"
    ]

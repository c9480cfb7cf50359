"""The closed forms of `layerwise.sim.plan.demand` equal what torch counts on the real engine."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from layerwise.hw.engine.collectives import ReplacedPeers
from layerwise.hw.engine.execute import Engine
from layerwise.hw.engine.memory import allocate, random_fill, slots_of
from layerwise.hw.engine.schedule import actions_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.placement import tensor_pipeline
from layerwise.sim.plan.workload import Step, decode_steps, prefill_steps
from tests.hw.scenes import TINY

CPU = torch.device("cpu")


def upper_triangle_flops(op: ops.Op) -> int:
    """torch counts all (query, key) pairs of attention; the closed form those that are visible."""
    if not isinstance(op, ops.Attention):
        return 0
    hidden_pairs = op.query_tokens * (op.query_tokens - 1) // 2
    return 4 * op.sequences * op.num_heads * op.head_dim * hidden_pairs


@pytest.mark.parametrize("vocab_size", [0, 96])
@pytest.mark.parametrize("tensor_parallel", [1, 2])
@pytest.mark.parametrize(
    "step", [*decode_steps((2, 1), 7, 1), *prefill_steps((2,), 6, 6), prefill_steps((2,), 6, 4)[1]]
)
def test_flops_equal_torchs_count(step: Step, tensor_parallel: int, vocab_size: int) -> None:
    model = TINY.with_vocabulary(vocab_size)
    placement = tensor_pipeline(model, tensor_parallel=tensor_parallel)
    program = compile_step(model, placement, step, KernelChoice()).programs[0]
    memory = allocate(slots_of([program]), CPU, random_fill(CPU, vocab_size=vocab_size))
    with FlopCounterMode(display=False) as counter:
        Engine(0, memory, ReplacedPeers()).run(actions_of(program))
    placed_ops = list(program)
    expected = sum(demand_of(p.op).flops + upper_triangle_flops(p.op) for p in placed_ops)
    assert expected == counter.get_total_flops()

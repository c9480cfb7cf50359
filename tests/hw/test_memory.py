"""Allocation: everything is counted before anything is allocated."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from layerwise.hw.engine.memory import allocate, budget_of, random_fill, slots_of
from layerwise.hw.errors import DoesNotFitError
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.errors import ProgramError
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.placement import tensor_pipeline
from layerwise.sim.plan.program import Program
from layerwise.sim.plan.workload import decode_steps
from tests.hw.scenes import TINY

CPU = torch.device("cpu")


def programs(model: ModelSpec = TINY, capacity: int = 8) -> list[Program]:
    placement = tensor_pipeline(model)
    steps = decode_steps((2, 2), 6, 2, kv_capacity_tokens=capacity)
    return [compile_step(model, placement, step, KernelChoice()).programs[0] for step in steps]


def test_weights_and_kv_are_what_the_closed_forms_say() -> None:
    budget = budget_of(slots_of(programs()))
    assert TINY.num_layers * TINY.layer_weight_bytes == budget["weight"]
    assert TINY.num_layers * TINY.kv_bytes_per_token_per_layer * 4 * 8 == budget["kv"]


def test_steps_share_weights_and_kv() -> None:
    one, two = (budget_of(slots_of(programs()[:count])) for count in (1, 2))
    assert (one["weight"], one["kv"]) == (two["weight"], two["kv"])


def test_sums_over_peer_memory_are_counted_with_their_pairs() -> None:
    placement = tensor_pipeline(TINY, tensor_parallel=2)
    step = decode_steps((2, 2), 6, 1, kv_capacity_tokens=8)[0]
    nccl, one_shot = (
        budget_of(slots_of([compile_step(TINY, placement, step, kernels).programs[0]]))
        for kernels in (KernelChoice(), KernelChoice(all_reduce="one_shot"))
    )
    # Two outputs of two tokens are summed: each has two more tensors.
    extra = 2 * 2 * (2 * TINY.hidden_size * 4)
    assert {**nccl, "activation": nccl["activation"] + extra} == one_shot


def test_what_does_not_fit_is_refused_with_its_budget() -> None:
    slots = slots_of(programs())
    with pytest.raises(
        DoesNotFitError, match="rank 3 needs .* GiB .*weight .*has 0.00 GiB"
    ) as info:
        allocate(slots, CPU, random_fill(CPU), subject="rank 3", free_bytes=10_000)
    assert budget_of(slots) == info.value.budget


def test_nothing_is_left_at_zero() -> None:
    slots = slots_of(programs())
    memory = allocate(slots, CPU, random_fill(CPU))
    tensors = [memory.tensor(s.buffer, s.layer, s.microbatch) for s in slots.values()]
    assert all(tensor.float().std() > 0.01 for tensor in tensors)


def test_tables_are_made_once() -> None:
    memory = allocate(slots_of(programs()), CPU, random_fill(CPU))
    assert memory.rotary_tables(1e4, 16, 8) is memory.rotary_tables(1e4, 16, 8)
    assert memory.lower_right_mask(2, 8) is memory.lower_right_mask(2, 8)


def test_tensors_go_with_their_last_use() -> None:
    memory = allocate(slots_of(programs()), CPU, random_fill(CPU))
    memory.rotary_tables(1e4, 16, 8)
    seen = weakref.ref(memory)
    gc.disable()
    try:
        del memory
        assert seen() is None
    finally:
        gc.enable()


def test_token_ids_are_within_the_vocabulary() -> None:
    slots = slots_of(programs(TINY.with_vocabulary(5)))
    memory = allocate(slots, CPU, random_fill(CPU, vocab_size=5))
    ids = [
        memory.tensor(s.buffer, s.layer, s.microbatch)
        for s in slots.values()
        if s.buffer.kind == "tokens"
    ]
    assert ids and all(0 <= tensor.min() and tensor.max() < 5 for tensor in ids)


def test_two_cache_sizes_in_one_run_are_refused() -> None:
    with pytest.raises(ProgramError, match="kv_capacity_tokens"):
        slots_of([*programs(capacity=8), *programs(capacity=9)])

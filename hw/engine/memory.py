"""The tensors behind a rank's buffers: counted first, then allocated and filled.

Weights and KV live as long as the engine; everything else is keyed by its shape as well, so that
steps of different sizes (the chunks of a prefill, then decode) keep their scratch apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from layerwise.hw.engine.weights import WEIGHT_STD, WeightSource, shard
from layerwise.hw.errors import DoesNotFitError
from layerwise.sim.plan import ops
from layerwise.sim.plan.errors import ProgramError
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.ops import Buffer, BufferKey
from layerwise.sim.plan.program import Program, Segment, buffers_of

TensorKey = tuple[BufferKey, tuple[int, ...]]
Fill = Callable[["Slot"], Tensor]

# What is summed over peer memory has a pair of tensors there, and one until it is first summed.
NUM_PEER_TENSORS = 3
# cuBLAS and cuDNN workspaces, loaded modules, a graph's own pool.
CUDA_RESERVE_BYTES = 1 * 2**30
# Forty times an L2.
RESERVED_BLOCK_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor to allocate: a buffer for one layer and microbatch (-1: shared by all).

    `num_tensors`: how many of its size lie in memory at once, at most.
    """

    buffer: Buffer
    layer: int
    microbatch: int
    num_tensors: int = 1


def tensor_key(buffer: Buffer, layer: int, microbatch: int) -> TensorKey:
    """What two ops must agree on to mean the same tensor."""
    return buffer.key(layer, microbatch), buffer.shape


def one_shot_reduces(segment: Segment) -> tuple[ops.AllReduce, ...]:
    """The all-reduces of a segment that run over peer memory."""
    reduces = (op for op in segment.ops if isinstance(op, ops.AllReduce))
    return tuple(op for op in reduces if op.algorithm == "one_shot")


def slots_of(programs: Iterable[Program]) -> dict[TensorKey, Slot]:
    """Every tensor that a rank's programs touch, once.

    Raises ProgramError when a weight or a KV cache has two shapes: both outlive a step.
    """
    slots: dict[TensorKey, Slot] = {}
    lasting: dict[BufferKey, Buffer] = {}
    buffers: dict[int, tuple[Buffer, ...]] = {}
    parts = [part for program in programs for part in program.parts]
    segments = {id(part.segment): part.segment for part in parts}
    shared = {op.buffer for s in segments.values() for op in one_shot_reduces(s)}
    for part in parts:
        found = buffers.setdefault(id(part.segment), ())
        if not found:
            found = tuple(dict.fromkeys(b for op in part.segment.ops for b in buffers_of(op)))
            buffers[id(part.segment)] = found
        for buffer in found:
            key = tensor_key(buffer, part.layer, part.microbatch)
            if key in slots:
                continue
            num_tensors = NUM_PEER_TENSORS if buffer in shared else 1
            slots[key] = Slot(buffer, key[0][1], key[0][2], num_tensors)
            if buffer.kind in ("weight", "kv") and lasting.setdefault(key[0], buffer) != buffer:
                raise ProgramError(
                    f"{buffer.name} has shape {buffer.shape} in one step and "
                    f"{lasting[key[0]].shape} in another; give all steps one kv_capacity_tokens"
                )
    return slots


def budget_of(slots: Mapping[TensorKey, Slot]) -> dict[str, int]:
    """Bytes per kind of buffer."""
    budget: Counter[str] = Counter()
    for slot in slots.values():
        budget[slot.buffer.kind] += slot.buffer.num_bytes * slot.num_tensors
    return dict(budget)


def free_bytes_of(device: torch.device) -> int:
    """Memory that can be allocated on a device now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached - CUDA_RESERVE_BYTES
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable: free memory is unknown here")


def reserve_block(device: torch.device) -> None:
    """Have torch's allocator hold one large block, from which small models are then carved.

    Taken while the driver still has memory in one piece. A layer that fills most of the L2 repeats
    within 1 % in it, and within 9 % in pieces collected from all over (`traces/placement`). What
    does not fit beside it is given back by the allocator itself.
    """
    if device.type == "cuda" and torch.cuda.memory_reserved(device) < RESERVED_BLOCK_BYTES:
        free, _ = torch.cuda.mem_get_info(device)
        if free > 2 * RESERVED_BLOCK_BYTES:
            torch.empty(RESERVED_BLOCK_BYTES, dtype=torch.uint8, device=device)


def check_fits(
    slots: Mapping[TensorKey, Slot], device: torch.device, subject: str, free_bytes: int | None
) -> None:
    """Raises DoesNotFitError, with the budget, before anything is allocated."""
    free = free_bytes_of(device) if free_bytes is None else free_bytes
    budget = budget_of(slots)
    if sum(budget.values()) > free:
        raise DoesNotFitError(subject, str(device), free, budget)


class DeviceMemory:
    """A rank's tensors by buffer, layer and microbatch, and the tables derived from shapes."""

    def __init__(self, device: torch.device, tensors: dict[TensorKey, Tensor]) -> None:
        self.device = device
        self._tensors = tensors
        # Tables are made when first used: in a warm-up, before any capture. They are kept by hand:
        # functools.cache on a method refers back to the tensors, which then outlive their last use.
        self._tables: dict[tuple[float, int, int], tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._counters = torch.zeros(0, dtype=torch.int32)

    def tensor(self, buffer: Buffer, layer: int, microbatch: int) -> Tensor:
        """The tensor of a buffer; `buffer.shape` is its shape."""
        return self._tensors[tensor_key(buffer, layer, microbatch)]

    def rebind(self, buffer: Buffer, layer: int, microbatch: int, tensor: Tensor) -> None:
        """Put another tensor of the same shape behind a buffer, instead of copying into it."""
        self._tensors[tensor_key(buffer, layer, microbatch)] = tensor

    def rotary_tables(self, theta: float, head_dim: int, capacity: int) -> tuple[Tensor, Tensor]:
        """cos and sin [capacity, head_dim], float32, both halves equal; made once.

        Source: Hugging Face `LlamaRotaryEmbedding`, default scaling.
        """
        key = (theta, head_dim, capacity)
        if key not in self._tables:
            self._tables[key] = self._rotary_tables(*key)
        return self._tables[key]

    def counters(self, count: int) -> Tensor:
        """At least `count` int32 zeros [count] for kernels that leave them at zero again."""
        if len(self._counters) < count:
            self._counters = torch.zeros(count, dtype=torch.int32, device=self.device)
        return self._counters

    def lower_right_mask(self, query_tokens: int, context_tokens: int) -> Tensor:
        """True where a query may look [query_tokens, context_tokens]; the last sees everything."""
        key = (query_tokens, context_tokens)
        if key not in self._masks:
            self._masks[key] = self._lower_right_mask(*key)
        return self._masks[key]

    def _rotary_tables(self, theta: float, head_dim: int, capacity: int) -> tuple[Tensor, Tensor]:
        pairs = torch.arange(0, head_dim, 2, dtype=torch.int64).to(self.device, torch.float32)
        frequencies = 1.0 / (theta ** (pairs / head_dim))
        positions = torch.arange(capacity, device=self.device, dtype=torch.float32)
        angles = torch.outer(positions, frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def _lower_right_mask(self, query_tokens: int, context_tokens: int) -> Tensor:
        mask = torch.ones(query_tokens, context_tokens, dtype=torch.bool, device=self.device)
        return mask.tril(context_tokens - query_tokens)


def allocate(
    slots: Mapping[TensorKey, Slot],
    device: torch.device,
    fill: Fill,
    *,
    subject: str = "the program",
    free_bytes: int | None = None,
) -> DeviceMemory:
    """Allocate and fill every slot. `free_bytes` overrides what the device says is free.

    Raises DoesNotFitError before allocating anything.
    """
    check_fits(slots, device, subject, free_bytes)
    return DeviceMemory(device, {key: fill(slot) for key, slot in slots.items()})


def random_fill(device: torch.device, seed: int = 0, vocab_size: int = 2) -> Fill:
    """Random values of each buffer's own shape; token ids within the vocabulary.

    Nothing is left at zero: multiplying zeros draws less power and clocks higher.
    """
    generator = torch.Generator(device)
    generator.manual_seed(seed)

    def fill(slot: Slot) -> Tensor:
        buffer = slot.buffer
        tensor = torch.empty(buffer.shape, dtype=getattr(torch, buffer.dtype), device=device)
        if buffer.dtype == "int64":
            return tensor.random_(0, max(vocab_size, 1), generator=generator)
        std = WEIGHT_STD if buffer.kind == "weight" else 1.0
        return tensor.normal_(0.0, std, generator=generator)

    return fill


def model_fill(
    model: ModelSpec, weights: WeightSource, program: Program, device: torch.device, seed: int = 0
) -> Fill:
    """Weights from `weights`, cut for this rank; random values elsewhere."""
    elsewhere = random_fill(device, seed, model.vocab_size)

    def fill(slot: Slot) -> Tensor:
        buffer = slot.buffer
        if buffer.kind != "weight":
            return elsewhere(slot)
        whole = weights(buffer.name, slot.layer)
        own = shard(buffer.name, whole, model, program.tensor_rank, program.tensor_parallel)
        if tuple(own.shape) != buffer.shape:
            raise ProgramError(
                f"{buffer.name} of layer {slot.layer} has shape {tuple(own.shape)} and the "
                f"program expects {buffer.shape}; give the whole tensor of this model"
            )
        return own.to(device, getattr(torch, buffer.dtype))

    return fill

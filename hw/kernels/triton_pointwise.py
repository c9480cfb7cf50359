"""The Triton side of `layerwise.hw.kernels.dispatch`' pointwise work and reads, for bfloat16 on CUDA.

All arithmetic is in float32; tensors are rounded where the plain path rounds them. Offsets that
count rows of a cache or of activations are 64-bit: a layer's KV cache passes 2**31 elements.
Values that change from step to step are not specialised, so that a new one compiles nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

READ_WORDS = 4096


@triton.jit
def _norm_kernel(
    source, weight, out, delta, hidden, epsilon, HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * hidden
    columns = tl.arange(0, BLOCK)
    mask = columns < hidden
    scale = tl.load(weight + columns, mask=mask, other=0.0)
    stored = tl.load(source + row + columns, mask=mask, other=0.0)
    if HAS_DELTA:
        added = tl.load(delta + row + columns, mask=mask, other=0.0)
        stored = (stored.to(tl.float32) + added.to(tl.float32)).to(stored.dtype)
        tl.store(source + row + columns, stored, mask=mask)
    wide = stored.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, axis=0) / hidden + epsilon)
    rounded = (wide * inverse).to(stored.dtype).to(tl.float32)
    result = rounded * scale.to(tl.float32)
    tl.store(out + row + columns, result.to(out.dtype.element_ty), mask=mask)


def norm(source: Tensor, weight: Tensor, out: Tensor, epsilon: float, delta: Tensor | None) -> None:
    """See `layerwise.hw.kernels.dispatch.norm`; one program per token, all tensors contiguous."""
    tokens, hidden = source.shape
    block = triton.next_power_of_2(hidden)
    _norm_kernel[(tokens,)](
        source,
        weight,
        out,
        source if delta is None else delta,
        hidden,
        epsilon,
        HAS_DELTA=delta is not None,
        BLOCK=block,
        num_warps=min(16, max(4, block // 512)),
    )


@triton.jit(do_not_specialize=["context_tokens"])
def _rotary_write_kernel(
    qkv,
    kv,
    cos,
    sin,
    context_tokens,
    query_tokens,
    kv_stride_plane,
    kv_stride_sequence,
    kv_stride_head,
    NUM_HEADS: tl.constexpr,
    NUM_KEY_VALUE_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,
    ON_DEVICE: tl.constexpr,
):
    HALF: tl.constexpr = HEAD_DIM // 2
    row = tl.program_id(0)
    sequence = (row // query_tokens).to(tl.int64)
    if ON_DEVICE:
        context_tokens = tl.load(context_tokens)
    position = (context_tokens - query_tokens + row % query_tokens).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    lane = tl.arange(0, HALF)
    is_query = head < NUM_HEADS
    is_value = head >= NUM_HEADS + NUM_KEY_VALUE_HEADS
    valid = head < NUM_HEADS + 2 * NUM_KEY_VALUE_HEADS

    width = (NUM_HEADS + 2 * NUM_KEY_VALUE_HEADS) * HEAD_DIM
    low_pointer = qkv + row.to(tl.int64) * width + head[:, None] * HEAD_DIM + lane[None, :]
    low = tl.load(low_pointer, mask=valid[:, None], other=0.0).to(tl.float32)
    high = tl.load(low_pointer + HALF, mask=valid[:, None], other=0.0).to(tl.float32)
    # Both halves of cos and sin are equal by convention: the lower one serves both.
    cosine = tl.load(cos + position * HEAD_DIM + lane)[None, :].to(tl.float32)
    sine = tl.load(sin + position * HEAD_DIM + lane)[None, :].to(tl.float32)
    cosine = tl.where(is_value[:, None], 1.0, cosine)
    sine = tl.where(is_value[:, None], 0.0, sine)
    new_low = (low * cosine - high * sine).to(qkv.dtype.element_ty)
    new_high = (high * cosine + low * sine).to(qkv.dtype.element_ty)

    tl.store(low_pointer, new_low, mask=is_query[:, None])
    tl.store(low_pointer + HALF, new_high, mask=is_query[:, None])
    cache_head = tl.where(is_value, head - NUM_KEY_VALUE_HEADS, head) - NUM_HEADS
    cache = is_value.to(tl.int64) * kv_stride_plane + cache_head.to(tl.int64) * kv_stride_head
    cache_pointer = kv + sequence * kv_stride_sequence + cache[:, None]
    cache_pointer += position * HEAD_DIM + lane[None, :]
    in_cache = (valid & (head >= NUM_HEADS))[:, None]
    tl.store(cache_pointer, new_low, mask=in_cache)
    tl.store(cache_pointer + HALF, new_high, mask=in_cache)


def rotary_write(
    qkv: Tensor,
    kv: Tensor,
    cos: Tensor,
    sin: Tensor,
    context_tokens: int | Tensor,
    num_heads: int,
    num_key_value_heads: int,
) -> None:
    """See `layerwise.hw.kernels.dispatch.rotary_write`; one program per token and eight heads."""
    sequences, head_dim = kv.shape[1], kv.shape[4]
    heads = 8
    grid = (qkv.shape[0], triton.cdiv(num_heads + 2 * num_key_value_heads, heads))
    _rotary_write_kernel[grid](
        qkv,
        kv,
        cos,
        sin,
        context_tokens,
        qkv.shape[0] // sequences,
        kv.stride(0),
        kv.stride(1),
        kv.stride(2),
        NUM_HEADS=num_heads,
        NUM_KEY_VALUE_HEADS=num_key_value_heads,
        HEAD_DIM=head_dim,
        HEADS=heads,
        ON_DEVICE=isinstance(context_tokens, Tensor),
        num_warps=2,
    )


@triton.jit(do_not_specialize=["growth_tokens"])
def _gated_activation_kernel(
    gate_up, out, context, growth_tokens, intermediate, BLOCK: tl.constexpr, GROWS: tl.constexpr
):
    if GROWS:  # noqa: SIM102
        # Whoever reads it came before in the stream, or comes in the next step.
        if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
            tl.store(context, tl.load(context) + growth_tokens)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < intermediate
    pointer = gate_up + row * 2 * intermediate + columns
    gate = tl.load(pointer, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(pointer + intermediate, mask=mask, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    tl.store(out + row * intermediate + columns, result.to(out.dtype.element_ty), mask=mask)


def gated_activation(
    gate_up: Tensor, out: Tensor, context: Tensor | None = None, growth_tokens: int = 0
) -> None:
    """See `layerwise.hw.kernels.dispatch.gated_activation`; both tensors contiguous."""
    tokens, intermediate = out.shape
    block = 1024
    grid = (tokens, triton.cdiv(intermediate, block))
    _gated_activation_kernel[grid](
        gate_up,
        out,
        gate_up if context is None else context,
        growth_tokens,
        intermediate,
        BLOCK=block,
        GROWS=context is not None,
        num_warps=4,
    )


@triton.jit
def _residual_add_kernel(source, delta, out, elements, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < elements
    left = tl.load(source + index, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(delta + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + index, (left + right).to(out.dtype.element_ty), mask=mask)


def residual_add(source: Tensor, delta: Tensor, out: Tensor) -> None:
    """See `layerwise.hw.kernels.dispatch.residual_add`; all tensors contiguous."""
    block = 1024
    grid = (triton.cdiv(source.numel(), block),)
    _residual_add_kernel[grid](source, delta, out, source.numel(), BLOCK=block, num_warps=4)


@triton.jit
def _read_kernel(words, sink, num_words, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.int32)
    num_tiles = num_words // BLOCK
    pointer = words + tl.program_id(0).to(tl.int64) * BLOCK
    for _ in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        total += tl.load(pointer + lane)
        pointer += tl.num_programs(0) * BLOCK
    # The rest, less than one tile, falls to the program that is next in turn.
    if tl.program_id(0) == num_tiles % tl.num_programs(0):
        index = num_tiles * BLOCK + lane
        total += tl.load(words + index, mask=index < num_words, other=0)
    tl.store(sink + tl.program_id(0), tl.sum(total, axis=0))


def read_bandwidth_kernel(buffer: Tensor, sink: Tensor) -> None:
    """See `layerwise.hw.kernels.dispatch.read_bandwidth_kernel`; a persistent grid of `sink.numel()` programs."""
    words = buffer.view(-1).view(torch.int32)
    _read_kernel[(sink.numel(),)](words, sink, words.numel(), BLOCK=READ_WORDS, num_warps=8)

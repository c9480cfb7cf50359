"""Decode attention in Triton: the KV cache streamed in splits, then combined. bfloat16 on CUDA.

Arithmetic is in float32. A KV cache passes 2**31 elements, so offsets into it are 64-bit. The
context changes from step to step and is not specialised: a new one compiles nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from layerwise.hw.kernels.device import num_sms_of

LOG2_E = 1.4426950408889634
# Finite, so that a row that has seen no token yet gives exp2(0) and never inf - inf.
LOWEST = tl.constexpr(-1.0e30)
# Of 5 to 12 launches tried at each of 63 shapes on an H100 (batch 1 to 128, 2 to 32 key-value heads,
# groups of 1 to 8, context 128 to 32,768), tiles of 64 with 4 warps and 3 of them in flight are
# within 2 % of the best in the median, 10 % at worst, and within 10 % of cuDNN, or ahead of it.
BLOCK, NUM_WARPS, NUM_STAGES = 64, 4, 3
SHORT_CONTEXT, SHORT_GROUP_BLOCK, SHORT_STAGES = 128, 128, 2
WELL_FILLED = 0.8
MIN_TILES_PER_SPLIT = 2


def choose_num_splits(pairs: int, num_tiles: int, num_sms: int) -> int:
    """Splits of the context: one program on each SM, or two where one would leave many idle.

    pairs: sequences times key-value heads; num_tiles: tiles of the context.
    """
    splits = num_sms // pairs
    if pairs * splits < WELL_FILLED * num_sms:
        splits = 2 * num_sms // pairs
    return max(1, min(splits, num_tiles // MIN_TILES_PER_SPLIT))


@triton.jit
def _vector_tile(
    query,
    key,
    value,
    first,
    lane,
    context_tokens,
    highest,
    total,
    weighted,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Take one tile into a softmax that runs per token row, so that no warp waits for another."""
    token = first + tl.arange(0, BLOCK)
    offset = token.to(tl.int64)[:, None] * HEAD_DIM + lane[None, :]
    if MASKED:
        seen = token < context_tokens
        keys = tl.load(key + offset, mask=seen[:, None], other=0.0)
        values = tl.load(value + offset, mask=seen[:, None], other=0.0)
        score = tl.sum(keys.to(tl.float32) * query[None, :], axis=1)
        score = tl.where(seen, score, float("-inf"))
    else:
        keys = tl.load(key + offset)
        values = tl.load(value + offset)
        score = tl.sum(keys.to(tl.float32) * query[None, :], axis=1)
    new_highest = tl.maximum(highest, score)
    decay = tl.exp2(highest - new_highest)
    share = tl.exp2(score - new_highest)
    weighted = weighted * decay[:, None] + share[:, None] * values.to(tl.float32)
    return new_highest, total * decay + share, weighted


@triton.jit(do_not_specialize=["context_tokens", "num_splits", "num_heads"])
def _vector_attention_kernel(
    query,
    kv,
    out,
    partial,
    highs,
    totals,
    context_tokens,
    scale,
    num_splits,
    num_heads,
    query_stride_sequence,
    query_stride_head,
    kv_stride_plane,
    kv_stride_sequence,
    kv_stride_head,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    SINGLE: tl.constexpr,
    ON_DEVICE: tl.constexpr,
):
    """One key-value head per query head: memory-bound enough for the CUDA cores."""
    if ON_DEVICE:
        context_tokens = tl.load(context_tokens)
    pair, split = tl.program_id(0), tl.program_id(1)
    sequence, head = (pair // num_heads).to(tl.int64), (pair % num_heads).to(tl.int64)
    lane = tl.arange(0, HEAD_DIM)
    row = tl.load(query + sequence * query_stride_sequence + head * query_stride_head + lane)
    row = row.to(tl.float32) * scale
    key = kv + sequence * kv_stride_sequence + head * kv_stride_head
    value = key + kv_stride_plane
    num_tiles = tl.cdiv(context_tokens, BLOCK)
    begin, end = num_tiles * split // num_splits, num_tiles * (split + 1) // num_splits
    full = tl.minimum(end, context_tokens // BLOCK)

    highest = tl.full((BLOCK,), LOWEST, dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    weighted = tl.zeros((BLOCK, HEAD_DIM), dtype=tl.float32)
    for tile in tl.range(begin, full, num_stages=STAGES):
        highest, total, weighted = _vector_tile(
            row,
            key,
            value,
            tile * BLOCK,
            lane,
            context_tokens,
            highest,
            total,
            weighted,
            False,
            BLOCK,
            HEAD_DIM,
        )
    if full < end:
        highest, total, weighted = _vector_tile(
            row,
            key,
            value,
            full * BLOCK,
            lane,
            context_tokens,
            highest,
            total,
            weighted,
            True,
            BLOCK,
            HEAD_DIM,
        )

    top = tl.max(highest, axis=0)
    decay = tl.exp2(highest - top)
    mass = tl.sum(total * decay, axis=0)
    vector = tl.sum(weighted * decay[:, None], axis=0)
    if SINGLE:
        result = (vector / mass).to(out.dtype.element_ty)
        tl.store(out + pair.to(tl.int64) * HEAD_DIM + lane, result)
    else:
        slot = pair.to(tl.int64) * num_splits + split
        tl.store(partial + slot * HEAD_DIM + lane, vector)
        tl.store(highs + slot, top)
        tl.store(totals + slot, mass)


@triton.jit
def _grouped_tile(
    query,
    key,
    value,
    first,
    lane,
    context_tokens,
    scale,
    highest,
    total,
    weighted,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Take one tile into the softmax of a padded group of query heads: [rows, BLOCK] scores."""
    token = first + tl.arange(0, BLOCK)
    offset = token.to(tl.int64)[:, None] * HEAD_DIM + lane[None, :]
    if MASKED:
        seen = token < context_tokens
        keys = tl.load(key + offset, mask=seen[:, None], other=0.0)
        values = tl.load(value + offset, mask=seen[:, None], other=0.0)
        score = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, float("-inf"))
    else:
        keys = tl.load(key + offset)
        values = tl.load(value + offset)
        score = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
    new_highest = tl.maximum(highest, tl.max(score, axis=1))
    decay = tl.exp2(highest - new_highest)
    share = tl.exp2(score - new_highest[:, None])
    weighted = weighted * decay[:, None]
    weighted += tl.dot(share.to(values.dtype), values, input_precision="ieee")
    return new_highest, total * decay + tl.sum(share, axis=1), weighted


@triton.jit(do_not_specialize=["context_tokens", "num_splits", "num_heads"])
def _grouped_attention_kernel(
    query,
    kv,
    out,
    partial,
    highs,
    totals,
    context_tokens,
    scale,
    num_splits,
    num_heads,
    query_stride_sequence,
    query_stride_head,
    kv_stride_plane,
    kv_stride_sequence,
    kv_stride_head,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    SINGLE: tl.constexpr,
    ON_DEVICE: tl.constexpr,
):
    """A group of query heads per key-value head: each tile is read once, for tensor cores."""
    if ON_DEVICE:
        context_tokens = tl.load(context_tokens)
    pair, split = tl.program_id(0), tl.program_id(1)
    sequence = (pair // (num_heads // GROUP)).to(tl.int64)
    kv_head = (pair % (num_heads // GROUP)).to(tl.int64)
    lane, member = tl.arange(0, HEAD_DIM), tl.arange(0, ROWS)
    real = member < GROUP
    head = kv_head * GROUP + member
    rows = query + sequence * query_stride_sequence + head[:, None] * query_stride_head
    group = tl.load(rows + lane[None, :], mask=real[:, None], other=0.0)
    key = kv + sequence * kv_stride_sequence + kv_head * kv_stride_head
    value = key + kv_stride_plane
    num_tiles = tl.cdiv(context_tokens, BLOCK)
    begin, end = num_tiles * split // num_splits, num_tiles * (split + 1) // num_splits
    full = tl.minimum(end, context_tokens // BLOCK)

    highest = tl.full((ROWS,), LOWEST, dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    weighted = tl.zeros((ROWS, HEAD_DIM), dtype=tl.float32)
    for tile in tl.range(begin, full, num_stages=STAGES):
        highest, total, weighted = _grouped_tile(
            group,
            key,
            value,
            tile * BLOCK,
            lane,
            context_tokens,
            scale,
            highest,
            total,
            weighted,
            False,
            BLOCK,
            HEAD_DIM,
        )
    if full < end:
        highest, total, weighted = _grouped_tile(
            group,
            key,
            value,
            full * BLOCK,
            lane,
            context_tokens,
            scale,
            highest,
            total,
            weighted,
            True,
            BLOCK,
            HEAD_DIM,
        )

    row = sequence * num_heads + head
    if SINGLE:
        result = (weighted / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + row[:, None] * HEAD_DIM + lane[None, :], result, mask=real[:, None])
    else:
        slot = row * num_splits + split
        tl.store(partial + slot[:, None] * HEAD_DIM + lane[None, :], weighted, mask=real[:, None])
        tl.store(highs + slot, highest, mask=real)
        tl.store(totals + slot, total, mask=real)


@triton.jit
def _combine_kernel(
    partial, highs, totals, out, num_splits, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    split, lane = tl.arange(0, SPLITS), tl.arange(0, HEAD_DIM)
    mask = split < num_splits
    slot = row * num_splits + split
    highest = tl.load(highs + slot, mask=mask, other=LOWEST)
    decay = tl.exp2(highest - tl.max(highest, axis=0))
    mass = tl.sum(tl.load(totals + slot, mask=mask, other=0.0) * decay, axis=0)
    vectors = tl.load(
        partial + slot[:, None] * HEAD_DIM + lane[None, :], mask=mask[:, None], other=0.0
    )
    result = tl.sum(vectors * decay[:, None], axis=0) / mass
    tl.store(out + row * HEAD_DIM + lane, result.to(out.dtype.element_ty))


def split_kv_attention(
    query: Tensor,
    kv: Tensor,
    context_tokens: int | Tensor,
    out: Tensor,
    *,
    num_splits: int | None = None,
    block: int | None = None,
    num_warps: int | None = None,
    num_stages: int | None = None,
) -> None:
    """See `layerwise.hw.kernels.dispatch.split_kv_attention`; a combining kernel follows unless there is one split."""
    (sequences, num_heads, head_dim), num_key_value_heads = query.shape, kv.shape[2]
    group = num_heads // num_key_value_heads
    # tl.dot needs at least 16 rows: a smaller group of query heads is padded.
    padded_group = max(16, triton.next_power_of_2(group))
    kernel = _vector_attention_kernel if group == 1 else _grouped_attention_kernel
    on_device = isinstance(context_tokens, Tensor)
    # A context that grows on the device is split for the longest that it can become.
    longest_tokens = kv.shape[3] if isinstance(context_tokens, Tensor) else context_tokens
    is_short = group > 1 and longest_tokens <= SHORT_CONTEXT
    block = block or (SHORT_GROUP_BLOCK if is_short else BLOCK)
    pairs, num_tiles = sequences * num_key_value_heads, triton.cdiv(longest_tokens, block)
    splits = num_splits or choose_num_splits(pairs, num_tiles, num_sms_of(query.device))
    splits = min(splits, num_tiles)
    rows = sequences * num_heads * (splits if splits > 1 else 0)
    partial = torch.empty(rows, head_dim, dtype=torch.float32, device=query.device)
    highs, totals = torch.empty(2, rows, dtype=torch.float32, device=query.device)
    kernel[(pairs, splits)](
        query,
        kv,
        out,
        partial,
        highs,
        totals,
        context_tokens,
        head_dim**-0.5 * LOG2_E,
        splits,
        num_heads,
        query.stride(0),
        query.stride(1),
        kv.stride(0),
        kv.stride(1),
        kv.stride(2),
        GROUP=group,
        ROWS=padded_group,
        HEAD_DIM=head_dim,
        BLOCK=block,
        STAGES=num_stages or (SHORT_STAGES if is_short else NUM_STAGES),
        SINGLE=splits == 1,
        ON_DEVICE=on_device,
        num_warps=num_warps or NUM_WARPS,
    )
    if splits > 1:
        padded = triton.next_power_of_2(splits)
        _combine_kernel[(sequences * num_heads,)](
            partial, highs, totals, out, splits, HEAD_DIM=head_dim, SPLITS=padded, num_warps=4
        )

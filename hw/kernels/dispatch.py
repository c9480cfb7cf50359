"""Pointwise operations and decode attention: one name each, two implementations.

CUDA tensors in bfloat16 go to Triton (`layerwise.hw.kernels.triton_pointwise`, imported on first use so that a machine
without Triton can import this module); everything else takes the plain torch path, which is the
reference: it computes in float32, or in float64 when the input is float64.

Every function writes into tensors that the caller owns and never synchronises, so all of them can
be captured in a CUDA graph once a first call outside the capture has compiled the Triton kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Context = int | Tensor
"""Tokens that every sequence has, the new ones included: a number, or an int32 [1] on the device."""


def skinny_matmul(source: Tensor, weight: Tensor, out: Tensor, counters: Tensor) -> None:
    """out = source x weight transposed, for at most 16 rows. A shape as `ops.suits_skinny` asks.

    source: [rows, inner]; weight: [columns, inner]; out: [rows, columns], all contiguous;
    counters: int32 zeros [columns or more], zero again afterwards.
    """
    if _takes_triton(source):
        from layerwise.hw.kernels import triton_matmul

        triton_matmul.skinny_matmul(source, weight, out, counters)
        return
    torch.mm(source, weight.t(), out=out)


def norm(
    source: Tensor, weight: Tensor, out: Tensor, epsilon: float, delta: Tensor | None = None
) -> None:
    """RMSNorm, optionally of a residual stream that first takes up `delta` in place.

    source, out, delta: [tokens, hidden]; weight: [hidden]. With `delta`, `source += delta` is
    computed in float32 and stored in the dtype of `source` before it is normalised.

    Source: Hugging Face `LlamaRMSNorm`: normalise in float32, cast to the dtype, times weight.
    """
    if _takes_triton(source):
        from layerwise.hw.kernels import triton_pointwise

        triton_pointwise.norm(source, weight, out, epsilon, delta)
        return
    if delta is not None:
        source.add_(delta)
    wide = _widen(source)
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
    torch.mul((wide * scale).to(source.dtype), weight, out=out)


def rotary_write(
    qkv: Tensor,
    kv: Tensor,
    cos: Tensor,
    sin: Tensor,
    context_tokens: Context,
    num_heads: int,
    num_key_value_heads: int,
) -> None:
    """Rotate q in place; write the rotated k and the plain v into the cache at their positions.

    qkv: [sequences * query_tokens, (num_heads + 2 * num_key_value_heads) * head_dim], rows ordered
    sequence by sequence; kv: [2, sequences, num_key_value_heads, capacity_tokens, head_dim];
    cos, sin: [capacity_tokens, head_dim], equal in both halves. The tokens of each sequence take
    the last positions before `context_tokens`.

    Source: Hugging Face `apply_rotary_pos_emb` (rotate_half).
    """
    _, sequences, _, capacity_tokens, head_dim = kv.shape
    query_tokens = qkv.shape[0] // sequences
    _require_fit(context_tokens, capacity_tokens)
    if _takes_triton(qkv):
        from layerwise.hw.kernels import triton_pointwise

        triton_pointwise.rotary_write(
            qkv, kv, cos, sin, context_tokens, num_heads, num_key_value_heads
        )
        return
    rows = qkv.view(sequences, query_tokens, num_heads + 2 * num_key_value_heads, head_dim)
    query, key, value = rows.split([num_heads, num_key_value_heads, num_key_value_heads], dim=2)
    end = int(context_tokens)
    positions = slice(end - query_tokens, end)
    cos_rows, sin_rows = cos[positions, None, :], sin[positions, None, :]
    query.copy_(_rotate(query, cos_rows, sin_rows))
    kv[0, :, :, positions].copy_(_rotate(key, cos_rows, sin_rows).transpose(1, 2))
    kv[1, :, :, positions].copy_(value.transpose(1, 2))


def gated_activation(
    gate_up: Tensor, out: Tensor, context: Tensor | None = None, growth_tokens: int = 0
) -> None:
    """silu(gate) * up. gate_up: [tokens, 2 * intermediate] = [gate | up]; out: half as wide.

    `context`, an int32 [1] that earlier kernels have read, grows by `growth_tokens` in passing: a
    kernel of its own for that would cost a microsecond a step.
    """
    if _takes_triton(gate_up):
        from layerwise.hw.kernels import triton_pointwise

        triton_pointwise.gated_activation(gate_up, out, context, growth_tokens)
        return
    gate, up = _widen(gate_up).chunk(2, dim=-1)
    out.copy_(functional.silu(gate) * up)
    if context is not None:
        context.add_(growth_tokens)


def residual_add(source: Tensor, delta: Tensor, out: Tensor) -> None:
    """out = source + delta; all [tokens, hidden] and contiguous. `out` may be `source`."""
    if _takes_triton(source):
        from layerwise.hw.kernels import triton_pointwise

        triton_pointwise.residual_add(source, delta, out)
        return
    torch.add(source, delta, out=out)


def split_kv_attention(
    query: Tensor,
    kv: Tensor,
    context_tokens: Context,
    out: Tensor,
    *,
    num_splits: int | None = None,
    block: int | None = None,
    num_warps: int | None = None,
    num_stages: int | None = None,
) -> None:
    """Decode attention: one query token per sequence over cached positions [0, context_tokens).

    query: [sequences, num_heads, head_dim], any strides with a unit last one; kv: [2, sequences,
    num_key_value_heads, capacity_tokens, head_dim]; out: [sequences, num_heads * head_dim]. Query
    head h reads key-value head h // (num_heads / num_key_value_heads). Where `context_tokens` lies
    on the device, one launch, or one captured node, serves every context up to the capacity, and
    reads no more of the cache than that context has.

    The keyword arguments override the Triton launch that is otherwise chosen from the shape:
    splits of the context, tokens per tile, warps per program and tiles in flight.
    """
    sequences, num_heads, head_dim = query.shape
    num_key_value_heads, capacity_tokens = kv.shape[2], kv.shape[3]
    _require_fit(context_tokens, capacity_tokens)
    if _takes_triton(query):
        from layerwise.hw.kernels import triton_attention

        triton_attention.split_kv_attention(
            query,
            kv,
            context_tokens,
            out,
            num_splits=num_splits,
            block=block,
            num_warps=num_warps,
            num_stages=num_stages,
        )
        return
    group = num_heads // num_key_value_heads
    grouped = _widen(query).reshape(sequences, num_key_value_heads, group, head_dim)
    end = int(context_tokens)
    key, value = _widen(kv[0, :, :, :end]), _widen(kv[1, :, :, :end])
    scores = grouped @ key.transpose(-1, -2) * head_dim**-0.5
    out.copy_((scores.softmax(dim=-1) @ value).reshape(sequences, num_heads * head_dim))


def read_bandwidth_kernel(buffer: Tensor, sink: Tensor) -> None:
    """Read every byte of `buffer` once; its 32-bit words' sum (modulo 2**32) is that of `sink`.

    buffer: contiguous, a multiple of 16 bytes; sink: [programs] int32, one value per program, so
    that the read cannot be optimised away. Measures the ceiling of reads from HBM and L2.
    """
    if buffer.is_cuda:
        from layerwise.hw.kernels import triton_pointwise

        triton_pointwise.read_bandwidth_kernel(buffer, sink)
        return
    sink.zero_()
    sink[0] = buffer.view(-1).view(torch.int32).sum(dtype=torch.int32)


def _takes_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype == torch.bfloat16


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = _widen(heads)
    low, high = wide.chunk(2, dim=-1)
    return wide * cos + torch.cat((-high, low), dim=-1) * sin


def _require_fit(context_tokens: Context, capacity_tokens: int) -> None:
    # A write or read past the capacity would silently land in the next head's cache. One that grows
    # on the device is checked by whoever lets it grow: looking at it here would stop the device.
    if isinstance(context_tokens, int) and not 1 <= context_tokens <= capacity_tokens:
        raise ValueError(
            f"context_tokens={context_tokens} is outside 1..{capacity_tokens}, the capacity of kv; "
            "allocate a larger cache or shorten the context"
        )

"""One point of a sweep: an op at one shape, repeated in a program of its own.

A cold point repeats its op over rotating weights (or KV caches) that exceed the L2 several times;
a warm point repeats it on one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from layerwise.sim.cost.kinds import KINDS, kind_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.model import DType
from layerwise.sim.plan.ops import AttentionKernel, Buffer, LocalOp, MatmulKernel
from layerwise.sim.plan.program import Part, Program, Segment

COLD_BYTES = 160 * 2**20
# A graph must be long against the launch of the next one, which is fitted and taken off.
GRAPH_S = 250e-6
MAX_REPEATS = 128
MAX_ROTATING_BYTES = 40 * 10**9


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One shape to measure. `program` repeats `op` `num_repeats` times in a step."""

    name: str
    kind: str
    op: LocalOp
    num_repeats: int
    program: Program


def matmul(rows: int, columns: int, inner: int, dtype: DType = "bfloat16") -> ops.Matmul:
    """Make a matmul op with buffers of its own."""
    return ops.Matmul(
        name="matmul",
        source=activation("source", rows, inner, dtype),
        weight=Buffer("matmul.weight", "weight", (columns, inner), dtype, per_layer=True),
        output=activation("output", rows, columns, dtype),
        rows=rows,
        columns=columns,
        inner=inner,
    )


def attention_point(
    sequences: int,
    heads: int,
    kv_heads: int,
    query: int,
    context: int,
    kernel: AttentionKernel,
    *,
    warm: bool = False,
    head_dim: int = 128,
) -> SweepPoint:
    """Attention over rotating KV caches, or one cache where `warm`; its kind follows its shape."""
    op = attention(sequences, heads, kv_heads, query, context, kernel, head_dim=head_dim)
    asked = f".q{query}" if query > 1 else ""
    size = "" if head_dim == 128 else f".d{head_dim}"
    label = f"s{sequences}.h{heads}.kv{kv_heads}{asked}.c{context}{size}"
    return point(kind_of(op).name, label, op, op.kv.num_bytes, warm)


def attention(
    sequences: int,
    heads: int,
    kv_heads: int,
    query: int,
    context: int,
    kernel: AttentionKernel,
    *,
    head_dim: int = 128,
    dtype: DType = "bfloat16",
) -> ops.Attention:
    """Make an attention op over a KV cache of its own."""
    shape = (2, sequences, kv_heads, context, head_dim)
    tokens = sequences * query
    return ops.Attention(
        name="attention",
        qkv=activation("qkv", tokens, (heads + 2 * kv_heads) * head_dim, dtype),
        kv=Buffer("kv", "kv", shape, dtype, per_layer=True),
        output=activation("output", tokens, heads * head_dim, dtype),
        sequences=sequences,
        query_tokens=query,
        context_tokens=context,
        num_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        kernel=kernel,
    )


def point(
    kind: str, label: str, op: LocalOp, rotating_bytes: int, warm: bool = False
) -> SweepPoint:
    """A program of one op, repeated over `rotating_bytes` of its own each time unless `warm`."""
    repeats = _repeats(op, 0 if warm else rotating_bytes)
    # A kind that only a part of an op's sizes makes is measured under the name of them all.
    sweep = KINDS[kind].else_priced_as if kind in KINDS and not KINDS[kind].kernel else ""
    name = f"{sweep or kind}/{label}/{'warm' if warm else 'cold'}"
    return repeated(kind, name, op, repeats, rotates=not warm)


def repeated(kind: str, name: str, op: LocalOp, repeats: int, rotates: bool) -> SweepPoint:
    """A program of `repeats` times one op; each has weights or KV of its own where it `rotates`."""
    segment = Segment((op,))
    parts = tuple(
        # Names must differ: a repeat is a layer where it rotates and a microbatch where not.
        Part(segment, f"L{index if rotates else 0:02d}", index if rotates else 0, index)
        for index in range(repeats)
    )
    program = Program(rank=0, stage=0, replica=0, tensor_rank=0, tensor_parallel=1, parts=parts)
    return SweepPoint(name=name, kind=kind, op=op, num_repeats=repeats, program=program)


def _repeats(op: LocalOp, rotating_bytes: int) -> int:
    demand = demand_of(op)
    guess_s = max(2e-6, demand.flops / 600e12, (demand.read_bytes + demand.written_bytes) / 2.8e12)
    long_enough = math.ceil(GRAPH_S / guess_s)
    if not rotating_bytes:
        return min(MAX_REPEATS, max(4, long_enough))
    cold = math.ceil(COLD_BYTES / rotating_bytes)
    room = max(2, MAX_ROTATING_BYTES // rotating_bytes)
    return min(MAX_REPEATS, room, max(2, cold, long_enough))


def matmul_point(
    rows: int, columns: int, inner: int, warm: bool = False, kernel: MatmulKernel = "cublas"
) -> SweepPoint:
    """A matmul over rotating weights, or one weight where `warm`."""
    op = replace(matmul(rows, columns, inner), kernel=kernel)
    return point(kind_of(op).name, f"m{rows}.n{columns}.k{inner}", op, op.weight.num_bytes, warm)


def norm_point(tokens: int, hidden: int, fused: bool) -> SweepPoint:
    """A norm of one residual stream over and over; `fused` with the add before it."""
    op = ops.Norm(
        name="norm",
        source=activation("source", tokens, hidden),
        delta=activation("delta", tokens, hidden) if fused else None,
        weight=Buffer("norm.weight", "weight", (hidden,), "bfloat16"),
        output=activation("output", tokens, hidden),
        sequences=tokens,
        query_tokens=1,
        hidden_size=hidden,
        epsilon=1e-5,
    )
    return point("norm", f"t{tokens}.h{hidden}.{'fused' if fused else 'plain'}", op, 0)


def residual_point(tokens: int, hidden: int) -> SweepPoint:
    """A residual add of one stream over and over."""
    op = ops.ResidualAdd(
        name="residual",
        source=activation("source", tokens, hidden),
        delta=activation("delta", tokens, hidden),
        output=activation("output", tokens, hidden),
        sequences=tokens,
        query_tokens=1,
        hidden_size=hidden,
    )
    return point("residual_add", f"t{tokens}.h{hidden}", op, 0)


def activation_point(tokens: int, intermediate: int) -> SweepPoint:
    """A gated activation of one input, `2 * intermediate` wide, over and over."""
    op = ops.GatedActivation(
        name="act",
        source=activation("source", tokens, 2 * intermediate),
        output=activation("output", tokens, intermediate),
        tokens=tokens,
        intermediate_size=intermediate,
    )
    return point("gated_activation", f"t{tokens}.i{intermediate}", op, 0)


def sample_point(sequences: int, vocab: int) -> SweepPoint:
    """The most likely token of each sequence, over and over."""
    op = ops.Sample(
        name="sample",
        logits=activation("logits", sequences, vocab),
        token_ids=Buffer("ids", "tokens", (sequences,), "int64"),
        sequences=sequences,
        vocab_size=vocab,
    )
    return point(kind_of(op).name, f"s{sequences}.v{vocab}", op, 0)


def embed_point(tokens: int, hidden: int, vocab: int, label: str) -> SweepPoint:
    """Rows of one embedding table, over and over."""
    op = ops.Embed(
        name="embed",
        token_ids=Buffer("ids", "tokens", (tokens,), "int64"),
        weight=Buffer("embed.weight", "weight", (vocab, hidden), "bfloat16"),
        output=activation("output", tokens, hidden),
        tokens=tokens,
        hidden_size=hidden,
    )
    return point(kind_of(op).name, label, op, 0)


def rotary_point(tokens: int, heads: int, kv_heads: int) -> SweepPoint:
    """Few tokens decode (one each at the end of a cache), many are one prompt."""
    sequences, query = (tokens, 1) if tokens <= 128 else (1, tokens)
    capacity = 1024 if query == 1 else query
    op = ops.RotaryWrite(
        name="rope",
        qkv=activation("qkv", tokens, (heads + 2 * kv_heads) * 128),
        kv=Buffer("kv", "kv", (2, sequences, kv_heads, capacity, 128), "bfloat16"),
        sequences=sequences,
        query_tokens=query,
        start_tokens=capacity - query,
        num_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        rope_theta=10_000.0,
    )
    return point("rotary_write", f"t{tokens}.h{heads}.kv{kv_heads}", op, 0)


def activation(name: str, rows: int, columns: int, dtype: DType = "bfloat16") -> Buffer:
    """Make an activation [rows, columns] that all repeats share."""
    return Buffer(name, "activation", (rows, columns), dtype)

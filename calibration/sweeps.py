"""The sweep: which ops, at which shapes, are measured to fit a profile. Each point is a program.

A cold point repeats its op over rotating weights (or KV caches) that exceed the L2 several times;
a warm point repeats it on one. Matmuls of the paper's own layer, whole or split eight ways, and its
context are left out on purpose: they belong to the validation runs. (Its gated activation is in.)

Points are short bursts in random order, so that the power they draw is a mixture's, as in a stage.
A large matmul repeated alone for a quarter of a second meets the power cap harder than any layer
does and runs 13 % slower: fitted that way, prefill stages came out 7 to 20 % too slow; fitted to
bursts, within 5 %.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from sim.plan import ops
from sim.plan.compile import KernelChoice
from sim.plan.demand import demand_of
from sim.plan.ops import AttentionKernel, Buffer, LocalOp
from sim.plan.program import Part, Program, Segment

COLD_BYTES = 160 * 2**20
# A graph must be long against the launch of the next one, which is fitted and taken off.
GRAPH_S = 250e-6
MAX_REPEATS = 128
MAX_ROTATING_BYTES = 40 * 10**9
HELD_OUT_MATMULS = frozenset(
    {(12288, 4096), (4096, 4096), (32768, 4096), (4096, 16384), (1536, 4096), (4096, 512),
     (4096, 2048)}
)  # fmt: skip
HELD_OUT_CONTEXT = 10_000


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One shape to measure. `program` repeats `op` `num_repeats` times in a step."""

    name: str
    kind: str
    op: LocalOp
    num_repeats: int
    program: Program


def sweep(kernels: KernelChoice, seed: int = 1) -> list[SweepPoint]:
    """All points, the order shuffled so that drift of clocks does not look like physics."""
    points = [
        *_matmul_points(), *_decode_points(kernels.decode_attention),
        *_prefill_points(kernels.prefill_attention),
        *_chunk_points(kernels.chunked_prefill_attention),
        *_pointwise_points(), *_edge_points(), *_launch_points(),
    ]  # fmt: skip
    unique = list({point.name: point for point in points}.values())
    random.Random(seed).shuffle(unique)
    return unique


def matmul(rows: int, columns: int, inner: int) -> ops.Matmul:
    """A matmul op with buffers of its own."""
    return ops.Matmul(
        name="matmul",
        source=_activation("source", rows, inner),
        weight=Buffer("matmul.weight", "weight", (columns, inner), "bfloat16", per_layer=True),
        output=_activation("output", rows, columns),
        rows=rows,
        columns=columns,
        inner=inner,
    )


def attention(
    sequences: int, heads: int, kv_heads: int, query: int, context: int, kernel: AttentionKernel
) -> ops.Attention:
    """An attention op over its own KV cache; heads have 128 dimensions."""
    shape = (2, sequences, kv_heads, context, 128)
    return ops.Attention(
        name="attention",
        qkv=_activation("qkv", sequences * query, (heads + 2 * kv_heads) * 128),
        kv=Buffer("kv", "kv", shape, "bfloat16", per_layer=True),
        output=_activation("output", sequences * query, heads * 128),
        sequences=sequences, query_tokens=query, context_tokens=context, num_heads=heads,
        num_key_value_heads=kv_heads, head_dim=128, kernel=kernel,
    )  # fmt: skip


def point(
    kind: str, label: str, op: LocalOp, rotating_bytes: int, warm: bool = False
) -> SweepPoint:
    """A program of one op, repeated over `rotating_bytes` of its own each time unless `warm`."""
    repeats = _repeats(op, 0 if warm else rotating_bytes)
    name = f"{kind}/{label}/{'warm' if warm else 'cold'}"
    return _point(kind, name, op, repeats, rotates=not warm)


def _point(kind: str, name: str, op: LocalOp, repeats: int, rotates: bool) -> SweepPoint:
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


def _launch_points() -> Iterator[SweepPoint]:
    """One small op a varying number of times: the intercept is what a graph launch costs."""
    op = _residual_point(8, 4096).op
    for repeats in (2, 4, 8, 16, 32, 64, 128):
        yield _point("graph_launch", f"graph_launch/r{repeats}/warm", op, repeats, rotates=False)


def _matmul_points() -> Iterator[SweepPoint]:
    few = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128)
    many = (160, 192, 256, 384, 512, 1024, 2048, 4096, 8192)
    for (columns, inner), rows in itertools.product(_weight_shapes(), (*few, *many)):
        if 2 * rows * columns * inner <= 9e12:
            yield _matmul_point(rows, columns, inner)
    for columns, inner in _weight_shapes():
        if columns * inner * 2 <= 40 * 2**20:
            for rows in (1, 8, 32, 128):
                yield _matmul_point(rows, columns, inner, warm=True)
    for columns, inner in (
        (10240, 5120),
        (40960, 5120),
        (5120, 20480),
        (9216, 3072),
        (24576, 3072),
    ):
        for rows in (6000, 9000, 12000):
            yield _matmul_point(rows, columns, inner)
    yield from _random_matmuls(250)


def _weight_shapes() -> list[tuple[int, int]]:
    """(columns, inner) of Llama-like layers of several widths, whole and split over ranks."""
    shapes: set[tuple[int, int]] = set()
    for hidden, shards in itertools.product((1024, 2048, 3072, 4096, 5120, 8192), (1, 2, 4, 8)):
        if hidden // shards < 256 or (hidden == 3072 and shards > 2):
            continue
        wide = 4 * hidden // shards
        shapes |= {(3 * hidden // shards, hidden), (hidden, hidden // shards)}
        shapes |= {(2 * wide, hidden), (hidden, wide)}
    return sorted(shapes - HELD_OUT_MATMULS)


def _random_matmuls(count: int) -> Iterator[SweepPoint]:
    rng = random.Random(7)
    made = 0
    while made < count:
        rows = round(2 ** rng.uniform(0, 13))
        columns, inner = (64 * round(2 ** rng.uniform(2.5, 8.5)) for _ in range(2))
        if (columns, inner) not in HELD_OUT_MATMULS and rows * columns * inner <= 3e12:
            made += 1
            yield _matmul_point(rows, columns, inner)


def _matmul_point(rows: int, columns: int, inner: int, warm: bool = False) -> SweepPoint:
    op = matmul(rows, columns, inner)
    return point("matmul", f"m{rows}.n{columns}.k{inner}", op, op.weight.num_bytes, warm)


def _decode_points(kernel: AttentionKernel) -> Iterator[SweepPoint]:
    contexts = (128, 384, 1024, 2048, 3000, 4096, 6000, 8192, 12_000, 16_384, 32_768)
    heads = ((32, 32), (16, 16), (8, 8), (4, 4), (32, 8), (8, 2))
    for (h, kv), sequences, context in itertools.product(
        heads, (1, 2, 4, 8, 16, 32, 64, 96, 128), contexts
    ):
        if 512 * sequences * kv * context <= 20e9:
            op = attention(sequences, h, kv, 1, context, kernel)
            label = f"s{sequences}.h{h}.kv{kv}.c{context}"
            yield point("decode_attention", label, op, op.kv.num_bytes)
            if op.kv.num_bytes <= 32 * 2**20:
                yield point("decode_attention", label, op, op.kv.num_bytes, warm=True)


def _prefill_points(kernel: AttentionKernel) -> Iterator[SweepPoint]:
    lengths = (128, 256, 512, 1024, 1536, 2048, 3072, 4096, 5120, 6144, 7168, 8192, 9216, 11_264,
               12_288, 16_384)  # fmt: skip
    heads = ((40, 40), (32, 32), (24, 24), (16, 16), (8, 8), (4, 4), (32, 8))
    for (h, kv), sequences, length in itertools.product(heads, (1, 2, 4, 8), lengths):
        is_small = sequences * h * length**2 <= 32 * 12_288**2
        if is_small and (sequences == 1 or (h <= 32 and length in lengths[:8])):
            op = attention(sequences, h, kv, length, length, kernel)
            label = f"s{sequences}.h{h}.kv{kv}.q{length}.c{length}"
            yield point("prefill_attention", label, op, op.kv.num_bytes)


def _chunk_points(kernel: AttentionKernel) -> Iterator[SweepPoint]:
    for (h, kv), query, context in itertools.product(
        ((32, 32), (8, 8), (32, 8)), (512, 1024, 2048, 4096), (2048, 4096, 8192, 16_384)
    ):
        if query < context:
            op = attention(1, h, kv, query, context, kernel)
            label = f"s1.h{h}.kv{kv}.q{query}.c{context}"
            yield point("chunked_prefill_attention", label, op, op.kv.num_bytes)


def _pointwise_points() -> Iterator[SweepPoint]:
    tokens = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 12_288)
    for count, hidden in itertools.product(tokens, (1024, 2048, 3072, 5120, 8192)):
        yield _norm_point(count, hidden, fused=True)
        yield _norm_point(count, hidden, fused=False)
        yield _residual_point(count, hidden)
        yield _activation_point(count, 2 * hidden)
        yield _rotary_point(count, hidden // 128, hidden // 128)
    for count in tokens:
        yield _rotary_point(count, 32, 8)
        yield _activation_point(count, 14_336)


def _norm_point(tokens: int, hidden: int, fused: bool) -> SweepPoint:
    op = ops.Norm(
        name="norm", source=_activation("source", tokens, hidden),
        delta=_activation("delta", tokens, hidden) if fused else None,
        weight=Buffer("norm.weight", "weight", (hidden,), "bfloat16"),
        output=_activation("output", tokens, hidden), sequences=tokens, query_tokens=1,
        hidden_size=hidden, epsilon=1e-5,
    )  # fmt: skip
    return point("norm", f"t{tokens}.h{hidden}.{'fused' if fused else 'plain'}", op, 0)


def _residual_point(tokens: int, hidden: int) -> SweepPoint:
    op = ops.ResidualAdd(
        name="residual", source=_activation("source", tokens, hidden),
        delta=_activation("delta", tokens, hidden), output=_activation("output", tokens, hidden),
        sequences=tokens, query_tokens=1, hidden_size=hidden,
    )  # fmt: skip
    return point("residual_add", f"t{tokens}.h{hidden}", op, 0)


def _activation_point(tokens: int, intermediate: int) -> SweepPoint:
    op = ops.GatedActivation(
        name="act", source=_activation("source", tokens, 2 * intermediate),
        output=_activation("output", tokens, intermediate), tokens=tokens,
        intermediate_size=intermediate,
    )  # fmt: skip
    return point("gated_activation", f"t{tokens}.i{intermediate}", op, 0)


def _rotary_point(tokens: int, heads: int, kv_heads: int) -> SweepPoint:
    """Few tokens decode (one each at the end of a cache), many are one prompt."""
    sequences, query = (tokens, 1) if tokens <= 128 else (1, tokens)
    capacity = 1024 if query == 1 else query
    op = ops.RotaryWrite(
        name="rope", qkv=_activation("qkv", tokens, (heads + 2 * kv_heads) * 128),
        kv=Buffer("kv", "kv", (2, sequences, kv_heads, capacity, 128), "bfloat16"),
        sequences=sequences, query_tokens=query, start_tokens=capacity - query, num_heads=heads,
        num_key_value_heads=kv_heads, head_dim=128, rope_theta=10_000.0,
    )  # fmt: skip
    return point("rotary_write", f"t{tokens}.h{heads}.kv{kv_heads}", op, 0)


def _edge_points() -> Iterator[SweepPoint]:
    for rows, vocab in itertools.product((1, 8, 32, 64, 128), (32_000, 64_000, 128_256)):
        sample = ops.Sample(
            name="sample", logits=_activation("logits", rows, vocab),
            token_ids=Buffer("ids", "tokens", (rows,), "int64"), sequences=rows, vocab_size=vocab,
        )  # fmt: skip
        yield point("sample", f"s{rows}.v{vocab}", sample, 0)
    for tokens, hidden in itertools.product((1, 8, 64, 128, 1024, 8192), (1024, 2048, 5120)):
        embed = ops.Embed(
            name="embed", token_ids=Buffer("ids", "tokens", (tokens,), "int64"),
            weight=Buffer("embed.weight", "weight", (32_000, hidden), "bfloat16"),
            output=_activation("output", tokens, hidden), tokens=tokens, hidden_size=hidden,
        )  # fmt: skip
        yield point("embed", f"t{tokens}.h{hidden}", embed, 0)


def _activation(name: str, rows: int, columns: int) -> Buffer:
    return Buffer(name, "activation", (rows, columns), "bfloat16")

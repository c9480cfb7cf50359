"""Points that differ from every fitted one in kernel, head size or dtype.

No fit sees them. They tell how far a price is off where an op's kernel, head size or dtype is not
the fitted one, and so how much wider its interval must be (`layerwise.sim.cost.unfitted`). Half of
the points of each change, drawn by a seed, give the widths; the other half scores them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

from layerwise.calibration.points import (
    SweepPoint,
    activation,
    attention,
    matmul,
    point,
    residual_point,
)
from layerwise.calibration.sweeps import log_uniform, shuffled
from layerwise.sim.cost.kinds import kind_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.model import DType
from layerwise.sim.plan.ops import AttentionKernel, Buffer

SEED = 61
HEADS = ((32, 32), (32, 8), (16, 16), (64, 8), (8, 2), (40, 40))
HEAD_DIMS = (64, 96, 256)
MAX_KV_BYTES = 2 * 10**9
# Of one prompt: 32 heads, 8,192 tokens long. What `math` writes down in full is kept smaller.
MAX_SCORES = 32 * 8192**2
MAX_MATH_SCORES = 16 * 4096**2


def unfitted(kernels: KernelChoice, seed: int = SEED) -> list[SweepPoint]:
    """Return every point, in a random order that the seed decides."""
    rng = random.Random(seed)
    points = [
        *_decodes(rng, kernels),
        *_prompts(rng, kernels),
        *_chunks(rng, kernels),
        *_float32(rng),
    ]
    # Drawn later, and behind the others: so those keep the half that was set aside of them.
    return [*shuffled(points, seed), *shuffled(_rotary(), seed)]


def set_aside(points: Iterable[SweepPoint], seed: int = SEED + 1) -> set[str]:
    """Return the names of the points that score, half of those of each change."""
    rng = random.Random(seed)
    by_change: dict[str, list[str]] = {}
    for each in points:
        by_change.setdefault(change_of(each), []).append(each.name)
    chosen: set[str] = set()
    for names in by_change.values():
        chosen |= set(rng.sample(sorted(names), len(names) // 2))
    return chosen


def change_of(each: SweepPoint) -> str:
    """Return what sets a point apart: its kind of op, kernel, head size and dtype."""
    return each.name.split("/")[1].partition(".")[0] + "/" + each.kind


def _decodes(rng: random.Random, kernels: KernelChoice) -> Iterator[SweepPoint]:
    asked: list[tuple[AttentionKernel, int, int]] = [
        ("flash", 128, 40),
        ("cudnn", 128, 10),
        ("math", 128, 24),
    ]
    asked.extend((kernels.decode_attention, size, 30) for size in HEAD_DIMS)
    asked.extend(("split_kv", size, 16) for size in (64, 256))
    for kernel, head_dim, count in asked:
        for _ in range(count):
            yield _decode(rng, kernel, head_dim)


def _decode(
    rng: random.Random, kernel: AttentionKernel, head_dim: int, dtype: DType = "bfloat16"
) -> SweepPoint:
    width = 4 if dtype == "float32" else 2
    while True:
        heads, kv_heads = rng.choice(HEADS)
        sequences, context = log_uniform(rng, 1, 128), log_uniform(rng, 200, 16_384)
        if 2 * width * sequences * kv_heads * context * head_dim <= MAX_KV_BYTES:
            return _attention(sequences, heads, kv_heads, 1, context, kernel, head_dim, dtype)


def _prompts(rng: random.Random, kernels: KernelChoice) -> Iterator[SweepPoint]:
    asked: list[tuple[AttentionKernel, int, int]] = [
        ("flash", 128, 30),
        ("cudnn", 128, 8),
        ("math", 128, 16),
    ]
    asked.extend((kernels.prefill_attention, size, 20) for size in HEAD_DIMS)
    for kernel, head_dim, count in asked:
        for _ in range(count):
            yield _prompt(rng, kernel, head_dim)


def _prompt(
    rng: random.Random, kernel: AttentionKernel, head_dim: int, dtype: DType = "bfloat16"
) -> SweepPoint:
    most = MAX_MATH_SCORES if kernel == "math" else MAX_SCORES
    while True:
        heads, kv_heads = rng.choice(HEADS)
        sequences, length = rng.choice((1, 1, 2, 4)), log_uniform(rng, 256, 8192, step=16)
        if sequences * heads * length**2 <= most:
            return _attention(sequences, heads, kv_heads, length, length, kernel, head_dim, dtype)


def _chunks(rng: random.Random, kernels: KernelChoice) -> Iterator[SweepPoint]:
    asked: list[tuple[AttentionKernel, int, int]] = [
        ("cudnn", 128, 16),
        ("flash", 128, 6),
        ("math", 128, 14),
    ]
    asked.extend((kernels.chunked_prefill_attention, size, 16) for size in HEAD_DIMS)
    for kernel, head_dim, count in asked:
        for _ in range(count):
            yield _chunk(rng, kernel, head_dim)


def _chunk(rng: random.Random, kernel: AttentionKernel, head_dim: int) -> SweepPoint:
    most = MAX_MATH_SCORES if kernel == "math" else MAX_SCORES
    while True:
        heads, kv_heads = rng.choice(HEADS)
        sequences, query = rng.choice((1, 1, 2)), log_uniform(rng, 256, 2048, step=16)
        context = query + log_uniform(rng, 256, 8192, step=16)
        if sequences * heads * query * context <= most:
            return _attention(sequences, heads, kv_heads, query, context, kernel, head_dim)


def _attention(
    sequences: int,
    heads: int,
    kv_heads: int,
    query: int,
    context: int,
    kernel: AttentionKernel,
    head_dim: int,
    dtype: DType = "bfloat16",
) -> SweepPoint:
    op = attention(
        sequences, heads, kv_heads, query, context, kernel, head_dim=head_dim, dtype=dtype
    )
    change = f"{kernel}-d{head_dim}-{dtype}"
    label = f"{change}.s{sequences}.h{heads}.kv{kv_heads}.q{query}.c{context}"
    kind = kind_of(op)
    return point(kind.else_priced_as or kind.name, label, op, op.kv.num_bytes)


def _float32(rng: random.Random) -> Iterator[SweepPoint]:
    for _ in range(40):
        rows = log_uniform(rng, 1, 4096)
        columns, inner = (log_uniform(rng, 512, 12_288, step=64) for _ in range(2))
        op = matmul(rows, columns, inner, "float32")
        yield point(
            "matmul", f"cublas-float32.m{rows}.n{columns}.k{inner}", op, op.weight.num_bytes
        )
    for _ in range(16):
        yield _decode(rng, "math", 128, "float32")
        yield _prompt(rng, "math", 128, "float32")
    for tokens, hidden in itertools.product((1, 16, 128, 2048), (1024, 4096, 8192)):
        op = residual_point(tokens, hidden).op
        assert isinstance(op, ops.ResidualAdd)
        wide = {
            name: activation(name, tokens, hidden, "float32")
            for name in ("source", "delta", "output")
        }
        yield point("residual_add", f"torch-float32.t{tokens}.h{hidden}", replace(op, **wide), 0)


def _rotary() -> Iterator[SweepPoint]:
    for head_dim, tokens, hidden in itertools.product(
        HEAD_DIMS, (1, 8, 64, 1024), (1024, 3072, 6144)
    ):
        heads = max(1, hidden // head_dim)
        kv_heads = max(1, heads // 4)
        sequences, query = (tokens, 1) if tokens <= 128 else (1, tokens)
        capacity = 1024
        op = ops.RotaryWrite(
            name="rope",
            qkv=activation("qkv", tokens, (heads + 2 * kv_heads) * head_dim),
            kv=Buffer("kv", "kv", (2, sequences, kv_heads, capacity, head_dim), "bfloat16"),
            sequences=sequences,
            query_tokens=query,
            start_tokens=capacity - query,
            num_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rope_theta=10_000.0,
        )
        label = f"triton-d{head_dim}-bfloat16.t{tokens}.h{heads}.kv{kv_heads}"
        yield point("rotary_write", label, op, 0)

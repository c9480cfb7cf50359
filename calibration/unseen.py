"""Points that no fit may see: they tell how well a fitted profile predicts shapes it never met.

Every pair of (columns, inner) of a matmul, and every (heads, sequences, query, context) of an
attention, is in neither `sweep` nor `supplement`. The paper's own matmuls and its context are here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from layerwise.calibration.points import SweepPoint, attention_point, matmul_point
from layerwise.calibration.sweeps import (
    HELD_OUT_CONTEXT,
    HELD_OUT_MATMULS,
    WARM_KV_BYTES,
    log_uniform,
    shuffled,
    supplement,
    sweep,
)
from layerwise.sim.cost.kinds import kind_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.ops import AttentionKernel

# Up to here weights hit in part: past the 40 MiB of the warm points that are fitted.
WARM_BYTES = 44 * 2**20
HEADS = (
    (32, 32),
    (16, 16),
    (8, 8),
    (32, 8),
    (40, 40),
    (64, 8),
    (12, 12),
    (20, 20),
    (24, 24),
    (28, 4),
    (48, 8),
    (12, 3),
)
MAX_KV_BYTES = 10 * 10**9
# Of one prompt: 32 heads, 12,288 tokens long.
MAX_SCORES = 32 * 12_288**2
Shape = tuple[int, ...]


def unseen(kernels: KernelChoice, seed: int = 3) -> list[SweepPoint]:
    """All points to score, in a random order that the seed decides."""
    seen = shapes_of((*sweep(kernels), *supplement(kernels)))
    points = [
        *_matmuls(seen),
        *_paper_matmuls(),
        *_decodes(kernels.decode_attention, seen, 88),
        *_prefills(kernels.prefill_attention, seen, 40),
        *_chunks(kernels.chunked_prefill_attention, seen, 40),
    ]
    assert not seen & shapes_of(points), "a point to score was fitted"
    return shuffled(points, seed)


def shapes_of(points: Iterable[SweepPoint]) -> set[Shape]:
    """What must differ: (columns, inner) of matmuls, without rows; all of an attention's shape."""
    return {shape for point in points if (shape := _shape(point))}


def _shape(point: SweepPoint) -> Shape:
    kind_of(point.op)  # an op of no kind is refused
    match point.op:
        case ops.Matmul() as op:
            return (op.columns, op.inner)
        case ops.Attention() as op:
            return (
                op.num_heads,
                op.num_key_value_heads,
                op.sequences,
                op.query_tokens,
                op.context_tokens,
            )
        case _:
            return ()


def _matmuls(seen: set[Shape], num_shapes: int = 100) -> Iterator[SweepPoint]:
    """Each pair cold, and warm with other rows where the weight may stay in the L2."""
    rng, made = random.Random(20), 0
    while made < num_shapes:
        columns, inner = (log_uniform(rng, 256, 16_384, step=64) for _ in range(2))
        if (columns, inner) in seen | HELD_OUT_MATMULS:
            continue
        made += 1
        yield matmul_point(log_uniform(rng, 1, 10_000), columns, inner)
        if 2 * columns * inner <= WARM_BYTES:
            yield matmul_point(log_uniform(rng, 1, 10_000), columns, inner, warm=True)


def _paper_matmuls() -> Iterator[SweepPoint]:
    for columns, inner in sorted(HELD_OUT_MATMULS):
        for rows in (1, 8, 64, 128, 1000, 5000):
            yield matmul_point(rows, columns, inner)
        if 2 * columns * inner <= WARM_BYTES:
            for rows in (1, 20, 128):
                yield matmul_point(rows, columns, inner, warm=True)


def draw_decode(rng: random.Random) -> tuple[int, int, int, int]:
    """(heads, KV heads, sequences, context) of a random decode."""
    return (*rng.choice(HEADS), log_uniform(rng, 1, 128), log_uniform(rng, 100, 32_768))


def draw_prefill(rng: random.Random) -> tuple[int, int, int, int]:
    """(heads, KV heads, sequences, length) of random prompts."""
    heads = rng.choice(HEADS)
    return (*heads, rng.choice((1, 1, 2, 3, 4)), log_uniform(rng, 128, 16_384, step=16))


def draw_chunk(rng: random.Random) -> tuple[int, int, int, int, int]:
    """(heads, KV heads, sequences, query, context) of later chunks of random prompts."""
    heads = rng.choice(HEADS)
    sequences, query = rng.choice((1, 1, 2, 3, 4)), log_uniform(rng, 256, 4096, step=16)
    return (*heads, sequences, query, query + log_uniform(rng, 256, 20_480, step=16))


def cold_and_warm(
    sequences: int, heads: int, kv_heads: int, context: int, kernel: AttentionKernel
) -> Iterator[SweepPoint]:
    """A decode cold, and warm where its cache may stay in the L2."""
    yield attention_point(sequences, heads, kv_heads, 1, context, kernel)
    if kv_bytes_of(sequences, kv_heads, context) <= WARM_KV_BYTES:
        yield attention_point(sequences, heads, kv_heads, 1, context, kernel, warm=True)


def kv_bytes_of(sequences: int, kv_heads: int, context: int) -> int:
    """Keys and values of 128 dimensions in bf16."""
    return 512 * sequences * kv_heads * context


def _decodes(kernel: AttentionKernel, seen: set[Shape], count: int) -> Iterator[SweepPoint]:
    """Each cold, and warm where the cache may stay in the L2; a few at the paper's context."""
    rng, made = random.Random(21), 0
    while made < count:
        h, kv, sequences, context = draw_decode(rng)
        if made < 6:
            context = HELD_OUT_CONTEXT
        too_large = kv_bytes_of(sequences, kv, context) > MAX_KV_BYTES
        if (h, kv, sequences, 1, context) in seen or too_large:
            continue
        made += 1
        yield from cold_and_warm(sequences, h, kv, context, kernel)


def _prefills(kernel: AttentionKernel, seen: set[Shape], count: int) -> Iterator[SweepPoint]:
    rng, made = random.Random(22), 0
    while made < count:
        h, kv, sequences, length = draw_prefill(rng)
        if made < 3:
            sequences, length = 1, HELD_OUT_CONTEXT
        is_new = (h, kv, sequences, length, length) not in seen
        if is_new and sequences * h * length**2 <= MAX_SCORES:
            made += 1
            yield attention_point(sequences, h, kv, length, length, kernel)


def _chunks(kernel: AttentionKernel, seen: set[Shape], count: int) -> Iterator[SweepPoint]:
    rng, made = random.Random(23), 0
    while made < count:
        h, kv, sequences, query, context = draw_chunk(rng)
        is_new = (h, kv, sequences, query, context) not in seen
        if is_new and sequences * h * query * context <= MAX_SCORES:
            made += 1
            yield attention_point(sequences, h, kv, query, context, kernel)

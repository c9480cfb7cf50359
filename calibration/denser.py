"""A second supplement to the sweep: random shapes, where an unseen shape would find no neighbour.

Drawn like the points that only score a fit, with other dice; none of it has the (columns, inner) of
a matmul, or the shape of an attention, that is kept for scoring.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from layerwise.calibration.points import SweepPoint, attention_point, matmul_point
from layerwise.calibration.sweeps import log_uniform, shuffled, supplement, sweep
from layerwise.calibration.unseen import (
    MAX_KV_BYTES,
    MAX_SCORES,
    WARM_BYTES,
    cold_and_warm,
    draw_chunk,
    draw_decode,
    draw_prefill,
    kv_bytes_of,
    shapes_of,
    unseen,
)
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.ops import AttentionKernel

MATMUL_SHAPES, LONG_MATMUL_SHAPES, DECODES, PREFILLS, CHUNKS = 850, 120, 200, 260, 260


def denser(kernels: KernelChoice, seed: int = 4) -> list[SweepPoint]:
    """Points to fit, none of which the sweep or its first supplement has; `seed` shuffles."""
    kept = shapes_of(unseen(kernels))
    have = {point.name for point in (*sweep(kernels), *supplement(kernels))}
    drawn = [
        *_matmuls(random.Random(40), MATMUL_SHAPES, (256, 16_384), (256, 16_384)),
        # Few columns and a long inner side: where cuBLAS splits, and chooses worst.
        *_matmuls(random.Random(41), LONG_MATMUL_SHAPES, (256, 1536), (6144, 16_384)),
        *_decodes(random.Random(42), kernels.decode_attention),
        *_prefills(random.Random(43), kernels.prefill_attention),
        *_chunks(random.Random(44), kernels.chunked_prefill_attention),
    ]
    return shuffled((p for p in drawn if p.name not in have and not shapes_of([p]) & kept), seed)


def _matmuls(
    rng: random.Random, count: int, columns_range: tuple[int, int], inner_range: tuple[int, int]
) -> Iterator[SweepPoint]:
    """Each weight cold, and warm with other rows where it may stay in the L2."""
    for _ in range(count):
        columns = log_uniform(rng, *columns_range, step=64)
        inner = log_uniform(rng, *inner_range, step=64)
        yield matmul_point(log_uniform(rng, 1, 10_000), columns, inner)
        if 2 * columns * inner <= WARM_BYTES:
            yield matmul_point(log_uniform(rng, 1, 10_000), columns, inner, warm=True)


def _decodes(rng: random.Random, kernel: AttentionKernel) -> Iterator[SweepPoint]:
    for _ in range(DECODES):
        h, kv, sequences, context = draw_decode(rng)
        if kv_bytes_of(sequences, kv, context) <= MAX_KV_BYTES:
            yield from cold_and_warm(sequences, h, kv, context, kernel)


def _prefills(rng: random.Random, kernel: AttentionKernel) -> Iterator[SweepPoint]:
    for _ in range(PREFILLS):
        h, kv, sequences, length = draw_prefill(rng)
        if sequences * h * length**2 <= MAX_SCORES:
            yield attention_point(sequences, h, kv, length, length, kernel)


def _chunks(rng: random.Random, kernel: AttentionKernel) -> Iterator[SweepPoint]:
    for _ in range(CHUNKS):
        h, kv, sequences, query, context = draw_chunk(rng)
        if sequences * h * query * context <= MAX_SCORES:
            yield attention_point(sequences, h, kv, query, context, kernel)

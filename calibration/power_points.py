"""Work that is measured in both regimes of the clock, to tell what it draws: `--what power`.

Matmuls of 64 to 16,384 rows, attention of prompts, chunks and decode, and bytes alone. Three in ten
of each kind are put aside by a seed before anything is fitted, and only score; `unseen_sustained` was drawn after
the form was frozen, by another rule.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from layerwise.calibration.points import (
    SweepPoint,
    activation_point,
    attention_point,
    matmul_point,
    norm_point,
)
from layerwise.sim.plan.compile import KernelChoice

ASIDE_SEED, ASIDE_SHARE = 15, 0.3
UNSEEN_SEED, NUM_UNSEEN = 1501, 24
# (rows, columns, inner), each over weights of its own.
MATMULS = (
    *((64, n, k) for n, k in ((4096, 14_336), (6144, 4096), (28_672, 4096))),
    *((128, n, k) for n, k in ((3072, 3072), (7168, 8192), (8192, 8192))),
    *((256, n, k) for n, k in ((2048, 8192), (4096, 14_336), (28_672, 4096))),
    *((512, n, k) for n, k in ((6144, 4096), (7168, 8192), (8192, 8192))),
    *((1024, n, k) for n, k in ((2048, 8192), (3072, 3072), (28_672, 4096))),
    *((2048, n, k) for n, k in ((4096, 14_336), (6144, 4096), (8192, 8192))),
    *((4096, n, k) for n, k in ((2048, 8192), (3072, 3072), (7168, 8192))),
    *((8192, n, k) for n, k in ((4096, 14_336), (6144, 4096), (28_672, 4096))),
    *((16_384, n, k) for n, k in ((3072, 3072), (7168, 8192), (8192, 8192))),
)
WARM_MATMULS = ((128, 3072, 3072), (2048, 3072, 3072))
# (sequences, heads, KV heads, query, context).
PROMPTS = (
    (1, 32, 8, 4096, 4096),
    (1, 32, 32, 8192, 8192),
    (1, 64, 8, 16_384, 16_384),
    (2, 40, 40, 3072, 3072),
    (4, 32, 8, 2048, 2048),
    (8, 16, 16, 1024, 1024),
)
CHUNKS = ((1, 32, 8, 1024, 8192), (1, 32, 32, 2048, 16_384))
DECODES = ((8, 32, 32, 1, 8192), (64, 32, 8, 1, 4096), (128, 8, 8, 1, 2048))


def power_points(kernels: KernelChoice) -> list[SweepPoint]:
    """Every point of the sweep, those that only score among them."""
    return [
        *(matmul_point(*shape) for shape in MATMULS),
        *(matmul_point(*shape, warm=True) for shape in WARM_MATMULS),
        matmul_point(8, 28_672, 4096, kernel="skinny"),
        *(attention_point(*shape, kernels.prefill_attention) for shape in PROMPTS),
        *(attention_point(*shape, kernels.chunked_prefill_attention) for shape in CHUNKS),
        *(attention_point(*shape, kernels.decode_attention) for shape in DECODES),
        norm_point(512, 4096, fused=True),
        norm_point(8192, 8192, fused=True),
        activation_point(8192, 14_336),
    ]


def set_aside(names: Iterable[str]) -> frozenset[str]:
    """The points of these that no fit may see: of each kind a share, by the seed, in any order."""
    rng, by_kind = random.Random(ASIDE_SEED), dict[str, list[str]]()
    for name in sorted(names):
        by_kind.setdefault(name.partition("/")[0], []).append(name)
    chosen = (rng.sample(found, int(ASIDE_SHARE * len(found))) for found in by_kind.values())
    return frozenset(name for part in chosen for name in part)


def unseen_sustained(kernels: KernelChoice) -> list[SweepPoint]:
    """Matmuls of more than 1,024 rows that were drawn after the form was frozen, to score it.

    Sides are any multiples of 128 between 1,024 and 28,672, as log-uniform as that allows; rows any
    multiple of 8 from 1,032 to 16,384.
    """
    del kernels
    rng, shapes = random.Random(UNSEEN_SEED), dict[tuple[int, int, int], None]()
    taken = set(MATMULS)
    while len(shapes) < NUM_UNSEEN:
        rows = 8 * round(1032 * (16_384 / 1032) ** rng.random() / 8)
        columns, inner = (128 * round(1024 * 28 ** rng.random() / 128) for _ in range(2))
        if (rows, columns, inner) not in taken and columns * inner <= 2**28:
            shapes[rows, columns, inner] = None
    return [matmul_point(*shape) for shape in shapes]

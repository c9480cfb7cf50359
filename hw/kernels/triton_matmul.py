"""Matmuls of few rows in Triton: the weight streamed once through small tiles. bfloat16 on CUDA.

Source and sum are in float32. The rows, at most 16, are one side of the tensor cores' tile, and
padded to it. Where there are fewer tiles of columns than SMs, the inner dimension is split among
several programs of a tile; the last of them to arrive adds up the parts, so no second kernel is
needed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from layerwise.hw.kernels.device import num_sms_of
from layerwise.sim.plan.ops import SKINNY_COLUMNS, SKINNY_INNER, SKINNY_ROWS, skinny_splits

# Of 13 to 17 launches tried at each of 23 shapes on an H100 (1, 8, 16 rows; 1024 to 32,768 columns).
NUM_WARPS, NUM_STAGES = 4, 4


@triton.jit
def _skinny_kernel(
    source,
    weight,
    out,
    partial,
    counters,
    num_rows,
    columns,
    inner,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    tile, split = tl.program_id(0), tl.program_id(1)
    column = tile * BLOCK + tl.arange(0, BLOCK)
    row, step = tl.arange(0, ROWS), tl.arange(0, INNER_BLOCK)
    share = inner // SPLITS
    total = tl.zeros((BLOCK, ROWS), dtype=tl.float32)
    weights = weight + column.to(tl.int64)[:, None] * inner + step[None, :]
    sources = source + row[None, :] * inner + step[:, None]
    real = (row < num_rows)[None, :]
    for first in tl.range(split * share, (split + 1) * share, INNER_BLOCK, num_stages=STAGES):
        values = tl.load(sources + first, mask=real, other=0.0)
        total = tl.dot(tl.load(weights + first), values, total)

    result = out + row[None, :] * columns + column[:, None]
    if SPLITS == 1:
        tl.store(result, total.to(out.dtype.element_ty), mask=real)
    else:
        place = column[:, None] * ROWS + row[None, :]
        tl.store(partial + split * columns * ROWS + place, total)
        # All threads have written their part before one of them says so.
        tl.debug_barrier()
        arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel")
        if arrived == SPLITS - 1:
            total = tl.zeros((BLOCK, ROWS), dtype=tl.float32)
            for part in tl.static_range(SPLITS):
                total += tl.load(partial + part * columns * ROWS + place)
            tl.store(result, total.to(out.dtype.element_ty), mask=real)
            tl.store(counters + tile, 0)


def skinny_matmul(source: Tensor, weight: Tensor, out: Tensor, counters: Tensor) -> None:
    """See `layerwise.hw.kernels.dispatch.skinny_matmul`; programs of 64 columns, up to four for the same ones."""
    (num_rows, inner), columns = source.shape, weight.shape[0]
    splits = skinny_splits(columns, inner, num_sms_of(source.device))
    size = splits * columns * SKINNY_ROWS if splits > 1 else 0
    partial = torch.empty(size, dtype=torch.float32, device=source.device)
    _skinny_kernel[(columns // SKINNY_COLUMNS, splits)](
        source,
        weight,
        out,
        partial,
        counters,
        num_rows,
        columns,
        inner,
        ROWS=SKINNY_ROWS,
        BLOCK=SKINNY_COLUMNS,
        INNER_BLOCK=SKINNY_INNER,
        SPLITS=splits,
        STAGES=NUM_STAGES,
        num_warps=NUM_WARPS,
    )

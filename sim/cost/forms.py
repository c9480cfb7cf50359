"""The physics forms: seconds of an op from its dimensions, its traffic and fitted constants.

Each form works on numbers and on numpy arrays alike, so the fit and the simulator use the same
lines. Traffic is split into bytes that miss to HBM and bytes the L2 serves.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Constants = Mapping[str, float]

# Output tiles (rows, columns) of cuBLAS' Hopper kernels, and split-k factors.
# Source: kernel names in CUPTI traces of torch.mm on H100.
TILES = ((64, 8), (64, 16), (64, 32), (64, 64), (64, 128), (64, 256), (128, 64), (128, 128),
         (128, 192), (128, 256), (256, 64), (256, 128))  # fmt: skip
SPLITS = (1, 2, 4, 8)
K_STEP = 64
_CONFIGS = np.array([(m, n, s) for m, n in TILES for s in SPLITS], dtype=np.float64)


def memory_seconds(
    constants: Constants, hbm_bytes: Numbers | float, l2_bytes: Numbers | float
) -> Numbers | float:
    """Harmonic mix: misses at the HBM rate and hits at the L2 rate follow one another.

    Source: of the combinations tried on public L2 curves the harmonic one fits best.
    """
    return hbm_bytes / constants["hbm_bytes_per_s"] + l2_bytes / constants["l2_bytes_per_s"]


def matmul_seconds(
    constants: Constants,
    rows: Numbers,
    columns: Numbers,
    inner: Numbers,
    memory_s: Numbers,
    *,
    num_sms: int,
    peak_flops_per_s: float,
) -> tuple[Numbers, Numbers, Numbers]:
    """Best tile and split-k of: launch + p-norm(waves of tiles, memory). Arrays [points].

    cuBLAS lays the smaller side of the output on the tile's columns for few rows, so both
    orientations of a tile count. Returns (seconds, of these the tiles' FLOPs alone, and the
    tiles' prologue and loads alone).
    """
    tile_m, tile_n, split = _CONFIGS.T
    m, n, k = (np.asarray(x, dtype=np.float64)[:, None] for x in (rows, columns, inner))
    upright = np.ceil(m / tile_m) * np.ceil(n / tile_n)
    turned = np.ceil(m / tile_n) * np.ceil(n / tile_m)
    waves = np.ceil(np.minimum(upright, turned) * split / num_sms)
    steps = np.ceil(k / split / K_STEP)
    sm_flops_per_s = peak_flops_per_s / num_sms * constants["efficiency"]
    flops_s = 2 * K_STEP * tile_m * tile_n / sm_flops_per_s
    flops_s = flops_s * (1 + constants["tile_overhead"] * 64 * (1 / tile_m + 1 / tile_n))
    load_s = 2 * K_STEP * (tile_m + tile_n) / constants["sm_bytes_per_s"]
    tiles_s = waves * (constants["prologue_s"] + steps * np.maximum(flops_s, load_s))
    split_s = np.where(split > 1, constants["split_s"] + 4 * m * n * split / 5e12, 0.0)
    power = constants["power"]
    memory = np.asarray(memory_s, dtype=np.float64)[:, None]
    total = (tiles_s**power + memory**power) ** (1 / power) + split_s
    best = np.argmin(total, axis=1)
    pick = np.arange(len(best))
    flops_only_s = waves * steps * flops_s
    loads_only_s = waves * (constants["prologue_s"] + steps * load_s)
    return (
        constants["launch_s"] + total[pick, best],
        flops_only_s[pick, best],
        loads_only_s[pick, best],
    )


def decode_attention_seconds(
    constants: Constants, sequences_times_kv_heads: Numbers, memory_s: Numbers, *, num_sms: int
) -> Numbers:
    """Launch + a cost per wave of (sequence, head) units + the KV cache's bytes."""
    waves = np.ceil(np.asarray(sequences_times_kv_heads) / num_sms)
    return constants["launch_s"] + waves * constants["wave_s"] + np.asarray(memory_s)


def prefill_attention_seconds(
    constants: Constants,
    flops: Numbers,
    query_tokens: Numbers,
    context_tokens: Numbers,
    head_dim: Numbers,
    *,
    num_sms: int,
    peak_flops_per_s: float,
) -> Numbers:
    """Launch + all tiles spread over the SMs + the longest tile as a tail.

    A tile is 128 queries against every visible key. Source: the bound of list scheduling
    (Graham 1969), total / machines + longest.
    """
    rate = peak_flops_per_s * constants["efficiency"]
    padded = np.ceil(np.asarray(query_tokens) / 128) * 128
    total = np.asarray(flops) * padded / np.asarray(query_tokens)
    longest = 4.0 * 128 * np.asarray(context_tokens) * np.asarray(head_dim)
    return constants["launch_s"] + total / rate + constants["tail"] * longest / (rate / num_sms)


def pointwise_seconds(constants: Constants, memory_s: Numbers | float) -> Numbers | float:
    """Launch + bytes."""
    return constants["launch_s"] + memory_s


def sample_seconds(constants: Constants, vocab_size: Numbers | float) -> Numbers | float:
    """Launch + one block's walk over its row of logits; rows go side by side.

    Source: this project's sweep: 8.5 us for a vocabulary of 32,000, one row or 128.
    """
    return constants["launch_s"] + vocab_size * constants["seconds_per_logit"]

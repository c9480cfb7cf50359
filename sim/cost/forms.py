"""The physics forms: seconds of an op from its dimensions, its traffic and fitted constants.

Each form works on numbers and on numpy arrays alike, so the fit and the simulator use the same
lines. Traffic is split into bytes that miss to HBM and bytes the L2 serves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from layerwise.sim.plan.ops import SKINNY_COLUMNS, SKINNY_INNER, skinny_splits

# Two programs of the skinny matmul's four stages of weights fit an SM's shared memory.
SKINNY_PER_SM = 2

Numbers = npt.NDArray[np.float64]
Constants = Mapping[str, float]

# Output tiles (rows, columns) of cuBLAS' Hopper kernels, and split-k factors.
# Source: kernel names in CUPTI traces of torch.mm on H100: 64, 128, 192 or 256 by a multiple of 8,
# of which these leave a factor of 1.5 at most between neighbours.
_WIDTHS = {
    64: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256),
    128: (32, 48, 64, 72, 80, 88, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256),
    192: (96, 128, 160, 192),
    256: (64, 80, 96, 112, 128),
}
TILES = tuple((rows, columns) for rows, widths in _WIDTHS.items() for columns in widths)
SPLITS = (1, 2, 4, 8)
K_STEP = 64
_CONFIGS = np.array([(m, n, s) for m, n in TILES for s in SPLITS], dtype=np.float64)

# Decode attention walks tiles of so many keys, and splits a long cache over idle SMs.
# Source: this project's sweep: times step with every 64 keys, never more than once per SM.
KEY_TILE = 64
_KEY_SPLITS = np.array((1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64), dtype=np.float64)
# How well a tile's latency hides behind the cache's bytes. Left free it is fitted between 2 and
# 3.4, at an HBM rate that moves with it; at 3 that rate is the one that reads alone reach.
DECODE_OVERLAP = 3.0

# Prefill attention: a tile of queries goes to a block.
QUERY_TILE = 128
# FlashAttention 2 keeps two blocks on an SM, and splits keys, over tiles of 64 queries, where
# these leave a fifth of the places empty. Source: `num_splits_heuristic` and
# `set_params_splitkv` in Dao-AILab/flash-attention, csrc/flash_attn/flash_api.cpp.
BLOCKS_PER_SM = 2
# In heads of 256, so that two blocks still fit a Hopper SM. Source: `run_mha_fwd_hdim256` in
# Dao-AILab/flash-attention, csrc/flash_attn/src/flash_fwd_launch_template.h.
WIDE_HEADS_QUERY_TILE = 64
SPLIT_QUERY_TILE, SPLIT_KEY_TILE = 64, 128
MAX_KEY_SPLITS = 128
FULL_ENOUGH, GOOD_ENOUGH = 0.8, 0.85


def memory_seconds(
    constants: Constants, hbm_bytes: Numbers | float, l2_bytes: Numbers | float
) -> Numbers | float:
    """Harmonic mix: misses at the HBM rate and hits at the L2 rate follow one another.

    Source: of the combinations tried on public L2 curves the harmonic one fits best.
    """
    return hbm_bytes / constants["hbm_bytes_per_s"] + l2_bytes / constants["l2_bytes_per_s"]


def ramp(reuse_distance_bytes: float, full_hit_bytes: float, no_hit_bytes: float) -> float:
    """Hit fraction: all of it up to one distance, nothing from another on, a line between."""
    reach = no_hit_bytes - reuse_distance_bytes
    return min(1.0, max(0.0, reach / (no_hit_bytes - full_hit_bytes)))


def pass_seconds(constants: Constants, sizes_bytes: Numbers, l2_bytes: int) -> Numbers:
    """One pass of a read kernel over working sets of `sizes_bytes` that it has passed over before.

    Launch + (1 - h) HBM latency + size (h / L2 rate + (1 - h) / HBM rate): each byte is used again
    after as many others as the set has. `constants` are a profile's machine constants.
    """
    reach = constants["l2_no_hit"] - sizes_bytes / l2_bytes
    hit = np.clip(reach / (constants["l2_no_hit"] - constants["l2_full_hit"]), 0, 1)
    hit_s = sizes_bytes / constants["read_l2_bytes_per_s"]
    miss_s = constants["read_miss_s"] + sizes_bytes / constants["read_hbm_bytes_per_s"]
    return constants["read_launch_s"] + hit * hit_s + (1 - hit) * miss_s


def matmul_seconds(
    constants: Constants,
    rows: Numbers,
    columns: Numbers,
    inner: Numbers,
    hbm_bytes: Numbers,
    l2_bytes: Numbers,
    *,
    num_sms: int,
    peak_flops_per_s: float,
) -> tuple[Numbers, Numbers, Numbers]:
    """Best tile and split-k of: launch + p-norm(waves of tiles, memory). Arrays [points].

    cuBLAS lays the smaller side of the output on the tile's columns for few rows, so both
    orientations of a tile count. A tile is a prologue, its steps along `inner` at the pace of its
    FLOPs or of its loads, and the write of its output. Returns (seconds, of these the tiles' FLOPs
    alone, and the tiles' prologue and loads alone).
    """
    tile_m, tile_n, split = _CONFIGS.T
    m, n, k = (np.asarray(x, dtype=np.float64)[:, None] for x in (rows, columns, inner))
    upright = np.ceil(m / tile_m) * np.ceil(n / tile_n)
    turned = np.ceil(m / tile_n) * np.ceil(n / tile_m)
    waves = np.ceil(np.minimum(upright, turned) * split / num_sms)
    steps = np.ceil(k / split / K_STEP)
    sm_flops_per_s = peak_flops_per_s / num_sms * constants["efficiency"]
    flops_s = 2 * K_STEP * tile_m * tile_n / sm_flops_per_s
    load_s = 2 * K_STEP * (tile_m + tile_n) / constants["sm_bytes_per_s"]
    ends_s = constants["prologue_s"] + 2 * tile_m * tile_n / constants["epilogue_bytes_per_s"]
    tiles_s = waves * (ends_s + steps * np.maximum(flops_s, load_s))
    # Partial sums in float32 are written and read again.
    reduction_s = 4 * m * n * split / constants["reduction_bytes_per_s"]
    split_s = np.where(split > 1, constants["split_s"] + reduction_s, 0.0)
    power = constants["power"]
    memory = np.asarray(memory_seconds(constants, hbm_bytes, l2_bytes))[:, None]
    total = (tiles_s**power + memory**power) ** (1 / power) + split_s
    best = np.argmin(total, axis=1)
    pick = np.arange(len(best))
    flops_only_s = waves * steps * flops_s
    loads_only_s = waves * (constants["prologue_s"] + steps * load_s)
    first_s = constants["launch_s"] + constants["miss_s"] * miss_share(hbm_bytes, l2_bytes)
    return first_s + total[pick, best], flops_only_s[pick, best], loads_only_s[pick, best]


def skinny_matmul_seconds(
    constants: Constants,
    columns: Numbers,
    inner: Numbers,
    hbm_bytes: Numbers,
    l2_bytes: Numbers,
    *,
    num_sms: int,
) -> Numbers:
    """Launch + p-norm(waves of programs, memory), for the engine's own launches. Arrays [points].

    A program takes its steps along `inner`; the last of several that share a tile adds up their
    parts.
    """
    splits = np.array(
        [skinny_splits(int(n), int(k), num_sms) for n, k in zip(columns, inner, strict=True)]
    )
    waves = np.ceil(columns / SKINNY_COLUMNS * splits / (SKINNY_PER_SM * num_sms))
    steps = inner / SKINNY_INNER / splits
    walk_s = waves * steps * constants["step_s"]
    memory = np.asarray(memory_seconds(constants, hbm_bytes, l2_bytes))
    power = constants["power"]
    total = (walk_s**power + memory**power) ** (1 / power)
    first_s = constants["launch_s"] + constants["miss_s"] * miss_share(hbm_bytes, l2_bytes)
    return first_s + total + np.where(splits > 1, constants["split_s"], 0.0)


def decode_attention_seconds(
    constants: Constants,
    sequences_times_kv_heads: Numbers,
    context_tokens: Numbers,
    hbm_bytes: Numbers,
    l2_bytes: Numbers,
    *,
    num_sms: int,
    in_one_wave: bool = False,
) -> Numbers:
    """Launch + p-norm(waves of key tiles, the KV cache's bytes) at the best split. Arrays [points].

    Each (sequence, head) walks its keys tile by tile; a split gives them to several SMs, at the
    price of merging. A first read that misses waits for HBM. `in_one_wave`: only splits that leave
    all walks in one wave are taken, as cuDNN does in heads of 64 and 256.
    """
    units, context = (np.asarray(x)[:, None] for x in (sequences_times_kv_heads, context_tokens))
    tiles = np.ceil(context / KEY_TILE)
    walks = np.ceil(units * _KEY_SPLITS / num_sms) * np.ceil(tiles / _KEY_SPLITS)
    most = np.minimum(tiles, np.maximum(1.0, num_sms / units)) if in_one_wave else tiles
    walks_s = np.where(most < _KEY_SPLITS, np.inf, walks * constants["tile_s"])
    memory = np.asarray(memory_seconds(constants, hbm_bytes, l2_bytes))[:, None]
    both_s = (walks_s**DECODE_OVERLAP + memory**DECODE_OVERLAP) ** (1 / DECODE_OVERLAP)
    total = both_s + np.where(_KEY_SPLITS > 1, constants["split_s"], 0.0)
    first_s = constants["launch_s"] + constants["miss_s"] * miss_share(hbm_bytes, l2_bytes)
    return first_s + np.min(total, axis=1)


def miss_share(hbm_bytes: Numbers, l2_bytes: Numbers) -> Numbers:
    """Share of an op's memory traffic that goes to HBM; 0 where there is none."""
    total = np.asarray(hbm_bytes + l2_bytes, dtype=np.float64)
    return np.asarray(hbm_bytes, dtype=np.float64) / np.maximum(total, 1.0)


def prefill_attention_seconds(
    constants: Constants,
    sequences_times_heads: Numbers,
    query_tokens: Numbers,
    context_tokens: Numbers,
    head_dim: Numbers,
    *,
    num_sms: int,
    peak_flops_per_s: float,
) -> Numbers:
    """Launch + all tiles spread over the SMs, at least one each, + the longest tile as a tail.

    Source: the bound of list scheduling (Graham 1969), total / machines + longest.
    """
    sm_flops_per_s = peak_flops_per_s * constants["efficiency"] / num_sms
    tiles = np.ceil(np.asarray(query_tokens) / QUERY_TILE)
    mean, longest = _tile_flops(QUERY_TILE, query_tokens, context_tokens, head_dim)
    waves = np.maximum(1.0, np.asarray(sequences_times_heads) * tiles / num_sms)
    tail_s = constants["tail"] * (longest - mean) / sm_flops_per_s
    spread_s = waves * (constants["block_s"] + mean / sm_flops_per_s)
    return constants["launch_s"] + spread_s + tail_s


def chunk_attention_seconds(
    constants: Constants,
    sequences_times_heads: Numbers,
    query_tokens: Numbers,
    context_tokens: Numbers,
    head_dim: Numbers,
    *,
    num_sms: int,
    peak_flops_per_s: float,
    query_tile: int = QUERY_TILE,
) -> Numbers:
    """FlashAttention 2 over a chunk: launch + waves of blocks, two to an SM, + a tail + a merge.

    A lone block on an SM takes the share `solo` of the time of two. Blocks of equal length run in
    whole waves; the more they differ, the better they fill each other's gaps.
    """
    splits = flash_splits(sequences_times_heads, query_tokens, context_tokens, num_sms)
    is_split = splits > 1
    tile = np.where(is_split, SPLIT_QUERY_TILE, query_tile)
    places = num_sms * BLOCKS_PER_SM
    rate = peak_flops_per_s * constants["efficiency"] / places
    rate = rate * np.where(is_split, constants["split_efficiency"], 1.0)
    mean, longest = _tile_flops(tile, query_tokens, context_tokens, head_dim)
    mean_s, longest_s = mean / splits / rate, longest / splits / rate
    blocks = np.asarray(sequences_times_heads) * np.ceil(query_tokens / tile) * splits
    whole = np.where(blocks <= num_sms, constants["solo"], np.ceil(blocks / places))
    mixed = np.maximum(constants["solo"], blocks / places)
    uneven = np.minimum(1.0, 3 * (longest_s / mean_s - 1))
    waves = (1 - uneven) * whole + uneven * mixed
    total_s = waves * (constants["block_s"] + mean_s) + constants["tail"] * (longest_s - mean_s)
    return constants["launch_s"] + total_s + np.where(is_split, constants["split_s"], 0.0)


def _tile_flops(
    tile: Numbers | int, query_tokens: Numbers, context_tokens: Numbers, head_dim: Numbers
) -> tuple[Numbers, Numbers]:
    """FLOPs of the mean and of the longest tile of queries, each against what it sees."""
    tiles = np.ceil(np.asarray(query_tokens) / tile)
    before = np.asarray(context_tokens) - np.asarray(query_tokens)
    visible = np.minimum(before + tile * (tiles + 1) / 2, context_tokens)
    per_key = 4.0 * tile * np.asarray(head_dim)
    return per_key * visible, per_key * np.asarray(context_tokens)


def flash_splits(
    sequences_times_heads: Numbers, query_tokens: Numbers, context_tokens: Numbers, num_sms: int
) -> Numbers:
    """Into how many parts FlashAttention 2 splits the keys of each point."""
    points = zip(
        np.ravel(sequences_times_heads).tolist(),
        np.ravel(query_tokens).tolist(),
        np.ravel(context_tokens).tolist(),
        strict=True,
    )
    return np.array(
        [
            _flash_splits(
                int(heads) * math.ceil(query / SPLIT_QUERY_TILE),
                math.ceil(context / SPLIT_KEY_TILE),
                num_sms * BLOCKS_PER_SM,
            )
            for heads, query, context in points
        ],
        dtype=np.float64,
    )


@lru_cache(maxsize=4096)
def _flash_splits(blocks: int, key_tiles: int, places: int) -> int:
    """The least split that fills waves nearly as well as the best one."""
    if blocks >= FULL_ENOUGH * places:
        return 1
    filled = {
        splits: blocks * splits / places / math.ceil(blocks * splits / places)
        for splits in range(1, min(MAX_KEY_SPLITS, places, key_tiles) + 1)
        if splits == 1 or math.ceil(key_tiles / splits) != math.ceil(key_tiles / (splits - 1))
    }
    most = max(filled.values())
    return min(splits for splits, share in filled.items() if share >= GOOD_ENOUGH * most)


def sample_seconds(constants: Constants, vocab_size: Numbers | float) -> Numbers | float:
    """Launch + one block's walk over its row of logits; rows go side by side.

    Source: this project's sweep: 8.5 us for a vocabulary of 32,000, one row or 128.
    """
    return constants["launch_s"] + vocab_size * constants["seconds_per_logit"]

from __future__ import annotations

import numpy as np
import pytest

from layerwise.sim.cost.forms import (
    chunk_attention_seconds,
    decode_attention_seconds,
    flash_splits,
    matmul_seconds,
    miss_share,
    prefill_attention_seconds,
)
from tests.synthetic import FORMS

SMS, PEAK = 132, 989.4e12
MATMUL, DECODE = FORMS["matmul"], FORMS["decode_attention"]
PREFILL, CHUNK = FORMS["prefill_attention"], FORMS["chunked_prefill_attention"]


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def matmul(rows: float, columns: float, inner: float, hbm: float, l2: float) -> float:
    one = (numbers(x) for x in (rows, columns, inner, hbm, l2))
    return float(matmul_seconds(MATMUL, *one, num_sms=SMS, peak_flops_per_s=PEAK)[0][0])


def decode(units: float, context: float, hbm: float, l2: float) -> float:
    one = (numbers(x) for x in (units, context, hbm, l2))
    return float(decode_attention_seconds(DECODE, *one, num_sms=SMS)[0])


def chunk(heads: float, query: float, context: float) -> float:
    one = (numbers(x) for x in (heads, query, context, 128.0))
    return float(chunk_attention_seconds(CHUNK, *one, num_sms=SMS, peak_flops_per_s=PEAK)[0])


def test_tiny_matmul_is_a_launch_and_one_tile() -> None:
    loads_s = 2 * 64 * (64 + 8) / MATMUL["sm_bytes_per_s"]
    ends_s = MATMUL["prologue_s"] + 2 * 64 * 8 / MATMUL["epilogue_bytes_per_s"]

    assert MATMUL["launch_s"] + ends_s + loads_s == pytest.approx(matmul(1, 8, 64, 0, 0))


def test_first_miss_of_a_matmul_waits_for_hbm() -> None:
    assert MATMUL["miss_s"] == pytest.approx(matmul(1, 8, 64, 1, 0) - matmul(1, 8, 64, 0, 1))


def test_each_wave_of_a_matmul_has_a_prologue_of_its_own() -> None:
    free = dict.fromkeys(("efficiency", "sm_bytes_per_s", "epilogue_bytes_per_s"), np.inf)
    # The largest tiles cover 256 x 128: two on every SM.
    sides = (numbers(x) for x in (2 * SMS * 256, 128, 64, 0, 0))
    found, _, _ = matmul_seconds(
        MATMUL | free | {"launch_s": 1e-6, "prologue_s": 2e-6},
        *sides,
        num_sms=SMS,
        peak_flops_per_s=PEAK,
    )

    assert 1e-6 + 2 * 2e-6 == pytest.approx(float(found[0]))


def test_short_cache_is_walked_tile_by_tile() -> None:
    one, two = decode(8, 64, 0, 0), decode(8, 65, 0, 0)

    assert DECODE["tile_s"] == pytest.approx(two - one)


def test_tile_as_long_as_its_bytes_hides_behind_them_but_for_a_cube_root_of_two() -> None:
    tile_s = DECODE["tile_s"]
    found = decode(SMS, 64, 0, tile_s * DECODE["l2_bytes_per_s"])

    assert DECODE["launch_s"] + 2 ** (1 / 3) * tile_s == pytest.approx(found)


def test_long_cache_of_few_heads_is_split_over_idle_sms() -> None:
    walked_s = DECODE["launch_s"] + 256 * DECODE["tile_s"]

    assert decode(1, 256 * 64, 0, 0) < 0.2 * walked_s
    assert decode(SMS, 256 * 64, 0, 0) == pytest.approx(walked_s)


def test_long_prompts_are_computed_at_the_fitted_share_of_peak() -> None:
    tokens = numbers(65_536)
    found = prefill_attention_seconds(
        PREFILL, numbers(64), tokens, tokens, numbers(128), num_sms=SMS, peak_flops_per_s=PEAK
    )
    flops = 2 * 64 * 128 * 65_536**2

    assert flops / (PEAK * PREFILL["efficiency"]) == pytest.approx(float(found[0]), rel=0.02)


@pytest.mark.parametrize(
    ("heads", "query", "context", "splits"),
    [
        # 8 blocks of 64 queries a head: 256 of 264 places are taken, enough not to split.
        (32, 512, 16_384, 1),
        # 64 blocks: four times as many fill the places again, and three do not quite.
        (8, 512, 16_384, 4),
        # No more parts than there are tiles of keys.
        (1, 64, 256, 2),
    ],
)
def test_flash_attention_splits_keys_where_places_are_empty(
    heads: int, query: int, context: int, splits: int
) -> None:
    found = flash_splits(numbers(heads), numbers(query), numbers(context), SMS)

    assert [splits] == found.tolist()


def test_lone_blocks_run_faster_than_pairs() -> None:
    alone, pairs = chunk(SMS, 128, 32_768), chunk(2 * SMS, 128, 32_768)

    assert CHUNK["solo"] == pytest.approx(alone / pairs, rel=0.02)


def test_wave_of_one_block_more_is_paid_in_full() -> None:
    one, more = chunk(2 * SMS, 128, 32_768), chunk(2 * SMS + 1, 128, 32_768)

    assert 2 == pytest.approx(more / one, rel=0.02)


def test_nothing_moved_misses_nothing() -> None:
    assert [0.0, 0.25] == miss_share(numbers(0, 1), numbers(0, 3)).tolist()

"""Sizes of the read curve: what scores it was never fitted."""

from __future__ import annotations

from layerwise.calibration.selection import FIT_SIZES_BYTES, SCORED_SIZES_BYTES

MIB = 2**20


def test_sizes_that_score_are_not_sizes_that_fit() -> None:
    assert not set(FIT_SIZES_BYTES) & set(SCORED_SIZES_BYTES)


def test_sizes_that_fit_are_those_of_the_committed_curve() -> None:
    assert (37, 2 * MIB, 1024 * MIB) == (
        len(FIT_SIZES_BYTES),
        FIT_SIZES_BYTES[0],
        FIT_SIZES_BYTES[-1],
    )


def test_scored_sizes_span_the_l2_and_are_finer_at_its_edge() -> None:
    edge = [size for size in SCORED_SIZES_BYTES if 35 * MIB < size < 53 * MIB]

    assert (MIB, 2048 * MIB) == (SCORED_SIZES_BYTES[0], SCORED_SIZES_BYTES[-1])
    assert list(SCORED_SIZES_BYTES) == sorted(SCORED_SIZES_BYTES)
    assert 12 == len(edge)

"""How many repeats a regime asks for; what needs a GPU is measured on one."""

from __future__ import annotations

import pytest

from layerwise.hw.instrument import regimes
from layerwise.hw.instrument.power import repeats_for
from layerwise.hw.ranks.session import alone


@pytest.mark.parametrize(
    ("repeat_s", "asked", "expected"), [(1e-3, 30, 20), (1e-3, 8, 8), (0.3, 30, 1)]
)
def test_a_burst_is_over_in_time_and_has_a_repeat_at_least(
    repeat_s: float, asked: int, expected: int
) -> None:
    assert expected == regimes.repeats_of_burst(alone("cpu"), repeat_s, asked)


def test_repeats_last_as_long_as_is_wanted() -> None:
    assert 2200 == repeats_for(alone("cpu"), "settling", 2.0, 1e-3)
    assert 0 == repeats_for(alone("cpu"), "none", 0.0, 1e-3)

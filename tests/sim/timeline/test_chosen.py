"""What is left out, in words. (What is kept: test_writing.)"""

from __future__ import annotations

import pytest

from layerwise.sim.timeline.chosen import Panel, _listed, choose
from layerwise.sim.timeline.clocks import StepKey
from layerwise.sim.timeline.sides import PredictedSide
from tests.sim.timeline.test_writing import measured, simulated


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([2], "step 2"),
        ([0, 1], "steps 0 and 1"),
        ([3, 4, 5], "steps 3 to 5"),
        ([0, 3, 4, 5, 7], "steps 0, 3 to 5 and 7"),
    ],
)
def test_numbers_in_a_row_are_one_phrase(numbers: list[int], said: str) -> None:
    assert said == _listed("step", numbers)


def test_steady_steps_of_both_sides_come_first() -> None:
    side = PredictedSide(simulated())
    panels = [Panel(name="", sides=[side, measured(side)])]
    everything = choose(panels, 10**6)
    assert side.steps == everything.steps[0, 0]
    assert () == everything.left_out
    least = choose(panels, 400)
    assert {(0, 0): (StepKey(0, 2),), (0, 1): (StepKey(0, 2),)} == least.steps
    assert side.ranks == least.ranks[0, 0] == least.ranks[0, 1]

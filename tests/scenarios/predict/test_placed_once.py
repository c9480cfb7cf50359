"""A prediction places its model once, whatever is asked about it."""

from __future__ import annotations

from typing import Any

import pytest

from layerwise.scenarios.command_line import main
from layerwise.sim.plan import scenario
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.placement import Placement


@pytest.fixture
def placements(monkeypatch: pytest.MonkeyPatch) -> list[Placement]:
    """Keep every layer-wise placement that is made, whichever module asks for it."""
    made: list[Placement] = []
    place = scenario.layer_wise

    def counted(model: ModelSpec, **keys: Any) -> Placement:
        made.append(place(model, **keys))
        return made[-1]

    monkeypatch.setattr(scenario, "layer_wise", counted)
    return made


@pytest.mark.parametrize("options", [[], ["--json"], ["--tokens", "20"]])
def test_three_beliefs_of_a_scenario_are_placed_once(
    placements: list[Placement], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["predict", "validation/stage-8", *options])

    assert 0 == ended.value.code
    assert "uncalibrated" in capsys.readouterr().out
    # Its file is checked by placing it, and the plan of it is placed.
    assert 2 == len(placements)

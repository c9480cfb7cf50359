"""Commands that neither fit, measure nor draw import without the packages for that."""

from __future__ import annotations

import pytest

from tests.sim.test_imports import run_without

EXTRAS = ("torch", "scipy", "matplotlib", "plotly", "distributed", "pyarrow")


@pytest.mark.parametrize(
    "module",
    [
        "command_line",
        "paper.experiment",
        "predict.beliefs",
        "predict.generated",
        "rank.ranking",
        "compare.choosing",
        "accuracy.scoring",
        "accuracy.ledger_update",
        "sweep.command",
        "what_if.runner",
        "measure.doctoring",
        "calibrate.here",
        "report.making",
    ],
)
def test_command_imports_without_extras(module: str) -> None:
    result = run_without(EXTRAS, f"import layerwise.scenarios.{module}")

    assert (0, "") == (result.returncode, result.stderr)

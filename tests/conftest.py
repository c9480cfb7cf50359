"""Settings of the whole test run, and the command line run in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings

# The same examples on every run: a red run can be repeated.
settings.register_profile("layerwise", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("layerwise")
# Tables as wide as anywhere, whatever terminal the tests were started from.
os.environ["COLUMNS"] = "100"


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def layerwise(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process."""
    from layerwise.scenarios.command_line import main

    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, captured.err)

    return run

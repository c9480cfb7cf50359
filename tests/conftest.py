"""Settings of the whole test run, and the command line run in this process."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run: a red run can be repeated.
settings.register_profile("layerwise", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("layerwise")
# Tables as wide as anywhere, whatever terminal the tests were started from.
os.environ["COLUMNS"] = "100"
# A test has one core: threads of BLAS and torch, and of ranks that tests start, only wait for it.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

TESTS = Path(__file__).parent
# What is covered is counted by the tests that mirror it: tracing doubles the time of all the others.
COVERING = (TESTS / "sim", TESTS / "calibration")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Trace lines only where the simulator and the fits are tested for their own sake."""
    for item in items:
        if not any(item.path.is_relative_to(folder) for folder in COVERING):
            item.add_marker("no_cover")


@pytest.fixture(autouse=True, scope="module")
def collect_what_came_since() -> None:
    """Let no collection walk what earlier files left: by then torch and half a gigabyte more.

    A full one took a second and more, and the engine asks for one after each run.
    """
    gc.collect()
    gc.freeze()


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

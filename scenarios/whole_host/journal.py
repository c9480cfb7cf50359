"""What a host's run has done so far: one small file, written whole after each stage."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.reading import read_json
from layerwise.sim.trace import write_atomically


@dataclass(frozen=True, kw_only=True)
class StageDone:
    """One stage in one call: what it took beside what was expected, and what it left."""

    stage: str
    call: int
    took_s: float
    expected_s: float
    problem: str = ""
    left: str = ""


@dataclass
class Journal:
    """The stages of all calls with one output folder, in order, and the clock of this call."""

    path: Path
    budget_s: float
    done: list[StageDone] = field(default_factory=list[StageDone])
    started_s: float = field(default_factory=monotonic)
    call: int = 1

    @property
    def left_s(self) -> float:
        """What this call may still take."""
        return self.budget_s - (monotonic() - self.started_s)

    @contextmanager
    def stage(self, name: str, expected_s: float) -> Generator[list[str]]:
        """Take note of a stage; what it yields holds what the stage leaves undone, in words.

        An error is noted and goes no further: what comes after does without.
        """
        begun_s, left = monotonic(), list[str]()
        problem = ""
        try:
            yield left
        except Exception as error:  # noqa: BLE001 - one stage never costs the others
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        self.done.append(
            StageDone(
                stage=name,
                call=self.call,
                took_s=round(monotonic() - begun_s, 2),
                expected_s=round(expected_s, 2),
                problem=problem,
                left="; ".join(left),
            )
        )
        self._write()

    def _write(self) -> None:
        data: dict[str, Any] = {"stages": [asdict(one) for one in self.done]}
        write_atomically(self.path, json.dumps(data, indent=1) + "\n")


def open_journal(path: Path, budget_s: float) -> Journal:
    """The journal of an output folder; what earlier calls noted stays. Raises FileFormatError."""
    done = read_stages(path) if path.exists() else []
    call = 1 + max((one.call for one in done), default=0)
    return Journal(path=path, budget_s=budget_s, done=done, call=call)


def read_stages(path: Path) -> list[StageDone]:
    """The stages noted in a file. Raises FileFormatError."""
    try:
        return [StageDone(**one) for one in read_json(path)["stages"]]
    except (KeyError, TypeError) as error:
        raise FileFormatError(f"{path}: is no journal of a host's run: {error!r}") from error

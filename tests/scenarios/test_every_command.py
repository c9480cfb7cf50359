"""What holds for all commands: JSON that parses, exit codes, tables that lose nothing when narrow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from layerwise.hw.options import Options
from layerwise.scenarios.command_line import COMMANDS
from layerwise.sim.profile import Profile, write_profile
from layerwise.sim.trace import write_trace
from tests.scenarios.conftest import Ran, Run, fake_trace

ROOT = Path(__file__).parents[2]
WIDE, NARROW = 100, 80
SCENARIO = '[model]\npreset = "paper-16"\n[workload]\nnum_microbatches = 16\n'
SWEEP = '[base]\npaper = "layer-wise"\n[axes]\n"workload.num_microbatches" = [16, 32]\n'


@dataclass(frozen=True)
class Files:
    """What commands are asked about, in a folder of its own."""

    folder: Path
    profile: Path
    scenario: Path
    sweep: Path
    trace: Path
    partial: Path


@pytest.fixture
def files(tmp_path: Path, profile: Profile, profile_file: Path) -> Files:
    made = Files(
        tmp_path,
        profile_file,
        *(tmp_path / name for name in ("s.toml", "sweep.toml", "t.jsonl", "r.jsonl.partial")),
    )
    made.partial.mkdir()
    made.scenario.write_text(SCENARIO)
    made.sweep.write_text(SWEEP)
    write_trace(fake_trace(profile), made.trace)
    return made


# A cheap question to each command.
QUESTIONS: dict[str, Callable[[Files], tuple[object, ...]]] = {
    "paper": lambda f: ("--profile", f.profile),
    "predict": lambda f: (f.scenario, "--tokens", 2, "--profile", f.profile),
    "rank": lambda f: ("--model", "paper-16", "--gpus", 2, "--batch", 4, "--profile", f.profile),
    "what-if": lambda f: ("microbatches", "--axis=num_microbatches=16,32"),
    "sweep": lambda f: (f.sweep, "--out", f.folder / "rows.csv", "--workers", 1),
    "doctor": lambda f: ("--quick", "--device", "cpu"),
    "measure": lambda f: (f.scenario, "--out", f.folder / "out.jsonl"),
    "recover": lambda f: (f.partial,),
    "compare": lambda f: ("--measured", f.trace, "--profile", f.profile),
    "calibrate": lambda f: ("--fit", f.folder, "--out", f.folder / "p.json"),
    "accuracy": lambda f: ("--gpu", "h200"),
    "links": lambda f: ("--out", f.folder / "links.json"),
    "overlap": lambda f: ("--out", f.folder / "overlap.json"),
    "counters": lambda f: (f.scenario, "--out", f.folder / "counters.json"),
    "figures": lambda f: ("--out", f.folder / "figures.json"),
    "host": lambda f: ("--gpus", 2, "--device", "cpu", "--predict-only", f.folder / "host.json"),
    "report": lambda f: (f.scenario, "--out", f.folder / "r.html", "--profile", f.profile),
    "explore": lambda f: ("--port", 0),
    "shipped": lambda f: (),
    "schema": lambda f: (),
}
# The others print no table (on stderr, or an address), or another one when asked again (sweep).
TABLES = ("paper", "predict", "rank", "what-if", "doctor", "compare", "accuracy")
GATES = ("compare", "accuracy")


@pytest.fixture
def ask(
    layerwise: Run, files: Files, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Put its question to a command; what needs a GPU or a browser only says that it was done."""

    def measure_to(_scenario: object, options: Options) -> str:
        assert options.out
        write_trace(fake_trace(profile), options.out)
        return f"{options.out}: written"

    def take_figures(request: Any) -> list[object]:
        request.out.write_text("{}")
        return []

    def calibrate(given: Any, *_: object) -> str:
        write_profile(profile, given.out)
        return "done"

    def serve(_profiles: object, _models: object, _port: int, tell: Callable[[str], None]) -> None:
        tell("http://127.0.0.1:1/")

    monkeypatch.setattr("layerwise.scenarios.measure.measuring.measure_to", measure_to)
    monkeypatch.setattr("layerwise.hw.links.measuring.time_links", lambda *_: 3)
    monkeypatch.setattr("layerwise.hw.links.overlap.time_overlap", lambda *_: 3)
    monkeypatch.setattr("layerwise.hw.counters.counting.count_to", lambda *_: {"num_ops": 3})
    monkeypatch.setattr("layerwise.hw.figures.run.take_figures", take_figures)
    monkeypatch.setattr("layerwise.scenarios.calibrate.calibrating.calibrate", calibrate)
    monkeypatch.setattr("layerwise.scenarios.report.making.serve", serve)
    return lambda name, *more: layerwise(name, *QUESTIONS[name](files), *more)


def test_every_command_has_its_question() -> None:
    assert set(COMMANDS) == set(QUESTIONS)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


# A schema is of another format; names of files and an address are of none.
OWN_FORMAT = ("schema", "shipped", "explore")


@pytest.mark.parametrize("name", QUESTIONS)
def test_json_is_all_that_is_on_standard_output(ask: Callable[..., Ran], name: str) -> None:
    ran = ask(name, "--json")

    assert ran.code in ((0, 1) if name in GATES else (0,)), ran.err
    said = json.loads(ran.out, parse_constant=_refuse)
    assert isinstance(said, dict)
    if name not in OWN_FORMAT:
        assert (True, 1) == (said["format"].startswith("layerwise-"), said["version"])


@pytest.mark.parametrize("name", TABLES)
def test_tables_fit_and_lose_nothing_where_it_is_narrow(
    ask: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    said: dict[int, str] = {}
    for columns in (WIDE, NARROW):
        monkeypatch.setenv("COLUMNS", str(columns))
        said[columns] = ask(name).out
    wide, narrow = (Counter("".join(text.split())) for text in said.values())

    assert max(map(len, said[WIDE].splitlines())) <= WIDE
    assert wide == narrow


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_unknown_option_is_bad_input(layerwise: Run, name: str) -> None:
    ran = layerwise(name, "--no-such-option")

    assert (2, "") == (ran.code, ran.out)
    assert "No such option" in ran.err


def test_a_gate_that_fails_is_one(layerwise: Run, files: Files, profile: Profile) -> None:
    write_trace(fake_trace(profile, slower=1.5), files.trace)

    assert 1 == layerwise("compare", "--measured", files.trace, "--profile", files.profile).code


@pytest.mark.parametrize("after_s", [0.5, 2.0])
def test_ctrl_c_ends_a_command_and_its_processes_at_once_without_a_word(after_s: float) -> None:
    arguments = ("rank", "--model", "paper-30b", "--gpus", "128")
    code = "from layerwise.scenarios.rank import ranking, workers; workers.available_workers = lambda: 2; "
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{code}from layerwise.scenarios.command_line import main; main()",
            *arguments,
        ],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 30
    while not children.read_text() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)

    assert (130, "", "") == (process.returncode, out, err)

"""The command itself: help that fits a screen, exit codes, JSON, units, names that are only text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer.main

from layerwise.hw.options import Options
from layerwise.scenarios import tables
from layerwise.scenarios.command_line import COMMANDS, app_for
from layerwise.sim.plan.files import load_gpu, load_scenario, scenario_json_schema
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.profile import Profile, write_profile
from layerwise.sim.trace import as_data, write_trace
from tests.scenarios.conftest import Run, fake_trace

MOST_LINES, WIDTH = 40, 100
# On an idle machine 0.2 s; the bar of 0.5 s with room for the neighbours of a CI machine.
COLD_START_S = 0.8
ROOT = Path(__file__).parents[2]
HOSTILE = "<script>[red]x[/red]\x1b[31m\x07\u202e"
SHOWN = "<script>[red]x[/red]\\x1b[31m\\x07\\u202e"
SCENARIO = '[model]\npreset = "paper-16"\n[workload]\nnum_microbatches = 16\n'


def fresh(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "layerwise.scenarios.command_line", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_fits_a_screen(layerwise: Run, command: tuple[str, ...]) -> None:
    lines = layerwise(*command, "--help").out.splitlines()
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= WIDTH


def test_no_line_of_the_help_is_cut_short(layerwise: Run) -> None:
    _, _, commands = layerwise("--help").out.partition("Commands:")
    assert "..." not in commands


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(layerwise: Run, name: str) -> None:
    assert f"Example: layerwise {name}" in layerwise(name, "--help").out


def test_every_command_of_the_project_is_there() -> None:
    wanted = {
        "paper",
        "predict",
        "measure",
        "compare",
        "calibrate",
        "accuracy",
        "rank",
        "sweep",
        "what-if",
        "report",
        "explore",
        "doctor",
        "schema",
        "links",
        "overlap",
        "counters",
        "figures",
        "host",
        "recover",
        "shipped",
    }
    assert wanted <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json(name: str) -> None:
    commands: dict[str, Any] = getattr(typer.main.get_command(app_for([name])), "commands", {})

    assert "--json" in [option for each in commands[name].params for option in each.opts]


def test_a_shell_that_completes_knows_the_options_of_every_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("_LAYERWISE_COMPLETE", "complete_bash")
    commands: dict[str, Any] = getattr(typer.main.get_command(app_for([])), "commands", {})

    assert [] == [name for name in COMMANDS if not commands[name].params]


def test_help_says_what_exit_codes_mean(layerwise: Run) -> None:
    said = " ".join(layerwise("--help").out.split())
    assert "0 an answer" in said
    assert "1 a gate failed" in said
    assert "2 bad input" in said


def test_version(layerwise: Run) -> None:
    ran = layerwise("--version")
    assert 0 == ran.code
    assert ran.out.startswith("layerwise")


@pytest.mark.parametrize(("typed", "meant"), [("predct", "predict"), ("whatif", "what-if")])
def test_a_misspelt_command_names_the_nearest(layerwise: Run, typed: str, meant: str) -> None:
    ran = layerwise(typed)
    assert 2 == ran.code
    assert meant in ran.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    ran = fresh(_LAYERWISE_COMPLETE=f"source_{shell}")
    assert 0 == ran.returncode
    assert "complet" in ran.stdout


def test_completion_completes_a_command() -> None:
    ran = fresh(
        _LAYERWISE_COMPLETE="complete_bash",
        COMP_WORDS="layerwise acc",
        COMP_CWORD="1",
    )
    assert "accuracy" == ran.stdout.strip()


def test_help_starts_at_once() -> None:
    def seconds() -> float:
        began_s = time.perf_counter()
        assert 0 == fresh("--help").returncode
        return time.perf_counter() - began_s

    assert min(seconds() for _ in range(5)) < COLD_START_S


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from layerwise.scenarios.command_line import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'numpy', 'pydantic', 'rich', 'simpy', 'scipy', 'torch'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "[]" == ran.stdout.splitlines()[-1]


def test_colour_only_on_a_terminal(layerwise: Run, tmp_path: Path, profile_file: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    ran = layerwise("predict", path, "--profile", profile_file)
    assert 0 == ran.code
    assert "\x1b" not in ran.out
    assert max(map(len, ran.out.splitlines())) <= WIDTH


def test_schema_is_json_when_asked_for(layerwise: Run) -> None:
    assert layerwise("schema").out == layerwise("schema", "--json").out


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("calibrate", "--fit", "x", "--budget-s", "10GB"), "'10GB' has the unit 'GB'"),
        (("measure", "x.toml", "--out", "t", "--energy-s", "soon"), "'soon' is not a number"),
    ],
)
def test_times_carry_units(layerwise: Run, arguments: tuple[str, ...], key: str) -> None:
    ran = layerwise(*arguments)
    assert 2 == ran.code
    assert key in ran.err
    assert "20ms" in ran.err


def test_a_budget_in_minutes_is_understood(
    layerwise: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def calibrate(given: Any, *_: object) -> str:
        asked.append(given)
        return "done"

    monkeypatch.setattr("layerwise.scenarios.calibrate.calibrating.calibrate", calibrate)
    assert 0 == layerwise("calibrate", "--collect", tmp_path, "--budget-s", "10min").code
    assert 600.0 == asked[0].budget_s


def test_calibrate_as_json_says_what_was_fitted(
    layerwise: Run, tmp_path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calibrate(given: Any, *_: object) -> str:
        write_profile(profile, given.out)
        return "done"

    monkeypatch.setattr("layerwise.scenarios.calibrate.calibrating.calibrate", calibrate)
    ran = layerwise("calibrate", "--fit", tmp_path, "--out", tmp_path / "p.json", "--json")
    data = json.loads(ran.out)
    assert profile.digest == data["profile"]["digest"]
    assert set(profile.fits) == set(data["fits"])


def test_measure_as_json_says_what_was_written(
    layerwise: Run, tmp_path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, path, out = fake_trace(profile), tmp_path / "s.toml", tmp_path / "t.jsonl"
    path.write_text(SCENARIO)

    def measure_to(_scenario: object, options: Options) -> str:
        assert options.out
        write_trace(trace, options.out)
        return f"{options.out}: written"

    monkeypatch.setattr("layerwise.scenarios.measure.measuring.measure_to", measure_to)
    data = json.loads(layerwise("measure", path, "--out", out, "--json").out)
    assert len(trace.rows) == data["num_rows"]
    assert trace.kernel_set == data["kernel_set"]
    assert trace.untraced_step_s[0] == data["untraced_step_s"]


def test_a_gpu_file_takes_quantities_as_people_write_them(tmp_path: Path) -> None:
    data = as_data(GPUS["h100-sxm"]) | {
        "hbm_bytes": "80GB",
        "l2_bytes": "50MiB",
        "hbm_bytes_per_s": "3.35TB/s",
        "peak_flops_per_s": "989.4TFLOP/s",
    }
    path = tmp_path / "gpu.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in data.items()))
    assert GPUS["h100-sxm"] == load_gpu(path)


def test_a_scenario_file_takes_quantities_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(f'{SCENARIO}[placement]\non_chip_bytes = "11GiB"\n')
    assert 11 * 2**30 == load_scenario(path).placement.on_chip_bytes


def test_a_wrong_unit_in_a_file_names_the_key(layerwise: Run, tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(f'{SCENARIO}[placement]\non_chip_bytes = "11ms"\n')
    ran = layerwise("predict", path)
    assert 2 == ran.code
    assert "placement.on_chip_bytes='11ms' has the unit 'ms'" in ran.err


def test_the_schema_takes_quantities_as_people_write_them() -> None:
    field = scenario_json_schema()["$defs"]["PlacementSpec"]["properties"]["on_chip_bytes"]
    assert ["integer", "string"] == [kind["type"] for kind in field["anyOf"]]


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("model.num_layers", 10**9, "use at most"),
        ("cluster.num_gpus", 10**7, "use at most"),
        ("workload.num_microbatches", 10**12, "use 0 for the best"),
        ("workload.context_tokens", 10**18, "use at most"),
        ("placement.data_parallel", 10**9, "use at most"),
        ("run.num_steps", 10**9, "use at most"),
        ("model.num_attention_heads", 10**9, "use at most"),
    ],
)
def test_absurd_sizes_are_refused_at_once(
    layerwise: Run, tmp_path: Path, key: str, value: int, fix: str
) -> None:
    table, _, name = key.partition(".")
    path = tmp_path / "scenario.toml"
    head = '[model]\npreset = "paper-16"\n'
    path.write_text(head + (f"[{table}]\n" if table != "model" else "") + f"{name} = {value}\n")
    ran = layerwise("predict", path)
    assert 2 == ran.code
    assert f"{key}={value}" in ran.err
    assert fix in ran.err


def test_a_hostile_name_is_shown_as_text() -> None:
    out = tables.console()
    with out.capture() as captured:
        made = tables.table(HOSTILE, "name")
        made.add_row(tables.escape(HOSTILE))
        out.print(made)
        out.print(tables.escape(f"two\nlines {HOSTILE}"))
        out.print("unescaped \x1b[2J")
    assert 3 == captured.get().count(SHOWN)
    assert "two\\nlines" in captured.get()
    assert "\x1b" not in captured.get()


def drawn(monkeypatch: pytest.MonkeyPatch, columns: int, *cells: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = tables.console()
    with out.capture() as captured:
        made = tables.table("", "name", *(f"{n}" for n in range(1, len(cells))))
        made.add_row(*cells)
        out.print(made)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_names_wrap_where_figures_leave_them_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = ("a name of several words", *["1,234,567"] * 6)
    wide, narrow = (drawn(monkeypatch, columns, *cells) for columns in (100, 80))

    assert 2 == len(wide)
    assert 3 == len(narrow)
    assert max(map(len, narrow)) <= 80
    assert 6 == " ".join(narrow).count("1,234,567")


@pytest.mark.parametrize(("digits", "width"), [(20, 97), (30, 137)])
def test_a_table_of_wide_figures_moves_together_then_grows(
    monkeypatch: pytest.MonkeyPatch, digits: int, width: int
) -> None:
    lines = drawn(monkeypatch, 100, "n" * 10, *["7" * digits] * 4, "77")

    assert width == max(map(len, lines))
    assert 4 * digits + 2 == "".join(lines).count("7")


@pytest.fixture
def hostile_scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.toml"
    name = json.dumps(HOSTILE)
    gpu = as_data(GPUS["h100-sxm"]) | {"name": f"h100-sxm{HOSTILE}"}
    (tmp_path / "gpu.toml").write_text(
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in gpu.items())
    )
    path.write_text(
        f'name = {name}\n[model]\npreset = "paper-16"\nname = {name}\n'
        '[cluster]\ngpu = "gpu.toml"\n[workload]\nnum_microbatches = 16\n'
    )
    return path


def test_predict_shows_hostile_names_as_text(layerwise: Run, hostile_scenario: Path) -> None:
    ran = layerwise("predict", hostile_scenario)
    assert 0 == ran.code
    said = "".join(ran.out.split())
    assert 4 <= said.count(SHOWN)  # scenario, model, cluster, and the GPU without a profile
    assert "\x1b" not in ran.out + ran.err


def test_compare_shows_hostile_names_as_text(
    layerwise: Run, tmp_path: Path, profile: Profile, profile_file: Path
) -> None:
    trace = replace(fake_trace(profile), name=HOSTILE, environment={"ended_early": HOSTILE})
    write_trace(trace, tmp_path / "t.jsonl")
    ran = layerwise("compare", "--measured", tmp_path / "t.jsonl", "--profile", profile_file)
    assert ran.code in (0, 1)
    assert 3 <= "".join(ran.out.split()).count(SHOWN)
    assert "\x1b" not in ran.out + ran.err


def test_a_name_of_formulas_is_drawn_as_text(
    layerwise: Run, tmp_path: Path, profile: Profile, profile_file: Path
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "t.jsonl"
    write_trace(replace(fake_trace(profile), name=r"$\frac{$"), path)
    picture = tmp_path / "ops.svg"
    ran = layerwise("compare", "--measured", path, "--profile", profile_file, "--plot", picture)
    assert ran.code in (0, 1)
    assert picture.exists()


@pytest.mark.parametrize(
    "text",
    [
        '"\\u001b[31mx" = 1\n[model]\npreset = "paper-16"\n',
        '[model]\npreset = "\\u001b[31m"\n',
        '[model]\nconfig = "\\u001b[31m\\u0000"\n',
    ],
)
def test_errors_show_hostile_keys_as_text(layerwise: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    ran = layerwise("predict", path)
    assert 2 == ran.code
    assert "\\x1b[31m" in ran.err
    assert "\x1b" not in ran.err


def test_a_profile_with_a_hostile_name(layerwise: Run, tmp_path: Path, profile: Profile) -> None:
    write_profile(replace(profile, name=HOSTILE), tmp_path / "p.json")
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    ran = layerwise("predict", path, "--profile", tmp_path / "p.json")
    assert SHOWN in "".join(ran.out.split())
    assert "\x1b" not in ran.out


READERS: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "predict": lambda path: ("predict", path),
    "measure": lambda path: ("measure", path, "--out", path.with_name("out")),
    "sweep": lambda path: ("sweep", path, "--out", path.with_name("rows.csv")),
    "compare": lambda path: ("compare", "--measured", path),
    "counted": lambda path: ("compare", "--counters", path),
    "counters": lambda path: ("counters", path, "--out", path.with_name("counters.json")),
    "recover": lambda path: ("recover", path),
    "profile": lambda path: ("paper", "--profile", path),
    "rank": lambda path: ("rank", "--model", path),
    "ledger": lambda path: ("accuracy", "--ledger", path),
    "report": lambda path: ("report", path, "--out", path.with_name("report.html")),
}


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"[" * 100_000, b"", b'{"a": NaN}'], ids=["bytes", "deep", "empty", "nan"]
)
def test_every_command_refuses_a_broken_file_in_a_line(
    layerwise: Run, tmp_path: Path, command: str, data: bytes
) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(data)
    ran = layerwise(*READERS[command](path))
    assert 2 == ran.code
    assert "" == ran.out
    assert "broken.jsonl" in ran.err
    assert [path] == list(tmp_path.iterdir())

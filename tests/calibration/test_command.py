"""`layerwise calibrate`, and the README's table of fits."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from layerwise.calibration.data import FOLDER, profile_path
from layerwise.scenarios.calibrate.collect import Collected
from layerwise.scenarios.calibrate.fitting import print_fits
from layerwise.scenarios.command_line import main
from layerwise.scenarios.tables import console
from layerwise.sim.profile import OpFit, Profile, load_profile

COLLECTED = FOLDER / "traces" / "fit-h100-sxm"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a refused command prints."""
    with pytest.raises(SystemExit) as end:
        main(["calibrate", *map(str, arguments)])
    captured = capsys.readouterr()
    assert (2, 1) == (end.value.code, captured.err.count("\n"))
    return captured.err


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.fixture(scope="module")
def shipped() -> Profile:
    return load_profile(profile_path("h100-sxm"))


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The command of the README, run once: what it prints, and the profile."""
    out = tmp_path_factory.mktemp("fit") / "profile.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            main_quietly("calibrate", "--fit", COLLECTED, "--out", out)
    return text.getvalue(), out


def main_quietly(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code in (None, 0)


@pytest.mark.slow
def test_fit_of_the_shipped_data_gives_the_shipped_constants(
    printed: tuple[str, Path], shipped: Profile
) -> None:
    found = load_profile(printed[1])
    pairs = {("machine", n): (found.machine[n], c) for n, c in shipped.machine.items()}
    pairs |= {
        (kind, n): (found.fits[kind].constants[n], c)
        for kind, fit in shipped.fits.items()
        for n, c in fit.constants.items()
    }
    astray = {
        key: (again.value, was.value)
        for key, (again, was) in pairs.items()
        if abs(again.value - was.value) > max(0.01 * was.value, 1.5 * was.standard_error)
    }

    assert {} == astray
    assert shipped.data_hashes == found.data_hashes
    assert shipped.kernels == found.kernels
    assert {k: f.num_points for k, f in shipped.fits.items()} == (
        {k: f.num_points for k, f in found.fits.items()}
    )


@pytest.mark.slow
def test_table_has_a_row_for_each_kind_within_100_columns(
    printed: tuple[str, Path], shipped: Profile
) -> None:
    lines = printed[0].splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.split()[0] in shipped.fits}

    assert shipped.fits.keys() == rows.keys()
    assert max(len(line.rstrip()) for line in lines) <= 100
    assert ["3,943", "yes", "yes", "yes"] == [rows["matmul"][i] for i in (1, -3, -2, -1)]


@pytest.mark.slow
def test_no_parameter_of_the_shipped_fits_is_at_a_bound(printed: tuple[str, Path]) -> None:
    assert "At a bound" not in printed[0]


def test_parameters_at_a_bound_are_named(
    shipped: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = shipped.fits["matmul"]
    lowest = replace(fit.constants["prologue_s"], value=0.01e-6)
    print_fits(
        {"matmul": replace(fit, constants=fit.constants | {"prologue_s": lowest})}, console()
    )

    assert "At a bound, so not told by the data: matmul.prologue_s = 1e-08." in (
        " ".join(capsys.readouterr().out.split())
    )


def test_kind_without_a_fit_says_no(
    shipped: Profile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerwise.calibration.least_squares import FitError

    monkeypatch.setenv("COLUMNS", "100")
    outcomes: dict[str, OpFit | FitError] = {
        "norm": FitError("norm: flat"),
        "sample": shipped.fits["sample"],
    }
    print_fits(outcomes, console())

    norm, sample = capsys.readouterr().out.splitlines()[2:4]
    assert ["norm", "-", "-", "-", "-", "no", "-", "-"] == norm.split()
    assert ["yes", "yes", "yes"] == sample.split()[-3:]


def test_failed_fit_prints_its_table_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in COLLECTED.glob("*.json*"):
        text = path.read_text()
        if path.name in ("sweep.jsonl", "supplement.jsonl", "denser.jsonl"):
            wanted = ("graph_launch/", "sample/", "embed/")
            text = "\n".join(row for row in text.splitlines() if any(w in row for w in wanted))
        (data / path.name).write_text(text)

    with pytest.raises(SystemExit) as end:
        main(["calibrate", "--fit", str(data), "--out", str(tmp_path / "p.json")])

    captured = capsys.readouterr()
    assert 2 == end.value.code
    assert "matmul: the sweep has no points; measure them" in captured.err
    assert re.search(r"matmul +- +- +- +- +no", captured.out)
    assert re.search(r"sample +15 .* yes", captured.out)
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--collect", "a", "--fit", "b"), "--collect/--fit='together' is not one task; give one"),
        (
            ("--anchor", "h200", "--for", "validation/stage-8"),
            "--anchor/--for='together' is not one task",
        ),
        (("--anchor", "h200"), "--out=None is missing; add --out PROFILE.json"),
        (("--anchor", "nowhere", "--out", "p"), "'nowhere' is no file and no shipped profile"),
        (("--budget-s", "-1"), "--budget-s=-1.0 is no time; give seconds above 0"),
        (
            ("--what", "sweep", "--fit", "a"),
            "--what=\"('sweep',)\" has no meaning without --collect",
        ),
        (("--profile", "h200"), "has no meaning without --fit or --for or --links; remove it"),
        (("--fit", "nowhere"), "--out=None is missing; add --out PROFILE.json"),
        (("--fit", "nowhere", "--out", "p"), "nowhere/environment.json: cannot be read"),
        (("--fit", COLLECTED, "--out", "p", "--gpu", "h200"), "and a h200 has 62914560"),
        (("--fit", COLLECTED, "--out", "p", "--gpu", "a100"), "did you mean 'a100-80gb'?"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], says: str
) -> None:
    assert says in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("package", "arguments", "says"),
    [
        ("scipy", ("--fit", "x", "--out", "p"), "pip install '.[calibration]'"),
        ("torch", ("--collect", "x"), "pip install '.[hw]'"),
    ],
)
def test_missing_package_names_its_extra(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    found = importlib.util.find_spec
    for module in (
        "layerwise.scenarios.calibrate.fitting",
        "layerwise.scenarios.measure.measuring",
    ):
        monkeypatch.setattr(
            f"{module}.find_spec", lambda name: None if name == package else found(name)
        )

    message = refusal(capsys, *arguments)

    assert f"{package} is not installed" in message
    assert says in message


@without_gpu
@pytest.mark.parametrize(
    "arguments", [(), ("--anchor", profile_path("h100-sxm"), "--out", "p"), ("--gpu", "h200")]
)
def test_measuring_without_a_gpu_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...]
) -> None:
    assert "layerwise calibrate measures on a CUDA GPU" in refusal(capsys, *arguments)


@without_gpu
def test_collect_without_a_gpu_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "--collect measures on a CUDA GPU" in refusal(capsys, "--collect", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (Collected(), "complete"),
        (Collected(num_missing=7), "7 measurements are missing: run it again\n"),
        (Collected(num_missing=7, num_failed=2), "run it again; 2 failed, see failed.jsonl"),
    ],
)
def test_collect_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, found: Collected, says: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("layerwise.scenarios.calibrate.collect.collect", lambda *_, gpu: found)
    main_quietly("calibrate", "--collect", "here", "--budget-s", 60)

    assert says in capsys.readouterr().err


def test_collect_is_told_what_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        "layerwise.scenarios.calibrate.collect.collect",
        lambda *given, gpu: asked.append((*given, gpu)) or Collected(),
    )
    main_quietly(
        "calibrate",
        "--collect",
        "d",
        "--what",
        "unseen,supplement",
        "--budget-s",
        "9",
        "--what",
        "fit-layers",
        "--gpu",
        "h200",
    )

    assert [(Path("d"), 9.0, ("unseen", "supplement", "fit-layers"), "h200")] == asked


def test_unknown_task_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    assert "--what='layers' is no task; use one or more of read-curve, stages" in (
        refusal(capsys, "--collect", "d", "--what", "layers")
    )


def test_table_of_the_readme_is_that_of_the_shipped_profile(shipped: Profile) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = {
        row[0].strip("`"): row[1:]
        for row in map(cells, text.splitlines())
        if row[0].strip("`") in shipped.fits
    }
    expected = {
        kind: [
            f"{fit.num_points:,}",
            f"{fit.form_median_error:.1%}",
            f"{fit.held_out_median_error:.1%}",
            f"{fit.held_out_p90_error:.1%}",
        ]
        for kind, fit in shipped.fits.items()
    }

    assert expected == rows
    assert shipped.digest in text


def test_readme_names_every_module() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    modules = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}

    assert modules == set(re.findall(r"^\| `(\w+)` \| [A-Za-z]", text, re.MULTILINE))

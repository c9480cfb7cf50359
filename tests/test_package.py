"""The package keeps to its name: what is installed, and that a user's own folders hide nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("sim", "hw", "calibration", "scenarios")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "setuptools"
]
COMMAND = (sys.executable, "-m", "layerwise.scenarios.command_line")
# What a user calls folders, each of which would break what imports it by mistake.
OWN = "raise ImportError('this is the folder of somebody else')\n"


def package_of(folder: Path) -> str:
    """The package that the files of a folder are installed as."""
    mapped = {path: name for name, path in SETTINGS["package-dir"].items()}
    for parent in (folder, *folder.parents):
        if name := mapped.get(parent.relative_to(ROOT).as_posix()):
            return ".".join((name, *folder.relative_to(parent).parts))
    raise AssertionError(folder)


def test_every_package_is_listed() -> None:
    inits = [path for top in FOLDERS for path in (ROOT / top).rglob("__init__.py")]

    assert sorted(package_of(path.parent) for path in inits) == sorted(SETTINGS["packages"])


def test_every_package_is_below_one_name() -> None:
    assert {"layerwise"} == {name.partition(".")[0] for name in SETTINGS["packages"]}


def test_every_data_file_travels() -> None:
    listed = subprocess.run(
        ["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / line for line in listed.stdout.splitlines() if not line.endswith(".py")]
    packages = {
        package_of(p.parent): p.parent for top in FOLDERS for p in (ROOT / top).rglob("__init__.py")
    }
    travelling = {
        file
        for package, patterns in SETTINGS["package-data"].items()
        for folder in (packages.values() if package == "*" else [packages[package]])
        for pattern in patterns
        for file in folder.glob(pattern + ("/*" if pattern.endswith("**") else ""))
    }

    assert [] == [path.relative_to(ROOT).as_posix() for path in files if path not in travelling]


HOLDING = """
import importlib, pkgutil, sys
import layerwise.sim, layerwise.hw, layerwise.calibration, layerwise.scenarios
for top in (layerwise.sim, layerwise.calibration, layerwise.scenarios):
    for found in pkgutil.walk_packages(top.__path__, top.__name__ + "."):
        if not found.name.endswith("__main__") and ".api" not in found.name:
            importlib.import_module(found.name)
print(sorted(set(folders) & sys.modules.keys()))
for name in folders:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose folders have the names that ours have."""
    folder = tmp_path_factory.mktemp("project")
    for name in (*FOLDERS, "tests"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(OWN)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        (*COMMAND, "schema"),
        (*COMMAND, "what-if"),
        (*COMMAND, "predict", str(ROOT / "scenarios" / "validation" / "stage-8.toml"), "--json"),
        (
            *COMMAND,
            "sweep",
            str(ROOT / "scenarios" / "sweeps" / "batch-and-context.toml"),
            "--out",
            "rows.csv",
            "--workers",
            "2",
            "--set",
            "model.num_layers=16",
        ),
        (
            *COMMAND,
            "measure",
            str(ROOT / "scenarios" / "examples" / "on-a-laptop.toml"),
            "--device",
            "cpu",
            "--out",
            "laptop.jsonl",
        ),
        (sys.executable, "-m", "layerwise.hw", "--help"),
    ],
    ids=lambda command: command[3] if len(command) > 3 else "hw",
)
@pytest.mark.parametrize("on_path", [False, True], ids=["inside", "on PYTHONPATH"])
def test_a_command_works_beside_folders_of_these_names(
    command: tuple[str, ...], on_path: bool, own_folders: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if on_path:
        environment["PYTHONPATH"] = str(own_folders)
    ran = subprocess.run(
        command,
        cwd=tmp_path if on_path else own_folders,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert 0 == ran.returncode, ran.stderr
    assert "somebody else" not in ran.stderr


def test_one_process_never_holds_a_folder_under_two_names() -> None:
    code = f"folders = {FOLDERS!r}" + HOLDING
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    held, *refused = ran.stdout.splitlines()

    assert "[]" == held
    assert [f"{name} is layerwise.{name} now" for name in FOLDERS] == [
        line.partition(":")[0].partition(";")[0] for line in refused
    ]

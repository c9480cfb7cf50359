"""A temporary copy of the tree, and the tests that must notice what is wrong in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from tests.mutants.applying import ROOT, mutated
from tests.mutants.table import Area, Mutant

LEFT_OUT = (".*", "*.egg-info", "__pycache__", "build", "dist", "layerwise")
# Longer than any of these takes without a mutant: one that never ends is noticed as well.
TIMEOUT_S = 900
TIMED_OUT = "timeout"
# Minutes of fitting, which come last: nearly every mutant is caught before.
FITTING = ("test_build.py", "test_checks.py", "test_command.py")
ANSWERS = ("tests/accuracy", "tests/frozen/test_frozen.py")


@dataclass(slots=True)
class Copy:
    """The tree in another folder, which wins over the installed package. `sound`: tests seen to pass."""

    root: Path
    sound: set[str] = field(default_factory=set[str])

    @classmethod
    def made_in(cls, folder: Path) -> Copy:
        """Copy the tree, and lay out the package as pyproject.toml maps it."""
        root = folder / "tree"
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*LEFT_OUT))
        mapped = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        for package, where in mapped["tool"]["setuptools"]["package-dir"].items():
            _link(root / package.replace(".", "/"), root / where)
        copy = cls(root)
        copy._check_that_it_is_imported()
        return copy

    def catching_test(self, mutant: Mutant) -> str | None:
        """The first test that fails with a mutant and passes without it; None where none does."""
        path, text = mutated(mutant, self.root)
        whole = path.read_bytes()
        for paths in stages_of(mutant.area):
            path.write_bytes(text)
            try:
                found = self._first_failure(*paths)
            finally:
                path.write_bytes(whole)
            if found is not None:
                self._check_that_it_passes(found)
                return found
        return None

    def _first_failure(self, *asked: str) -> str | None:
        options = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow")
        try:
            # Sentences of READMEs follow the answers, and say nothing more about them.
            ran = self._python("-m", "pytest", *options, "-k", "not readme", *asked)
        except subprocess.TimeoutExpired:
            return TIMED_OUT
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", ran.stdout, re.MULTILINE)
        if failed:
            return failed[1]
        if ran.returncode:
            raise RuntimeError(f"no tests ran: {' '.join(asked)}\n{ran.stdout}{ran.stderr}")
        return None

    def _check_that_it_passes(self, test: str) -> None:
        if test == TIMED_OUT or test in self.sound:
            return
        if self._first_failure(test) is not None:
            raise RuntimeError(f"{test} fails without any mutant; make the tests pass first")
        self.sound.add(test)

    def _check_that_it_is_imported(self) -> None:
        found = self._python("-c", "import layerwise.sim as sim; print(sim.__file__)").stdout
        if not found.startswith(str(self.root)):
            raise RuntimeError(f"the tests would import {found.strip()}, and not the copy")

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # No compiled files: a mutant as long as what it replaces would be taken for it.
        setting = {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=os.environ | setting,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )


def stages_of(area: Area) -> tuple[tuple[str, ...], ...]:
    """The tests that are asked, those nearest to the formula first."""
    match area:
        case "cost":
            return ("tests/sim/cost",), ANSWERS, ("tests/sim",)
        case "machine":
            return ("tests/sim/machine",), ANSWERS, ("tests/sim",)
        case "memory and uncertainty":
            own = ("memory", "uncertainty", "residuals")
            return tuple(f"tests/sim/test_{name}.py" for name in own), ANSWERS, ("tests/sim",)
        case "calibration":
            fitting = tuple(f"tests/calibration/{name}" for name in FITTING)
            others = sorted((ROOT / "tests/calibration").glob("test_*.py"))
            quick = [
                f"tests/calibration/{path.name}" for path in others if path.name not in FITTING
            ]
            return tuple(quick), ANSWERS, fitting


def _link(package: Path, folder: Path) -> None:
    """Modules of the top package lie beside the packages below it."""
    package.parent.mkdir(exist_ok=True)
    if package.name != "layerwise":
        package.symlink_to(folder)
        return
    package.mkdir(exist_ok=True)
    for module in folder.iterdir():
        (package / module.name).symlink_to(module)

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
BUDGETS = ("memory", "residuals", "uncertainty")
FITS = ("least_squares", "held_out", "overlap", "links", "transfers", "l2_curve", "interleaving")
ANSWERS = ("tests/accuracy", "tests/frozen/test_frozen.py")


@dataclass(slots=True)
class Copy:
    """The tree in another folder, which wins over the installed package.

    `sound`, `red`: tests that were seen to pass and to fail without any mutant.
    """

    root: Path
    sound: set[str] = field(default_factory=set[str])
    red: list[str] = field(default_factory=list[str])

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
        for paths in stages_of(mutant.area):
            while found := self._first_failure_with(text, path, paths):
                if self._passes(found):
                    return found
        return None

    def _first_failure_with(self, text: bytes, path: Path, asked: tuple[str, ...]) -> str | None:
        whole = path.read_bytes()
        path.write_bytes(text)
        try:
            return self._first_failure(*asked)
        finally:
            path.write_bytes(whole)

    def _first_failure(self, *asked: str) -> str | None:
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
        options += [f"--deselect={test}" for test in self.red]
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

    def _passes(self, test: str) -> bool:
        """Without any mutant; a test that does not is left out from now on."""
        if test == TIMED_OUT or test in self.sound:
            return True
        if self._first_failure(test) is None:
            self.sound.add(test)
            return True
        if test in self.red:
            raise RuntimeError(f"{test} fails without any mutant; make it pass first")
        print(f"({test} fails without any mutant) ", end="", flush=True)
        self.red.append(test)
        return False

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
            own = ("tests/sim/machine", "tests/sim/test_simulate.py")
            return own, ANSWERS, ("tests/sim",)
        case "memory and uncertainty":
            own = tuple(f"tests/sim/test_{name}.py" for name in BUDGETS)
            return own, ANSWERS, ("tests/sim",)
        case "calibration":
            own = tuple(f"tests/calibration/test_{name}.py" for name in FITS)
            return own, ANSWERS, ("tests/calibration",)


def _link(package: Path, folder: Path) -> None:
    """Modules of the top package lie beside the packages below it."""
    package.parent.mkdir(exist_ok=True)
    if package.name != "layerwise":
        package.symlink_to(folder)
        return
    package.mkdir(exist_ok=True)
    for module in folder.iterdir():
        (package / module.name).symlink_to(module)

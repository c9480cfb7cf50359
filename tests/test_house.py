"""The house keeps its own rules."""

from __future__ import annotations

import ast
import fnmatch
import re
from pathlib import Path

import pytest

from layerwise.sim.plan import errors

ROOT = Path(__file__).parents[1]
SIM = sorted((ROOT / "sim").rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block_after(heading: str) -> str:
    """The first fenced block after a heading of the README."""
    _, _, rest = README.partition(f"## {heading}\n")
    return rest.split("```")[1].partition("\n")[2]


def top_level() -> set[str]:
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    return {
        path.name
        for path in ROOT.iterdir()
        if path.name not in (".git", ".gitignore", ".gitattributes")
        and not any(fnmatch.fnmatch(path.name, pattern) for pattern in ignored)
    }


def test_map_of_the_readme_equals_the_tree() -> None:
    named = {line.split()[0].rstrip("/") for line in block_after("The map").splitlines() if line}

    assert top_level() == named


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text()

    assert "readme_command 'Run the tests'" in script
    assert "pytest" in block_after("Run the tests")


def test_main_job_of_the_readme_is_the_paper() -> None:
    assert block_after("Ask the question").strip().endswith(".venv/bin/layerwise paper")


@pytest.mark.parametrize("path", SIM, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_of_sim_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", SIM, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_of_sim_imports_torch(path: Path) -> None:
    names = {
        name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }

    assert not {name for name in names if name.partition(".")[0] == "torch"}


def test_error_tree_is_the_one_that_is_described() -> None:
    drawn: dict[str, str] = {}
    above: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([ │├└─]*)(\w+(?:Error))\b", line)
        if found:
            depth = len(found[1]) // 4
            above[depth] = found[2]
            drawn[found[2]] = above.get(depth - 1, "Exception")
    real = {
        name: next(base.__name__ for base in kind.__bases__)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.LayerwiseError)
    }

    assert {**real, "LayerwiseError": ""} == {**drawn, "LayerwiseError": ""}


def test_one_base_catches_every_error() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    raised = [kind for kind in kinds if issubclass(kind, Exception)]

    assert all(issubclass(kind, errors.LayerwiseError) for kind in raised)


def test_missing_package_says_what_to_install_and_what_still_works() -> None:
    error = errors.MissingPackageError(
        "torch", "measure", "pip install 'layerwise[hw]'", "predicting"
    )

    assert str(error) == (
        "torch is not installed and is needed to measure; install it with "
        "`pip install 'layerwise[hw]'`. Without it, predicting still works."
    )


def test_license_is_the_whole_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()

    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "The layerwise authors" in text

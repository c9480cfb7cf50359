"""Finds a mutant's expression wherever its function stands, and puts its replacement there."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.mutants.table import Mutant

ROOT = Path(__file__).parents[2]
FOLDERS = ("sim", "calibration")


class MovedError(Exception):
    """A mutant's expression does not stand where it stood: the table must follow the code."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an expression stands: a file of the tree, and bytes of it."""

    path: Path
    begin: int
    end: int


def place_of(mutant: Mutant, root: Path = ROOT) -> Place:
    """The one place of a mutant. Raises MovedError for none, and for several."""
    wanted = ast.dump(ast.parse(mutant.expression, mode="eval").body)
    found = [
        _place(path, node)
        for path, function in _functions(root).get(mutant.function, ())
        for node in ast.walk(function)
        if isinstance(node, ast.expr) and ast.dump(node) == wanted
    ]
    if len(found) != 1:
        raise MovedError(
            f"{mutant.name!r}: `{mutant.expression}` stands {len(found)} times in functions named "
            f"{mutant.function!r} of {', '.join(FOLDERS)}, and must stand once; the code has moved "
            "or changed: let the table follow it"
        )
    return found[0]


def mutated(mutant: Mutant, root: Path = ROOT) -> tuple[Path, bytes]:
    """The file in which a mutant stands, and its text with the replacement."""
    place = place_of(mutant, root)
    source = place.path.read_bytes()
    replacement = f"({mutant.replacement})".encode()
    return place.path, source[: place.begin] + replacement + source[place.end :]


@cache
def _functions(root: Path) -> dict[str, Sequence[tuple[Path, ast.FunctionDef]]]:
    """Every function of the folders by its name."""
    found: dict[str, list[tuple[Path, ast.FunctionDef]]] = {}
    for path in _modules(root):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef):
                found.setdefault(node.name, []).append((path, node))
    return dict(found)


def _modules(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((root / folder).rglob("*.py"))


def _place(path: Path, node: ast.expr) -> Place:
    """Columns of a syntax tree count bytes."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    lines = path.read_bytes().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    begin = starts[node.lineno - 1] + node.col_offset
    return Place(path, begin, starts[node.end_lineno - 1] + node.end_col_offset)

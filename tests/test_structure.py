"""Which module imports which: no cycles, also at run time, and no deeper than today.

Read from the source, so nothing is imported. Bounds may fall; whoever raises one says why here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FACE = ROOT / "scenarios" / "api"
# The longest chain of imports at import time. The aim is 14.
MOST_DEPTH = 30
# Project imports inside functions, by room: those of commands, so that one command does not load what
# another needs; of the public face, whose names load when they are used; and where torch, Triton,
# scipy, rich or plotly would load with them.
INSIDE_FUNCTIONS = {
    "scenarios/commands": 101,
    "scenarios/calibrate": 41,
    "scenarios/api": 24,
    "hw": 13,
    "elsewhere": 27,
}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module by its installed name."""
    found: dict[str, ast.Module] = {}
    for top in ("sim", "hw", "calibration", "scenarios"):
        for path in (ROOT / top).rglob("*.py"):
            base = FACE if FACE in path.parents else ROOT
            parts = ("layerwise", *path.relative_to(base).with_suffix("").parts)
            name = ".".join(parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(node: ast.AST, *, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Names that are imported below a node, and whether inside a function; not for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        deeper = inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        if isinstance(child, ast.ImportFrom):
            yield from ((f"{child.module}.{each.name}", inside) for each in child.names)
        if isinstance(child, ast.Import):
            yield from ((each.name, inside) for each in child.names)
        yield from imports(child, inside=deeper)


def module_of(name: str) -> str:
    """The module that an imported name is, or lies in; "" for those of others."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    # The face loads what it names when it is used.
    return "" if name == "layerwise" else name


@cache
def graph(*, at_run_time: bool) -> dict[str, set[str]]:
    """What each module imports."""
    return {
        name: {
            module_of(other)
            for other, inside in imports(tree)
            if module_of(other) not in ("", name) and (at_run_time or not inside)
        }
        for name, tree in modules().items()
    }


@pytest.mark.parametrize("at_run_time", [False, True], ids=["import time", "run time"])
def test_no_module_imports_itself_by_way_of_others(at_run_time: bool) -> None:
    try:
        TopologicalSorter(graph(at_run_time=at_run_time)).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle: {' -> '.join(error.args[1])}")
    assert len(graph(at_run_time=at_run_time)) > 300


def test_chains_of_imports_are_no_longer_than_allowed() -> None:
    needed = graph(at_run_time=False)
    depths: dict[str, int] = {}
    for name in TopologicalSorter(needed).static_order():
        depths[name] = 1 + max((depths[other] for other in needed[name]), default=0)

    assert max(depths.values()) <= MOST_DEPTH


def test_no_room_hides_more_imports_in_functions_than_it_is_listed_with() -> None:
    found = dict.fromkeys(INSIDE_FUNCTIONS, 0)
    for name, tree in modules().items():
        statements = {
            (node.lineno, room_of(name))
            for function in ast.walk(tree)
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
            for node in ast.walk(function)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("layerwise")
        }
        for _, room in statements:
            found[room] += 1

    assert [] == [room for room, most in INSIDE_FUNCTIONS.items() if found[room] > most]


def room_of(name: str) -> str:
    """The room of INSIDE_FUNCTIONS that a module is in."""
    if name in ("layerwise", "layerwise.questions", "layerwise.answers"):
        return "scenarios/api"
    parts = name.split(".")
    room = "/".join(parts[1:3])
    return next((each for each in (room, parts[1]) if each in INSIDE_FUNCTIONS), "elsewhere")

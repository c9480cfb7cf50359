"""Every arithmetic expression that could be a mutant, in an order that a seed gives.

The table was chosen from the first 80 of each area's draw: formulas whose change moves an answer, and
one of a function. Lengths, indices and texts were passed over.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEED = 20261201

# Where each area's formulas lie today. Only the draw asks: a mutant is found again by its function.
AREAS: dict[str, tuple[str, ...]] = {
    "cost": ("sim/cost/*.py",),
    "machine": ("sim/machine/*.py",),
    "memory and uncertainty": ("sim/memory.py", "sim/uncertainty.py", "sim/residuals.py"),
    "calibration": (
        "calibration/fit.py",
        "calibration/held_out.py",
        "calibration/interleaving.py",
        "calibration/l2_curve.py",
        "calibration/least_squares.py",
        "calibration/links.py",
        "calibration/overlap.py",
        "calibration/transfers.py",
    ),
}
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Pow)
ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
ENDS = ("min", "max", "minimum", "maximum", "ceil")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An expression, and the innermost function in which it stands."""

    function: str
    expression: str


def drawn(area: str) -> list[Candidate]:
    """The candidates of an area in the order of the draw."""
    paths = sorted(path for pattern in AREAS[area] for path in ROOT.glob(pattern))
    found = [one for path in paths for one in _candidates(path.read_text(encoding="utf-8"))]
    random.Random(f"{SEED} {area}").shuffle(found)
    return found


def _candidates(source: str) -> Iterator[Candidate]:
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for node in _own(function):
                if _is_arithmetic(node):
                    yield Candidate(function.name, ast.unparse(node))


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function and in no function inside it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from _own(child)


def _is_arithmetic(node: ast.AST) -> bool:
    match node:
        case ast.BinOp(op=op):
            return isinstance(op, ARITHMETIC)
        case ast.Compare(ops=[op]):
            return isinstance(op, ORDER)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in ENDS
        case _:
            return False

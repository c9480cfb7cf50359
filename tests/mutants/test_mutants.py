"""The table of wrong formulas follows the code, and none of them went unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.applying import MovedError, mutated, place_of
from tests.mutants.caught import read_caught
from tests.mutants.table import MUTANTS, Mutant

SQUARE = Mutant(
    name="square",
    area="cost",
    function="square",
    expression="side * side",
    replacement="2 * side",
    matters="here",
)


def tree_with(folder: Path, text: str) -> Path:
    module = folder / "sim" / "deeper" / "shape.py"
    module.parent.mkdir(parents=True)
    module.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_found_exactly_once(mutant: Mutant) -> None:
    assert place_of(mutant).path.suffix == ".py"


def test_there_are_as_many_as_were_asked_for_and_each_has_its_name() -> None:
    assert 24 == len({mutant.name for mutant in MUTANTS})


def test_every_mutant_was_applied_and_those_not_caught_change_nothing() -> None:
    caught = read_caught()

    assert [mutant.name for mutant in MUTANTS] == list(caught)
    assert [one.name for one in MUTANTS if one.equivalent] == [
        n for n, by in caught.items() if not by
    ]


def test_layout_of_an_expression_does_not_count(tmp_path: Path) -> None:
    root = tree_with(tmp_path, "def square(side):\n    return (side  *\n        side) + 0  # ²\n")

    assert (
        "def square(side):\n    return ((2 * side)) + 0  # ²\n" == mutated(SQUARE, root)[1].decode()
    )


def test_the_same_expression_in_another_function_does_not_count(tmp_path: Path) -> None:
    text = "def cube(side):\n    side * side\ndef square(side):\n    return side * side\n"

    assert text.rindex("side * side") == place_of(SQUARE, tree_with(tmp_path, text)).begin


@pytest.mark.parametrize(("body", "times"), [("0", 0), ("side * side + side * side", 2)])
def test_an_expression_that_does_not_stand_once_is_refused_by_name(
    tmp_path: Path, body: str, times: int
) -> None:
    root = tree_with(tmp_path, f"def square(side):\n    return {body}\n")

    with pytest.raises(MovedError, match=f"'square': `side \\* side` stands {times} times"):
        place_of(SQUARE, root)

"""Writes what each what-if says, the list in their folder's README, and their pictures.

    python -m tests.scenarios.what_if_goldens

After a profile was fitted again, or a model changed on purpose: then look at the difference.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

from rich.console import Console

from layerwise.scenarios.tables import WIDTH
from layerwise.scenarios.what_if.answering import FOLDER, question_names, what_if_named
from layerwise.scenarios.what_if.figures import print_answered
from layerwise.scenarios.what_if.plotting import draw
from layerwise.scenarios.what_if.runner import Answered, ask

GOLDEN = Path(__file__).parents[1] / "golden" / "what-if"
README = FOLDER / "README.md"
PICTURES = FOLDER / "pictures"
HEADING = "## The questions\n"


@lru_cache
def answered(name: str) -> Answered:
    """Asked as it stands, once."""
    return ask(name, what_if_named(name))


def text_of(name: str) -> str:
    """What the command line prints, without colour and the spaces that fill lines."""
    out = io.StringIO()
    print_answered(answered(name), Console(file=out, highlight=False, emoji=False, width=WIDTH))
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def golden_path(name: str) -> Path:
    """Where that is kept."""
    return GOLDEN / f"{name}.txt"


def list_of_answers() -> str:
    """The end of the folder's README."""
    return HEADING + "".join(
        f"\n### {name}\n\n{found.what_if.question} {found.answer}\n\n"
        f"![{name}](pictures/{name}.svg)\n"
        for name in question_names()
        for found in (answered(name),)
    )


def main() -> None:
    """Write all of it."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    PICTURES.mkdir(exist_ok=True)
    for name in question_names():
        golden_path(name).write_text(text_of(name), encoding="utf-8")
        draw(answered(name), PICTURES / f"{name}.svg")
    head, _, _ = README.read_text(encoding="utf-8").partition(HEADING)
    README.write_text(head + list_of_answers(), encoding="utf-8")


if __name__ == "__main__":
    main()

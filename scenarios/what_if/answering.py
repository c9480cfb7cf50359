"""The what-if command: which questions there are, and one of them asked, printed and drawn."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from layerwise.scenarios.commands.shared import print_json
from layerwise.scenarios.what_if.runner import WhatIf, answered_as_data, ask
from layerwise.sim.plan.errors import UnknownKeyError
from layerwise.sim.plan.overrides import nearest, parse_settings
from layerwise.sim.profile import load_profile

FOLDER = Path(__file__).parent
# Not questions.
PARTS = frozenset({"__init__", "answering", "figures", "listing", "plotting", "runner"})


def question_names() -> list[str]:
    """Every script of this folder."""
    return sorted({path.stem for path in FOLDER.glob("*.py")} - PARTS)


def what_if_named(name: str) -> WhatIf:
    """The script of this name (dashes will do); raises UnknownKeyError with the nearest one."""
    wanted, known = name.replace("-", "_"), question_names()
    if wanted not in known:
        raise UnknownKeyError("what-if", name, "is no question here", nearest(wanted, known))
    return import_module(f"layerwise.scenarios.what_if.{wanted}").WHAT_IF


def list_questions(*, as_json: bool) -> None:
    """Names and questions."""
    found = {name: what_if_named(name).question for name in question_names()}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from layerwise.scenarios.tables import console, table

    made = table("", "what-if", "question", wide="question")
    for name, question in found.items():
        made.add_row(name, question)
    console().print(made)


def answer_to(
    name: str,
    axes: Sequence[str],
    changes: Sequence[str],
    profile: Path | None,
    *,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Ask, print, draw. Raises SpecError for what does not go, and what files raise."""
    answered = ask(
        name.replace("-", "_"),
        what_if_named(name),
        settings=parse_settings(changes),
        axes=axes,
        profile=load_profile(profile) if profile else None,
    )
    if plot is not None:
        from layerwise.scenarios.what_if.plotting import draw

        draw(answered, plot)
        print(f"drawn: {plot}", file=sys.stderr)
    if changes:
        print(f"changed: {', '.join(changes)}", file=sys.stderr)
    if as_json:
        print_json("what-if", answered_as_data(answered))
        return
    from layerwise.scenarios.tables import console
    from layerwise.scenarios.what_if.figures import print_answered

    print_answered(answered, console())

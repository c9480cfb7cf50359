"""Which test caught each mutant when all were last applied: `caught.json`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.mutants.table import MUTANTS

PATH = Path(__file__).with_name("caught.json")


def read_caught() -> dict[str, str | None]:
    """The first test that failed by the mutant's name; None for a mutant that survived."""
    return json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}


def write_caught(caught: dict[str, str | None]) -> None:
    """In the table's order; a mutant that left the table is left out."""
    kept = {one.name: caught[one.name] for one in MUTANTS if one.name in caught}
    PATH.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

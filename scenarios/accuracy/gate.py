"""The accuracy gate: nothing lost and no family worse (`ledger`), and exactly the list in red (`red`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from layerwise.scenarios.accuracy.ledger import Ledger, Problem, check, read_ledger_of
from layerwise.scenarios.accuracy.ledger_tables import print_moves
from layerwise.scenarios.accuracy.red import RedList, check_red, read_red, reds_as_data, to_list
from layerwise.scenarios.accuracy.scored import Scored
from layerwise.scenarios.tables import escape


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What predictions of one GPU are held to; None where that was not asked."""

    gpu: str
    ledger: Ledger | None = None
    red: RedList | None = None

    def problems(self, scored: Sequence[Scored]) -> list[Problem]:
        """Everything that makes the gate fail; nothing when it passes."""
        return [
            *(check(self.ledger, scored) if self.ledger else ()),
            *(check_red(self.red, self.gpu, scored) if self.red else ()),
        ]


def read_gate(gpu: str, ledger: Path | None, red: Path | None) -> Gate | None:
    """Read what was given; None if nothing. Raises what `read_ledger_of` and `read_red` do."""
    if ledger is None and red is None:
        return None
    return Gate(
        gpu=gpu,
        ledger=None if ledger is None else read_ledger_of(gpu, ledger),
        red=None if red is None else read_red(red),
    )


def print_gate(
    gate: Gate, scored: Sequence[Scored], problems: Sequence[Problem], out: Console
) -> None:
    """What moved, what makes the gate fail, by name, and what is newly red as lines for the list."""
    if gate.ledger:
        print_moves(gate.ledger, scored, out)
    for problem in problems:
        out.print(f"[red]FAIL[/red] {escape(str(problem))}")
    if gate.red and (lines := to_list(gate.red, gate.gpu, scored)):
        out.print("Repair what is newly red, or list it, each with its cause:\n")
        for line in lines.splitlines():
            out.print(escape(line), soft_wrap=True)
        out.print()
    verdict = f"[red]{len(problems)} problems[/red]" if problems else "[green]PASS[/green]"
    out.print(f"The gate of {escape(gate.gpu)}, {len(scored)} measurements: {verdict}")


def gate_as_data(gpu: str, scored: Sequence[Scored], problems: Sequence[Problem]) -> dict[str, Any]:
    """The verdict with stable keys, and all that is in red."""
    return {
        "gpu": gpu,
        "num_measurements": len(scored),
        "passes": not problems,
        "red": reds_as_data(scored),
        "problems": [asdict(problem) for problem in problems],
    }

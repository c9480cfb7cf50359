"""Predictions that moved, old beside new, as people read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console

from layerwise.scenarios import tables
from layerwise.scenarios.accuracy.bars import BARS
from layerwise.scenarios.accuracy.ledger import SAME, Aggregate, Ledger, aggregates_of
from layerwise.scenarios.accuracy.scored import Scored
from layerwise.scenarios.tables import escape

NUM_MOVED = 25


@dataclass(frozen=True, kw_only=True)
class Move:
    """One measurement whose prediction is another one than the ledger's. Errors are signed."""

    name: str
    measured_s: float
    old_s: float
    new_s: float
    allowed: float

    @property
    def old_error(self) -> float:
        """As the ledger has it."""
        return self.old_s / self.measured_s - 1

    @property
    def new_error(self) -> float:
        """As predicted now."""
        return self.new_s / self.measured_s - 1

    @property
    def worsening(self) -> float:
        """By how much the error's size grew."""
        return abs(self.new_error) - abs(self.old_error)


def moves_of(ledger: Ledger, scored: Iterable[Scored]) -> list[Move]:
    """Predictions that changed since the ledger was written, what worsened most first."""
    now = {(one.group, one.name): one for one in scored}
    moves = [
        Move(
            name=f"{entry.group}, {entry.name}",
            measured_s=entry.measured_s,
            old_s=entry.predicted_s,
            new_s=now[entry.key].predicted_s,
            allowed=BARS[entry.group].each,
        )
        for entry in ledger.entries
        if entry.key in now and abs(now[entry.key].predicted_s / entry.predicted_s - 1) > SAME
    ]
    return sorted(moves, key=lambda move: -move.worsening)


def print_moves(ledger: Ledger, scored: Sequence[Scored], out: Console) -> None:
    """Old and new predictions side by side; a sentence where nothing moved."""
    moves = moves_of(ledger, scored)
    if not moves:
        out.print(
            f"No prediction moved since the ledger's profile {escape(ledger.profile_digest)}."
        )
        return
    num_worse = sum(move.worsening > 0 for move in moves)
    title = (
        f"{len(moves)} of {len(ledger.entries)} predictions moved since profile "
        f"{ledger.profile_digest}, {num_worse} for the worse; the worst first"
    )
    made = tables.table(title, "", "measured", "old", "new", "old error", "new error", "may be")
    for move in moves[:NUM_MOVED]:
        made.add_row(
            escape(move.name),
            *map(tables.seconds, (move.measured_s, move.old_s, move.new_s)),
            f"{move.old_error:+.1%}",
            f"{move.new_error:+.1%}",
            f"{move.allowed:.1%}",
        )
    out.print(made)
    if len(moves) > NUM_MOVED:
        out.print(f"... and {len(moves) - NUM_MOVED} more.")
    _print_aggregates(ledger.aggregates, aggregates_of(scored), out)


def _print_aggregates(old: Iterable[Aggregate], new: Iterable[Aggregate], out: Console) -> None:
    now = {one.name: one.value for one in new}
    made = tables.table("All together", "", "old", "new", "noise")
    for one in old:
        value = f"{now[one.name]:.4f}" if one.name in now else "gone"
        made.add_row(escape(one.name), f"{one.value:.4f}", value, f"{one.noise:.4f}")
    out.print(made)

"""Writing the ledger again: what asks for less than before needs a reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from layerwise.scenarios.accuracy.ledger import (
    Aggregate,
    Ledger,
    Update,
    aggregates_of,
    entry_of,
    is_worse,
    lost,
    read_ledger_of,
    write_ledger,
)
from layerwise.scenarios.accuracy.ledger_tables import moves_of, print_moves
from layerwise.scenarios.accuracy.scored import Scored
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.profile import Profile

NUM_NAMED = 5


def update_and_print(
    path: Path, scored: Sequence[Scored], profile: Profile, reason: str, out: Console
) -> str:
    """Write a ledger again and show old and new side by side; returns a sentence.

    Raises SpecError, and writes nothing, when it would ask for less and there is no reason;
    FileFormatError for a ledger of another GPU.
    """
    old = read_ledger_of(profile.gpu, path) if path.exists() else None
    if old:
        print_moves(old, scored, out)
    date_utc = datetime.now(UTC).isoformat(timespec="seconds")
    new = updated(old, scored, profile, reason, date_utc)
    write_ledger(new, path)
    return f"{path}: {len(new.entries)} measurements; {new.history[-1].changed}"


def updated(
    known: Ledger | None, scored: Sequence[Scored], profile: Profile, reason: str, date_utc: str
) -> Ledger:
    """The ledger after these measurements. Raises SpecError for asking less without a reason."""
    reason = " ".join(reason.split())
    old = known or Ledger(gpu=profile.gpu, profile_digest="", history=(), aggregates=(), entries=())
    less = lost(old, scored)
    if less and not reason:
        first = "; ".join(map(str, less[:NUM_NAMED]))
        raise SpecError(
            "--reason",
            None,
            f"is missing and the ledger would ask for less {len(less)} times ({first})",
            "give --reason TEXT, which is written into it, or repair what worsened",
        )
    changed = {
        "added": len({(one.group, one.name) for one in scored} - {one.key for one in old.entries}),
        "moved": len(moves_of(old, scored)),
        "explained": len(less),
    }
    update = Update(
        date_utc=date_utc,
        profile_digest=profile.digest,
        reason=reason,
        changed="; ".join(f"{num} {what}" for what, num in changed.items() if num) or "nothing",
    )
    return Ledger(
        gpu=profile.gpu,
        profile_digest=profile.digest,
        aggregates=tuple(_aggregates(old.aggregates, aggregates_of(scored))),
        entries=tuple(map(entry_of, sorted(scored, key=lambda one: (one.group, one.name)))),
        history=(*old.history, update),
    )


def _aggregates(old: Iterable[Aggregate], new: Iterable[Aggregate]) -> Iterable[Aggregate]:
    """Worse within noise: what was reached stays, or many small steps would add up."""
    before = {one.name: one for one in old}
    for one in new:
        known = before.get(one.name, one)
        yield one if one.value < known.value or is_worse(known, one) else known

"""Writing the ledger again: what tightens does so silently, what loosens needs a reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from layerwise.scenarios.accuracy.ledger import (
    Aggregate,
    Entry,
    Ledger,
    Update,
    aggregates_of,
    entry_of,
    is_worse,
    least_tolerance,
    read_ledger,
    was_measured_again,
    write_ledger,
)
from layerwise.scenarios.accuracy.ledger_tables import print_moves
from layerwise.scenarios.accuracy.scored import Scored
from layerwise.sim.plan.errors import FileFormatError, SpecError
from layerwise.sim.profile import Profile

NUM_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What an update does to a ledger: names. All but `added` and `tightened` need a reason."""

    added: tuple[str, ...] = ()
    tightened: tuple[str, ...] = ()
    loosened: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    measured_again: tuple[str, ...] = ()

    @property
    def to_explain(self) -> tuple[str, ...]:
        """Everything that makes the gate ask for less."""
        return (*self.loosened, *self.removed, *self.measured_again)

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {what.replace('_', ' ')}" for what, names in vars(self).items() if names
        ]
        if self.removed:
            parts.append(f"removed: {', '.join(self.removed)}")
        return "; ".join(parts) or "nothing"


def update_and_print(
    path: Path, scored: Sequence[Scored], profile: Profile, reason: str, out: Console
) -> str:
    """Write a ledger again and show old and new side by side; returns a sentence.

    Raises SpecError, and writes nothing, when something loosens and there is no reason;
    FileFormatError for a ledger of another GPU.
    """
    old = read_ledger(path) if path.exists() else None
    if old and old.gpu != profile.gpu:
        raise FileFormatError(
            f"{path}: is the ledger of {old.gpu}, and the profile is of {profile.gpu}; "
            "name that GPU's ledger"
        )
    if old:
        print_moves(old, scored, out)
    date_utc = datetime.now(UTC).isoformat(timespec="seconds")
    new, changes = updated(old, scored, profile, reason, date_utc)
    write_ledger(new, path)
    return f"{path}: {len(new.entries)} measurements; {changes}"


def updated(
    old: Ledger | None, scored: Sequence[Scored], profile: Profile, reason: str, date_utc: str
) -> tuple[Ledger, Changes]:
    """The ledger after these measurements. Raises SpecError for loosening without a reason."""
    reason = " ".join(reason.split())
    before = {entry.key: entry for entry in old.entries} if old else {}
    entries = tuple(
        _entry(before.get((one.group, one.name)), one, reason)
        for one in sorted(scored, key=lambda one: (one.group, one.name))
    )
    known = old.aggregates if old else ()
    aggregates = _aggregates(known, aggregates_of(scored), reason)
    changes = _changes(before, scored, entries, known, aggregates)
    if old and changes.to_explain and not reason:
        first = ", ".join(changes.to_explain[:NUM_NAMED])
        raise SpecError(
            "--reason",
            None,
            f"is missing and {len(changes.to_explain)} lines would ask for less ({first})",
            "give --reason TEXT, which is written into them, or repair what worsened",
        )
    update = Update(
        date_utc=date_utc, profile_digest=profile.digest, reason=reason, changed=str(changes)
    )
    ledger = Ledger(
        gpu=profile.gpu,
        profile_digest=profile.digest,
        aggregates=aggregates,
        entries=entries,
        history=(*(old.history if old else ()), update),
    )
    return ledger, changes


def _entry(old: Entry | None, one: Scored, reason: str) -> Entry:
    least = least_tolerance(one)
    if old is None:
        return entry_of(one, least)
    if was_measured_again(old, one):
        return entry_of(one, least, reason)
    if least <= old.tolerance:
        return entry_of(one, least, old.reason if least == old.tolerance else "")
    # An error inside its tolerance keeps it: a step towards the edge does not move the edge.
    inside = abs(one.error) <= old.tolerance
    return entry_of(one, old.tolerance, old.reason) if inside else entry_of(one, least, reason)


def _aggregates(
    old: Iterable[Aggregate], new: Iterable[Aggregate], reason: str
) -> tuple[Aggregate, ...]:
    before = {one.name: one for one in old}

    def kept(one: Aggregate) -> Aggregate:
        known = before.get(one.name)
        if known is None or one.value < known.value:
            return one
        # Worse within noise: what was reached stays, or many small steps would add up.
        return replace(one, reason=reason) if is_worse(known, one) else known

    return tuple(map(kept, new))


def _changes(
    before: dict[tuple[str, str], Entry],
    scored: Sequence[Scored],
    entries: Sequence[Entry],
    old_aggregates: Iterable[Aggregate],
    aggregates: Iterable[Aggregate],
) -> Changes:
    now = {(one.group, one.name): one for one in scored}
    known = [(before[entry.key], entry) for entry in entries if entry.key in before]
    again = {old.key for old, _ in known if was_measured_again(old, now[old.key])}
    same = [(old, new) for old, new in known if old.key not in again]
    values = {one.name: one.value for one in aggregates}
    gone = [one.name for one in old_aggregates if one.name not in values]
    worse = [one.name for one in old_aggregates if values.get(one.name, 0.0) > one.value]
    better = [one.name for one in old_aggregates if values.get(one.name, one.value) < one.value]
    return Changes(
        added=_names(entry.key for entry in entries if entry.key not in before),
        tightened=(*_names(n.key for o, n in same if n.tolerance < o.tolerance), *better),
        loosened=(*_names(n.key for o, n in same if n.tolerance > o.tolerance), *worse),
        removed=(*_names(key for key in before if key not in now), *gone),
        measured_again=_names(again),
    )


def _names(keys: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(sorted(f"{group}, {name}" for group, name in keys))

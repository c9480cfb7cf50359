"""Predictions committed to a file before a run: written once, and read back with their checks.

Whether they are older than a run is asked of git: a file's own date is a claim, a commit that
brought exactly this content is more.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.reading import read_json
from layerwise.sim.trace import write_atomically

T = TypeVar("T")


def write_committed(path: Path, make: Callable[[], T], file_format: str, version: int) -> T:
    """Make a dataclass of predictions and write it; returns it.

    Raises FileFormatError, before anything is made, when the file exists: a prediction made before
    a run is not made again after it.
    """
    if path.exists():
        raise FileFormatError(
            f"{path}: exists; a committed prediction is never overwritten, choose another file"
        )
    made = make()
    data: dict[str, Any] = {"format": file_format, "version": version}
    data |= asdict(cast("Any", made))
    write_atomically(path, json.dumps(data, indent=1) + "\n")
    return made


def read_committed(path: Path, kind: type[T], file_format: str, version: int) -> T | None:
    """What was committed, or None where nothing was.

    Raises FileFormatError, or SpecError for fields that are wrong.
    """
    from layerwise.sim.plan.files import validate

    if not path.exists():
        return None
    data = read_json(path)
    if not isinstance(data, dict) or data.pop("format", None) != file_format:
        raise FileFormatError(f"{path}: does not say format={file_format!r}; is it a prediction?")
    found = data.pop("version", None)
    if found != version:
        raise FileFormatError(
            f"{path}: prediction version {found!r} is another version than {version}, which this "
            "program reads; commit it again before another run"
        )
    return validate(kind, data, str(path))


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """Was a prediction there before a run? `told` says so in a phrase.

    `is_before` None: nobody knows. `commit`, `committed_at` (ISO 8601): the commit that brought it.
    """

    told: str
    is_before: bool | None = False
    commit: str = ""
    committed_at: str = ""


@dataclass(frozen=True)
class _Introduced:
    """The first commit with this content; empty where there is none."""

    commit: str = ""
    at: str = ""
    history_is_cut: bool = False


def earlier_than(run_date: str, path: Path, created: str) -> Earlier:
    """Is the prediction in a file, which says it was made at `created`, older than a run?

    Dates are ISO 8601, "" where unknown.
    """
    if not created:
        return Earlier(told="not committed before")
    ran, made = _date(run_date), _date(created)
    if ran is None:
        return Earlier(told="not known: the trace does not say when it ran", is_before=None)
    found = _introduced(path)
    if found is None or (found.history_is_cut and (_date(found.at) or ran) >= ran):
        why = "no git history here" if found is None else "git's history is cut short here"
        if made is None or made >= ran:
            return Earlier(told=f"not committed before: made {_shown(created)}, after the run")
        return Earlier(
            told=f"predicted before the run by its own date ({_shown(created)}; {why})",
            is_before=True,
        )
    if not found.commit:
        return Earlier(told=f"not committed before: {path.name} is as in no commit")
    brought = _date(found.at)
    if brought is None or brought >= ran:
        return Earlier(
            told=f"not committed before: commit {found.commit}, {_shown(found.at)}, is later",
            commit=found.commit,
            committed_at=found.at,
        )
    return Earlier(
        told=f"predicted before the run (commit {found.commit}, {_shown(found.at)})",
        is_before=True,
        commit=found.commit,
        committed_at=found.at,
    )


def _introduced(path: Path) -> _Introduced | None:
    """Ask git; None where there is none, or the file is not one of those it keeps.

    An installed copy may lie in an ignored folder of a checkout, of which git knows nothing.
    """
    if _git(path, "ls-files", "--error-unmatch", path.name) is None:
        return None
    cut = _git(path, "rev-parse", "--is-shallow-repository")
    blob = _git(path, "hash-object", path.name)
    if cut is None or blob is None:
        return None
    log = _git(path, "log", "--format=%h %cI", f"--find-object={blob}", "--", path.name)
    *_, first = (log or "").splitlines() or [""]
    commit, _, at = first.partition(" ")
    return _Introduced(commit, at, cut == "true")


def _git(path: Path, *arguments: str) -> str | None:
    program = shutil.which("git")
    if program is None:
        return None
    said = subprocess.run(  # noqa: S603 - git as it was found, asked to read
        [program, "-C", str(path.parent), *arguments], capture_output=True, text=True, check=False
    )
    return said.stdout.strip() if said.returncode == 0 else None


def _date(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _shown(text: str) -> str:
    found = _date(text)
    return f"{found.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if found else text

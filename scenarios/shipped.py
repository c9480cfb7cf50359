"""The files that come with the package, by name: scenarios, sweeps, models, profiles, traces.

A name is a path below its kind's folder without the ending, as in `validation/stage-8`. A file of
one's own always wins.
"""

from __future__ import annotations

import difflib
import gzip
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from layerwise.calibration import data
from layerwise.sim.plan.errors import SpecError, did_you_mean, nearest

HERE = Path(__file__).parent
TRACE_BEGINS = b'{"format": "layerwise-trace"'


def _is_trace(path: Path) -> bool:
    """Is it a trace, among the lists of measured points that lie beside them?"""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        return file.read(len(TRACE_BEGINS)) == TRACE_BEGINS


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Where the files of one kind lie, and which of the files there they are."""

    folder: Path
    patterns: tuple[str, ...]
    endings: tuple[str, ...]
    is_one: Callable[[Path], bool] = Path.is_file

    def files(self) -> dict[str, Path]:
        """Return the shipped files by name, in order."""
        paths = (path for pattern in self.patterns for path in self.folder.glob(pattern))
        found = {self.name_of(path.relative_to(self.folder)): path for path in sorted(paths)}
        return {name: path for name, path in found.items() if self.is_one(path)}

    def name_of(self, path: Path) -> str:
        """Return a path's name: without its ending, with / between its parts."""
        text = path.as_posix()
        return next((text.removesuffix(e) for e in self.endings if text.endswith(e)), text)


KINDS: dict[str, Kind] = {
    "scenario": Kind(
        folder=HERE,
        patterns=("*/*.toml",),
        endings=(".toml",),
        is_one=lambda path: path.parent.name != "sweeps",
    ),
    "sweep": Kind(folder=HERE / "sweeps", patterns=("*.toml",), endings=(".toml",)),
    "model": Kind(
        folder=HERE / "examples",
        patterns=("*.json",),
        endings=(".json",),
    ),
    "profile": Kind(
        folder=data.FOLDER / "profiles",
        patterns=("*.json",),
        endings=(".json",),
    ),
    "trace": Kind(
        folder=data.FOLDER / "traces",
        patterns=("**/*.jsonl", "**/*.jsonl.gz"),
        endings=data.TRACE_SUFFIXES,
        is_one=_is_trace,
    ),
}


def find(text: str | Path, option: str, *kinds: str) -> Path:
    """Return the file of this path, or the shipped file of this name; the first kind that has one.

    Raises SpecError, which names the nearest names, where there is neither.
    """
    path = Path(text)
    if path.is_file():
        return path
    known: dict[str, Path] = {}
    for kind in kinds:
        own = KINDS[kind].files()
        name = KINDS[kind].name_of(path).removeprefix(f"{kind}s/")
        if name in own:
            return own[name]
        known = own | known
    if path.exists():  # a folder or a pipe: what reads it says why it cannot
        return path
    problem = f"is no file and no shipped {' or '.join(kinds)}"
    raise SpecError(option, str(text), problem, _nearest(KINDS[kinds[0]].name_of(path), known))


def _nearest(name: str, known: dict[str, Path]) -> str:
    last = {each.rpartition("/")[2]: each for each in reversed(known)}
    close = [each for each in known if name and each.startswith(name)][:2]
    close = close or difflib.get_close_matches(name, known, n=2, cutoff=0.75)
    close = close or [last[one] for one in difflib.get_close_matches(name, last, n=2)]
    said = did_you_mean(close) or "give the path of one, or a name"
    few = f"shipped are {', '.join(known)}" if len(known) < 5 else ""
    return f"{said} ({few or '`layerwise shipped` lists all'})"


def shipped_names(kinds: Iterable[str] = ()) -> dict[str, list[str]]:
    """Return the names of each kind. Raises SpecError for a kind that there is none of."""
    for kind in kinds:
        if kind not in KINDS:
            raise SpecError("KIND", kind, "is no kind of file", nearest(kind, KINDS))
    return {kind: list(KINDS[kind].files()) for kind in (kinds or KINDS)}


def folders_of(names: Iterable[str]) -> dict[str, int]:
    """Return how many names each folder has, for kinds of more names than a screen holds."""
    return dict(Counter(name.rpartition("/")[0] for name in names))

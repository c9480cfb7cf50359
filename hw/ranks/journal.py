"""What a rank has measured, kept as it comes: a line per step, in a file of each rank's own.

Beside `trace.jsonl` a run keeps `trace.jsonl.partial/rank-3.jsonl` while it lasts. When it dies,
whoever is left puts the lines together as `trace.partial.jsonl`, which reads as any trace and says
in its environment, under `ended_early`, why it is not whole. Where nobody was left, or the disk was
full: `layerwise recover trace.jsonl.partial`. Needs no torch.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from layerwise.sim.plan.errors import FileFormatError, LayerwiseError, shown
from layerwise.sim.plan.reading import parse_json, read_text
from layerwise.sim.trace import COLUMNS, Row, Trace, check_header, row_of, step_time, write_trace

SUFFIX = ".partial"
REASON_FILE = "ended"
HEADER_FIELDS = ("name", "scenario", "kernel_set", "timing", "environment")
# A line costs about 5 us: at most one per millisecond is written while steps are being timed.
EVERY_S = 1e-3

Times = Literal["untraced_step_s", "traced_step_s"]


def folder_of(out: Path) -> Path:
    """Where the ranks of a run that writes `out` keep their lines."""
    return out.with_name(out.name + SUFFIX)


def partial_trace_path(out: Path) -> Path:
    """The trace of a run that ended early: `trace.partial.jsonl.gz` for `trace.jsonl.gz`."""
    stem, dot, rest = out.name.partition(".jsonl")
    return out.with_name(f"{stem}{SUFFIX}{dot}{rest}")


class Journal:
    """One rank's file. Each line is written, unbuffered, when it is given."""

    def __init__(self, path: Path | None = None) -> None:
        """Lines go nowhere without a path. Raises FileFormatError when it cannot be written."""
        self.path = path
        self._file = -1
        if path is not None:
            with told_of(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def begin(self, header: Trace, *, num_ranks: int, timed_ranks: Sequence[int]) -> None:
        """What the trace will say of the run; `timed_ranks` are those whose step times count."""
        about = {key: getattr(header, key) for key in HEADER_FIELDS}
        self._write({"header": about, "num_ranks": num_ranks, "timed_ranks": list(timed_ranks)})

    def times(self, which: Times, seconds: Sequence[float]) -> None:
        """Seconds of steps, in order."""
        if seconds:
            # Spelled out: steps are being timed, and a dump takes three times as long.
            self._append(f'{{"{which}": [{", ".join(map(repr, seconds))}]}}\n')

    def rows(self, rows: Iterable[Row]) -> None:
        """Rows of one repeat or more."""
        if self.path is not None:
            self._write({"rows": [[getattr(row, column) for column in COLUMNS] for row in rows]})

    def _write(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            self._append(f"{json.dumps(line)}\n")

    def _append(self, line: str) -> None:
        if self._file < 0:
            return
        data = line.encode()
        with told_of(self.path):
            while data:
                data = data[os.write(self._file, data) :]


@contextmanager
def told_of(path: Path | None) -> Iterator[None]:
    """Inside, a file that cannot be written is a FileFormatError that names it."""
    try:
        yield
    except OSError as error:
        raise FileFormatError(
            f"{path}: cannot be written: {error.strerror}; free space, or name another --out"
        ) from error


class Watch(Protocol):
    """A stopwatch, as `StepTimes` needs it."""

    def over(self, after: int, *, end_to_end: bool) -> list[float]: ...
    def repeats(self, after: int, *, end_to_end: bool) -> Iterator[float]: ...


class Place(Protocol):
    """Where a rank is, as others see it."""

    def begin_repeat(self, number: int) -> None: ...


@dataclass
class StepTimes:
    """Writes down what repeats take per step, as it becomes known; gives their seconds at last."""

    journal: Journal
    which: Times
    stopwatch: Watch
    end_to_end: bool
    steps_per_repeat: int
    seconds: list[float] = field(default_factory=list)
    _next_s: float = 0.0

    def repeat_issued(self) -> None:
        """Write what is over by now, unless that was just done. Does not wait."""
        now_s = time.perf_counter()
        if now_s >= self._next_s:
            self._next_s = now_s + EVERY_S
            self._keep(self.stopwatch.over(len(self.seconds), end_to_end=self.end_to_end))

    def rest(self, place: Place) -> list[float]:
        """Wait for every repeat, writing each down; the seconds of all of them."""
        for seconds in self.stopwatch.repeats(len(self.seconds), end_to_end=self.end_to_end):
            place.begin_repeat(len(self.seconds))
            self._keep([seconds])
        return self.seconds

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever breaks inside, what was over by then is written down."""
        try:
            yield
        except BaseException:
            with suppress(Exception):  # what broke is the better message
                self._keep(self.stopwatch.over(len(self.seconds), end_to_end=self.end_to_end))
            raise

    def _keep(self, repeats: Iterable[float]) -> None:
        found = list(repeats)
        self.seconds += found
        self.journal.times(self.which, [seconds / self.steps_per_repeat for seconds in found])


def journal_of(out: Path | None, rank: int) -> Journal:
    """The journal of a rank of a run that writes `out`; of one that writes nothing, nowhere."""
    return Journal(None if out is None else _path_of(out, rank))


def slate_path_of(out: Path, rank: int) -> Path:
    """Where a rank's place can be read when the rank is no more."""
    return folder_of(out) / f"rank-{rank}.at"


def _path_of(out: Path, rank: int) -> Path:
    return folder_of(out) / f"rank-{rank}.jsonl"


def note_reason(folder: Path, reason: str) -> None:
    """Say why the run ends. Who says so first is heard; a full disk may keep nobody."""
    with suppress(OSError), (folder / REASON_FILE).open("x", encoding="utf-8") as file:
        file.write(reason)


def salvage(folder: Path) -> tuple[Path, Trace] | None:
    """Write the trace of what the ranks have kept; None when nothing was measured.

    The file appears whole or not at all, so that several ranks may do it at once.
    """
    trace = assemble(folder)
    if trace is None:
        return None
    path = partial_trace_path(folder.with_name(folder.name.removesuffix(SUFFIX)))
    write_trace(trace, path)
    return path, trace


def salvage_told(folder: Path, *, remove: bool) -> str:
    """Salvage, and what to tell of it in a sentence. The lines stay where that failed."""
    try:
        saved = salvage(folder)
    except LayerwiseError as error:
        return f"what was measured stays in {folder} ({error}); `layerwise recover {folder}`"
    if remove:
        clear(folder)
    return told(*saved) if saved else "nothing was measured before"


def told(path: Path, trace: Trace) -> str:
    """What a salvaged trace holds."""
    repeats = len({row.repeat for row in trace.rows})
    return (
        f"{len(trace.untraced_step_s)} step times and {repeats} traced repeats are kept in {path}"
    )


def clear(folder: Path) -> None:
    """Remove the lines of all ranks."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_own(out: Path | None, rank: int) -> None:
    """Remove one rank's lines, and the folder with the last of them."""
    if out is not None:
        for path in (_path_of(out, rank), slate_path_of(out, rank)):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            folder_of(out).rmdir()


def assemble(folder: Path) -> Trace | None:
    """One trace of the lines of all ranks; None where no rank came to measuring.

    A step counts when every rank whose time counts has measured it. Rows are kept as they are.
    """
    found = {rank: part for rank, path in _files(folder) if (part := _read(path)).header}
    if not found:
        return None
    first = found[min(found)]
    parts = {rank: part for rank, part in found.items() if rank < first.num_ranks}
    timed = [parts[rank] for rank in first.timed_ranks if rank in parts]
    blank = Trace(source="measured", **first.header)
    reason = folder / REASON_FILE
    why = read_text(reason) if reason.exists() else ""
    ranks = ", ".join(map(str, sorted(parts)))
    return replace(
        blank,
        rows=tuple(row for _, part in sorted(parts.items()) for row in part.rows),
        untraced_step_s=_slowest([part.untraced_step_s for part in timed]),
        traced_step_s=_slowest([part.traced_step_s for part in timed]),
        environment=blank.environment
        | {
            "ended_early": why or "for a reason that nobody was left to tell",
            "ranks_kept": f"{ranks} of {first.num_ranks}",
        },
    )


@dataclass
class _Part:
    header: dict[str, Any] = field(default_factory=dict)
    num_ranks: int = 0
    timed_ranks: list[int] = field(default_factory=list)
    untraced_step_s: list[float] = field(default_factory=list)
    traced_step_s: list[float] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


def _files(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        raise FileFormatError(f"{folder}: is no folder of a run's lines; name TRACE{SUFFIX}")
    paths = folder.glob("rank-*.jsonl")
    named = ((path.stem.removeprefix("rank-"), path) for path in paths)
    return sorted((int(rank), path) for rank, path in named if rank.isdecimal())


def _read(path: Path) -> _Part:
    """A rank's lines. The last one may have been cut short: it is left out."""
    part = _Part()
    whole, _, _ = read_text(path).rpartition("\n")
    for number, text in enumerate(whole.splitlines(), 1):
        where = f"{path}: line {number}"
        line = parse_json(text, where)
        try:
            _add(part, line)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{where} is not what a rank writes: {error}") from error
    return part


def _add(part: _Part, line: dict[str, Any]) -> None:
    """Raises AttributeError, KeyError, TypeError or ValueError for what no rank has written."""
    if "header" in line:
        header = {key: line["header"][key] for key in HEADER_FIELDS}
        check_header(header)
        part.header |= header
        part.num_ranks = _rank(line["num_ranks"])
        part.timed_ranks = [_rank(rank) for rank in line["timed_ranks"]]
    part.untraced_step_s += [step_time(value) for value in line.get("untraced_step_s", [])]
    part.traced_step_s += [step_time(value) for value in line.get("traced_step_s", [])]
    part.rows += [row_of(values) for values in line.get("rows", [])]


def _rank(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{shown(value)} is no number of ranks")
    return value


def _slowest(per_rank: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(max(times) for times in zip(*per_rank, strict=False))

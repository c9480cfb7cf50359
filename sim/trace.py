"""The trace: rows of what ran when, predicted or measured, in one format on both sides.

A file is JSON lines: a header object, then one array per row in the header's column order. Times
are seconds on the rank's own clock. Files ending in `.gz` are compressed. Writing is atomic.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Literal

from sim.plan.errors import FileFormatError, shown
from sim.plan.reading import parse_json, require_regular

# The ratio of traced to untraced time above which the split by op is not that of the real run.
TRACED_RATIO_LIMIT = 1.03
# Keys of a trace's environment that say `no`, or why the GPU slowed itself down: where it was
# sampled during the repeats, and where only before and after them.
THROTTLE_NOTES = (
    {"throttled": "in the timed repeats", "throttled_traced": "in the traced repeats"},
    {"throttled_before": "before the run", "throttled_after": "at the end of the run"},
)
# Beyond any run: seconds, readings in SI units, numbers of a repeat, step or rank.
MAX_TIME_S, MAX_READING, MAX_COUNT = 1e9, 1e30, 10**9
# Characters; a header carries every step time of its run.
MAX_LINE, MAX_BLANK_LINES = 2**25, 100
FORMAT = "layerwise-trace"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One op of one rank in one step.

    `ready_s`: dependencies met and stream free. `start_s`: its first kernel starts. `end_s`: its
    last kernel ends. `bound` (predicted) names what limits it. `replaced` (measured or predicted)
    marks a peer's message that was replaced by a local buffer: kept out of every score.
    """

    repeat: int
    step: int
    rank: int
    op: str
    kind: str
    stream: str
    ready_s: float
    start_s: float
    end_s: float
    bound: str = ""
    replaced: bool = False

    @property
    def duration_s(self) -> float:
        """From first kernel start to last kernel end."""
        return self.end_s - self.start_s

    @property
    def key(self) -> tuple[int, int, int, str]:
        """What predicted and measured rows are joined on: (repeat, step, rank, op)."""
        return (self.repeat, self.step, self.rank, self.op)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A run and where it came from.

    `scenario` is the scenario as data. `kernel_set` must be equal in traces that are compared.
    `untraced_step_s`: step times with no tracer attached, one per repeat; `traced_step_s` beside.
    `measured`: other readings taken in the same call (bandwidths in bytes/s, ...).
    """

    source: Literal["predicted", "measured"]
    name: str
    scenario: dict[str, Any]
    kernel_set: str
    rows: tuple[Row, ...] = ()
    untraced_step_s: tuple[float, ...] = ()
    traced_step_s: tuple[float, ...] = ()
    timing: str = "none"
    measured: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    purpose: Literal["fit", "validation", "other"] = "other"

    @property
    def traced_ratio(self) -> float:
        """Median step with the tracer attached over median step without; 0 where one is missing."""
        if not (self.traced_step_s and self.untraced_step_s):
            return 0.0
        return median(self.traced_step_s) / median(self.untraced_step_s)

    @property
    def is_disturbed(self) -> bool:
        """Did the tracer slow the run by more than TRACED_RATIO_LIMIT allows?"""
        return self.traced_ratio > TRACED_RATIO_LIMIT

    def cautions(self) -> tuple[str, ...]:
        """What a reader has to know before believing the trace, in a sentence each."""
        notes: list[str] = []
        if self.is_disturbed:
            ratio = f"x{self.traced_ratio:.3f}"
            notes.append(f"the per-op split is disturbed by the tracer ({ratio})")
        if reason := self.environment.get("timing_fallback"):
            notes.append(f"ops were timed by CUDA events, not by CUPTI: {reason}")
        if reason := self.environment.get("ended_early"):
            notes.append(f"the run ended early: {reason}")
        for key, when in THROTTLE_NOTES[0 if "throttled" in self.environment else 1].items():
            if (reasons := self.environment.get(key, "no")) != "no":
                notes.append(f"the GPU throttled {when}: {reasons}")
        return tuple(notes)


def is_held_down(reasons: str) -> bool:
    """Was the GPU hot, or slowed by its hardware? The power cap alone is how large runs always run."""
    return "thermal" in reasons or "hardware" in reasons


COLUMNS = tuple(f.name for f in fields(Row))
SOURCES = ("predicted", "measured")
PURPOSES = ("fit", "validation", "other")
ROW_KINDS: dict[str, type] = {
    "repeat": int, "step": int, "rank": int, "op": str, "kind": str, "stream": str,
    "ready_s": float, "start_s": float, "end_s": float, "bound": str, "replaced": bool,
}  # fmt: skip
HEADER_KINDS: dict[str, type] = {
    "source": str, "name": str, "scenario": dict, "kernel_set": str, "columns": list,
    "num_rows": int, "untraced_step_s": list, "traced_step_s": list, "timing": str,
    "measured": dict, "environment": dict, "purpose": str,
}  # fmt: skip


def write_trace(trace: Trace, path: Path) -> None:
    """Write a trace; the file appears whole or not at all."""
    write_rows(trace, trace.rows, len(trace.rows), path)


def write_rows(trace: Trace, rows: Iterable[Row], num_rows: int, path: Path) -> None:
    """Write a trace's header and rows as they come, holding none of them.

    `rows` take the place of the trace's own. Raises FileFormatError when there are not `num_rows`
    of them, or the path cannot be written; then there is no file.
    """
    header = {"format": FORMAT, "version": VERSION, "columns": COLUMNS, "num_rows": num_rows}
    header |= {f.name: getattr(trace, f.name) for f in fields(Trace) if f.name != "rows"}
    written = 0
    with _appearing(path) as file:
        file.write(f"{json.dumps(header)}\n".encode())
        for row in rows:
            file.write(_line_of(row).encode())
            written += 1
        if written != num_rows:
            raise FileFormatError(
                f"{path}: {written} rows were made where {num_rows} were promised"
            )


def write_atomically(path: Path, text: str) -> None:
    """Write text (compressed when the name ends in .gz) and rename into place.

    Folders on the way are made. Raises FileFormatError when the path cannot be written.
    """
    with _appearing(path) as file:
        file.write(text.encode())


@contextmanager
def _appearing(path: Path) -> Generator[io.BufferedIOBase]:
    """A file to write that takes its name once all of it is there."""
    if not path.name or path.is_dir():
        raise FileFormatError(f"{path}: is a folder; name a file to write")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as plain:
            if path.suffix == ".gz":
                # Neither name nor time go into the file: equal traces have equal bytes.
                with gzip.GzipFile("", "wb", fileobj=plain, mtime=0) as packed:
                    yield packed
            else:
                yield plain
        temporary.replace(path)
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_trace(path: Path) -> Trace:
    """Read a trace file.

    Raises FileFormatError for another format or version, a truncated file or a bad row, naming
    file and line.
    """
    lines = _lines(path)
    header = _header(path, next(lines, ""))
    expected = header.pop("num_rows")
    columns = tuple(header.pop("columns"))
    # One more than promised is enough to know: there may be no end to a compressed file.
    kept = enumerate(islice(lines, max(expected, 0) + 1), 2)
    rows = tuple(_row(path, number, line, columns) for number, line in kept)
    if len(rows) != expected:
        found = f"{len(rows)} rows" if len(rows) < expected else "more rows"
        raise FileFormatError(
            f"{path}: {found} where the header promises {expected}; "
            "the file was cut short or added to: measure again, or take another copy"
        )
    for key in ("untraced_step_s", "traced_step_s"):
        header[key] = tuple(header.get(key, ()))
    known = {f.name for f in fields(Trace)}
    return Trace(rows=rows, **{key: value for key, value in header.items() if key in known})


def as_data(value: Any) -> dict[str, Any]:
    """A frozen spec as plain data, for a trace's header."""
    return asdict(value)


def _line_of(row: Row) -> str:
    """A row as a JSON array in COLUMNS' order.

    Seconds to the tenth of a nanosecond: traces are committed and read by people. Spelled out, for
    a long run has millions: three times as fast as a dump of a list.
    """
    return (
        f"[{row.repeat}, {row.step}, {row.rank}, {_quoted(row.op)}, {_quoted(row.kind)}, "
        f"{_quoted(row.stream)}, {round(row.ready_s, 10)!r}, {round(row.start_s, 10)!r}, "
        f"{round(row.end_s, 10)!r}, {_quoted(row.bound)}, {'true' if row.replaced else 'false'}]\n"
    )


@lru_cache(maxsize=65_536)
def _quoted(text: str) -> str:
    return json.dumps(text)


def _lines(path: Path) -> Iterator[str]:
    """Lines as they come, so that a small file that unpacks to a huge one is soon refused."""
    blank = 0
    try:
        require_regular(path)
        with (
            gzip.open(path) if path.suffix == ".gz" else path.open("rb") as packed,
            io.TextIOWrapper(packed, encoding="utf-8-sig") as file,
        ):
            while line := file.readline(MAX_LINE):
                if len(line) == MAX_LINE:
                    raise FileFormatError(f"{path}: cannot be read as a trace: a line has no end")
                if not line.isspace():
                    yield line
                elif (blank := blank + 1) > MAX_BLANK_LINES:
                    raise FileFormatError(f"{path}: cannot be read as a trace: its lines are blank")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: cannot be read as a trace: {error}") from error


def _header(path: Path, line: str) -> dict[str, Any]:
    header = parse_json(line, f"{path}: line 1 is not a trace header: it")
    if not isinstance(header, dict) or header.pop("format", None) != FORMAT:
        raise FileFormatError(f"{path}: line 1 does not say format={FORMAT!r}; is this a trace?")
    version = header.pop("version", None)
    if version != VERSION:
        raise FileFormatError(
            f"{path}: trace version {version!r}, this program reads version {VERSION}; "
            "write it again with this version of layerwise"
        )
    missing = {"source", "name", "scenario", "kernel_set", "columns", "num_rows"} - header.keys()
    if missing:
        raise FileFormatError(f"{path}: the header lacks {sorted(missing)}")
    try:
        check_header(header)
    except ValueError as error:
        raise FileFormatError(f"{path}: line 1: {error}; measure again") from error
    return header


def check_header(header: dict[str, Any]) -> None:
    """Raises ValueError for a key whose value is not what a trace has there."""
    for key, kind in HEADER_KINDS.items():
        if key in header and type(header[key]) is not kind:
            raise ValueError(f"{key}={shown(header[key])} is not a {kind.__name__}")
    for key, allowed in (("source", SOURCES), ("purpose", PURPOSES)):
        if header.get(key, allowed[-1]) not in allowed:
            raise ValueError(f"{key}={shown(header[key])} is none of {allowed}")
    for value in (*header.get("untraced_step_s", ()), *header.get("traced_step_s", ())):
        step_time(value)
    for key, value in header.get("measured", {}).items():
        if not _is_number(value) or not abs(value) <= MAX_READING:
            raise ValueError(f"measured.{key} is {shown(value)}")
    for key, value in header.get("environment", {}).items():
        if type(value) is not str:
            raise ValueError(f"environment.{key} is {shown(value)} and no text")


def step_time(value: Any) -> float:
    """Seconds that a step may have taken. Raises ValueError for what is none."""
    if not _is_number(value) or not 0 < value <= MAX_TIME_S:
        raise ValueError(f"a step took {shown(value)} s")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _row(path: Path, number: int, line: str, columns: Iterable[str]) -> Row:
    try:
        row = row_of(json.loads(line), columns)
    except (ValueError, TypeError, RecursionError) as error:
        raise FileFormatError(
            f"{path}: line {number} is not a row ({error}); measure again, or take another copy"
        ) from error
    return row


def row_of(values: Iterable[Any], columns: Iterable[str] = COLUMNS) -> Row:
    """The row of these values. Raises ValueError or TypeError for what is none."""
    row = Row(**dict(zip(columns, values, strict=True)))
    _check_row(row)
    if row.end_s < row.start_s:
        raise ValueError(f"op {row.op} ends at {row.end_s} before it starts at {row.start_s}")
    return row


def _check_row(row: Row) -> None:
    for key, kind in ROW_KINDS.items():
        value = getattr(row, key)
        right = _is_number(value) if kind is float else type(value) is kind
        if not right:
            raise ValueError(f"{key}={shown(value)} is not a {kind.__name__}")
    for key in ("repeat", "step", "rank"):
        if not 0 <= getattr(row, key) <= MAX_COUNT:
            raise ValueError(f"{key}={shown(getattr(row, key))} is not one of a run")
    if not all(0 <= time <= MAX_TIME_S for time in (row.ready_s, row.start_s, row.end_s)):
        raise ValueError(f"op {row.op} has a time that is not finite or negative")

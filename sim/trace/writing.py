"""Traces -> files. Writing is atomic: a file appears whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.trace.checks import COLUMNS, FORMAT, VERSION
from layerwise.sim.trace.rows import Row, Trace


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
    with appearing(path) as file:
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
    with appearing(path) as file:
        file.write(text.encode())


@contextmanager
def appearing(path: Path) -> Generator[io.BufferedIOBase]:
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

"""The rows of a sweep on disk: appended as they come, read again on resumption, put in order last.

CSV is written line by line. Parquet, whose files cannot grow, is made at the end from a CSV beside
it. A kill loses at most the line that was being written, and that line is written again.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from layerwise.scenarios.sweep.points import FAILED
from layerwise.sim.plan.errors import FileFormatError, MissingPackageError
from layerwise.sim.plan.reading import read_bytes
from layerwise.sim.trace import write_atomically

FORMATS = (".csv", ".parquet")
# A million rows of a thousand bytes.
MAX_RESULT_BYTES = 2**30
LAST_COLUMNS = ("status", "reason", "key")

Row = tuple[str, ...]


@dataclass
class Journal:
    """An open file of rows. `rows`: what it holds, by key; `header`: its columns, `key` the last."""

    header: Row
    file: BinaryIO
    rows: dict[str, Row] = field(default_factory=dict[str, Row])

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        """Write rows that are not there yet, whole lines at once, and flush."""
        new = [row for row in map(_as_text, rows) if row[-1] not in self.rows]
        self.file.write(_csv_text(new).encode())
        self.file.flush()
        self.rows.update({row[-1]: row for row in new})


@contextmanager
def open_journal(out: Path, header: Row) -> Generator[Journal]:
    """The journal of a result, with the rows of earlier runs of the same sweep.

    Points that failed are run again, and so is the one whose line a kill cut short. Raises
    FileFormatError for another suffix, a file with other columns, or one that another process is
    writing; MissingPackageError for Parquet without pyarrow.
    """
    _check_format(out)
    path = journal_path(out)
    rows = read_rows(out, header) if out != path and out.exists() else {}
    with _nothing_if_refused(path), _locked(path) as file:
        rows |= _rows_of_csv(path, header)
        file.truncate(_end_of_lines(path))
        if not file.tell():
            file.write(_csv_text([header]).encode())
            file.flush()
        yield Journal(header, file, {k: row for k, row in rows.items() if row[-3] != FAILED})


def journal_path(out: Path) -> Path:
    """Where rows go as they come: the CSV itself, or one beside a Parquet file."""
    return out if out.suffix == ".csv" else out.with_name(f"{out.name}.partial.csv")


def finish(journal: Journal, out: Path, keys: Iterable[str]) -> None:
    """Write the result with one row per key, in this order: equal sweeps make equal files."""
    rows = [journal.rows[key] for key in dict.fromkeys(keys)]
    if out.suffix == ".csv":
        write_atomically(out, _csv_text([journal.header, *rows]))
        return
    _write_parquet(out, journal.header, rows)
    journal_path(out).unlink()


def read_rows(path: Path, header: Row = ()) -> dict[str, Row]:
    """Rows of a result by key; with a `header`, only of a file that has these columns.

    Raises FileFormatError for what is not a sweep's result.
    """
    _check_format(path)
    if path.suffix == ".csv":
        if not path.exists():
            raise FileFormatError(f"{path}: is not there; name a result of `layerwise sweep`")
        return _rows_of_csv(path, header)
    found = _read_parquet(path)
    _check_header(path, found[0], header)
    return {row[-1]: row for row in found[1:]}


def read_typed(path: Path) -> list[dict[str, Any]]:
    """Read a result's rows, each a dictionary; numbers are numbers and empty cells None."""
    header, rows = read_header(path), list(read_rows(path).values())
    columns = [
        list(cells) if name in LAST_COLUMNS else _typed(cells)
        for name, cells in zip(header, zip(*rows, strict=True), strict=True)
    ]
    return [dict(zip(header, cells, strict=True)) for cells in zip(*columns, strict=True)]


def read_header(path: Path) -> Row:
    """The columns of a result."""
    if path.suffix == ".parquet":
        return _read_parquet(path)[0]
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(next(csv.reader(file), ()))


def _check_format(path: Path) -> None:
    if path.suffix not in FORMATS:
        raise FileFormatError(f"{path}: is neither .csv nor .parquet; name one of them")
    if path.is_dir():
        raise FileFormatError(f"{path}: is a folder; name a file")
    if path.suffix == ".parquet":
        _parquet_package()


def _check_header(path: Path, found: Row, wanted: Row) -> None:
    if found[-3:] != LAST_COLUMNS:
        raise FileFormatError(f"{path}: is not a result of `layerwise sweep`; name another file")
    if wanted and found != wanted:
        other = sorted(set(found) ^ set(wanted))
        raise FileFormatError(
            f"{path}: holds the rows of another sweep (its columns differ: {other}); name another "
            f"--out, and take over what it has with --reuse {path}"
        )


def _rows_of_csv(path: Path, header: Row) -> dict[str, Row]:
    try:
        text = read_bytes(path, MAX_RESULT_BYTES).decode()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: is not a CSV file: {error}") from error
    if not text:
        return {}
    whole = text[: text.rfind("\n") + 1]
    try:
        lines = [tuple(row) for row in csv.reader(io.StringIO(whole, newline=""))]
    except csv.Error as error:
        raise FileFormatError(f"{path}: is not a CSV file: {error}") from error
    if not lines:
        # A header that a kill cut short, unless it is somebody's file.
        if header and _csv_text([header]).startswith(text):
            return {}
        raise FileFormatError(f"{path}: is not a result of `layerwise sweep`; name another file")
    _check_header(path, lines[0], header)
    wrong = next((n for n, row in enumerate(lines, 1) if len(row) != len(lines[0])), None)
    if wrong:
        raise FileFormatError(
            f"{path}: line {wrong} has another number of columns; mend or remove it"
        )
    return {row[-1]: row for row in lines[1:]}


@contextmanager
def _nothing_if_refused(path: Path) -> Generator[None]:
    """Make room for the file; what ends in an error before its first row leaves nothing behind."""
    is_new = not path.exists()
    folders = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except Exception:
        if is_new and (not path.exists() or path.read_bytes().count(b"\n") <= 1):
            path.unlink(missing_ok=True)
            for folder in folders:
                folder.rmdir()
        raise


@contextmanager
def _locked(path: Path) -> Generator[BinaryIO]:
    """The file, open for appending by this process alone."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileFormatError(
                f"{path}: another sweep is writing it; wait for it, or name another --out"
            ) from error
        except OSError:
            pass  # some cluster file systems know no locks
        yield file


def _end_of_lines(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1


def _as_text(row: Sequence[object]) -> Row:
    """Cells of one line each; nothing for what there is not."""
    return tuple("" if cell is None else " ".join(str(cell).split()) for cell in row)


def _csv_text(rows: Iterable[Row]) -> str:
    made = io.StringIO(newline="")
    csv.writer(made, lineterminator="\n").writerows(rows)
    return made.getvalue()


def _parquet_package() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError(
            "pyarrow",
            "read and write Parquet",
            "pip install '.[parquet]'",
            "--out FILE.csv",
        ) from error
    return pyarrow.parquet


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa

    try:
        table = _parquet_package().read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise FileFormatError(f"{path}: cannot be read as Parquet: {error}") from error
    header = tuple(table.column_names)
    return [header, *(_as_text([row[name] for name in header]) for row in table.to_pylist())]


def _write_parquet(path: Path, header: Row, rows: list[Row]) -> None:
    """Columns are whole numbers, reals, truths or text: whichever all their cells can be."""
    package = _parquet_package()
    import pyarrow as pa

    cells = zip(*rows, strict=True) if rows else ((),) * len(header)
    columns = {
        name: list(column) if name in LAST_COLUMNS else _typed(column)
        for name, column in zip(header, cells, strict=True)
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    package.write_table(pa.table(columns), temporary)
    temporary.replace(path)


def _typed(cells: tuple[str, ...]) -> list[Any]:
    for kind in (int, float, lambda text: {"True": True, "False": False}[text]):
        try:
            return [None if cell == "" else kind(cell) for cell in cells]
        except (ValueError, KeyError, OverflowError):
            continue
    return list(cells)

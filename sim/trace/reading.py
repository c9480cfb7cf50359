"""Files -> traces. A file is data that somebody else wrote: what is wrong in it is said by line."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.reading import parse_json, require_regular
from layerwise.sim.trace.checks import FORMAT, VERSION, check_header, row_of
from layerwise.sim.trace.rows import Row, Trace

# Characters; a header carries every step time of its run.
MAX_LINE, MAX_BLANK_LINES = 2**25, 100
# How long steps follow each other before a GPU's clock is what its power limit allows: 40 to 80 ms
# on an H200 (calibration/traces/fit-h200). Shorter runs are bursts.
LIMIT_ACTS_S = 0.1


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
    header["scenario"] = _with_regime(header)
    known = {f.name for f in fields(Trace)}
    return Trace(rows=rows, **{key: value for key, value in header.items() if key in known})


def _with_regime(header: dict[str, Any]) -> dict[str, Any]:
    """Say of a run from before regimes which one its clock was in: its power limit acts in time.

    Such a run was warmed up and repeated without a rest.
    """
    scenario, run = header["scenario"], header["scenario"].get("run")
    if header["source"] != "measured" or not isinstance(run, dict) or "regime" in run:
        return scenario
    lasted_s = sum(header["untraced_step_s"]) * run.get("steps_per_graph", 1)
    regime = "sustained" if lasted_s >= LIMIT_ACTS_S else "burst"
    return scenario | {"run": run | {"regime": regime}}


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


def _row(path: Path, number: int, line: str, columns: Iterable[str]) -> Row:
    try:
        row = row_of(json.loads(line), columns)
    except (ValueError, TypeError, RecursionError) as error:
        raise FileFormatError(
            f"{path}: line {number} is not a row ({error}); measure again, or take another copy"
        ) from error
    return row

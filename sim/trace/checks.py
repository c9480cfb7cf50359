"""What a trace's header and rows may hold: everything a file says is checked against this."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from layerwise.sim.plan.errors import shown
from layerwise.sim.trace.rows import Row

FORMAT = "layerwise-trace"
VERSION = 1
# Beyond any run: seconds, readings in SI units, numbers of a repeat, step or rank.
MAX_TIME_S, MAX_READING, MAX_COUNT = 1e9, 1e30, 10**9
COLUMNS = tuple(f.name for f in fields(Row))
SOURCES = ("predicted", "measured")
PURPOSES = ("fit", "validation", "other")
ROW_KINDS: dict[str, type] = {
    "repeat": int,
    "step": int,
    "rank": int,
    "op": str,
    "kind": str,
    "stream": str,
    "ready_s": float,
    "start_s": float,
    "end_s": float,
    "bound": str,
    "replaced": bool,
}
HEADER_KINDS: dict[str, type] = {
    "source": str,
    "name": str,
    "scenario": dict,
    "kernel_set": str,
    "columns": list,
    "num_rows": int,
    "untraced_step_s": list,
    "traced_step_s": list,
    "timing": str,
    "measured": dict,
    "environment": dict,
    "purpose": str,
}


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

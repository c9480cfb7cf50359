"""The trace: rows of what ran when, predicted or measured, in one format on both sides.

A file is JSON lines: a header object, then one array per row in the header's column order. Times
are seconds on the rank's own clock. Files ending in `.gz` are compressed. Writing is atomic.
"""

from layerwise.sim.trace.checks import (
    COLUMNS,
    FORMAT,
    HEADER_KINDS,
    MAX_COUNT,
    MAX_READING,
    MAX_TIME_S,
    PURPOSES,
    ROW_KINDS,
    SOURCES,
    VERSION,
    check_header,
    row_of,
    step_time,
)
from layerwise.sim.trace.reading import MAX_BLANK_LINES, MAX_LINE, read_trace
from layerwise.sim.trace.rows import (
    THROTTLE_NOTES,
    TRACED_RATIO_LIMIT,
    Row,
    Trace,
    as_data,
    is_held_down,
)
from layerwise.sim.trace.writing import appearing, write_atomically, write_rows, write_trace

__all__ = [
    "COLUMNS",
    "FORMAT",
    "HEADER_KINDS",
    "MAX_BLANK_LINES",
    "MAX_COUNT",
    "MAX_LINE",
    "MAX_READING",
    "MAX_TIME_S",
    "PURPOSES",
    "ROW_KINDS",
    "SOURCES",
    "THROTTLE_NOTES",
    "TRACED_RATIO_LIMIT",
    "VERSION",
    "Row",
    "Trace",
    "appearing",
    "as_data",
    "check_header",
    "is_held_down",
    "read_trace",
    "row_of",
    "step_time",
    "write_atomically",
    "write_rows",
    "write_trace",
]

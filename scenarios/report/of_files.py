"""Results that other commands wrote, as parts of a page: `rank --json`, `what-if --json`, sweeps.

What a file holds is data from outside: a key that is missing is an error that names the file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from layerwise.scenarios.report.charts import PALETTE, layout, log_axis
from layerwise.scenarios.report.markup import Cell, Chart, in_chart, table
from layerwise.scenarios.report.of_ranking import ranking_section
from layerwise.scenarios.report.sections import Section
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.reading import read_json, read_text

MAX_ROWS = 500
# What a pair of a sweep's columns is drawn as, where a sweep has both.
RATE, INTERVAL_S = "tokens_per_s", "tpot_s"
SIGNS = ("circle", "diamond-open", "x", "square-open")


def json_section(path: Path, key: str) -> Section:
    """A ranking or the answer to a what-if. Raises FileFormatError for anything else."""
    data = read_json(path)
    readers: dict[str, Callable[[Path, dict[str, Any], str], Section]] = {
        "pareto_front": ranking_section,
        "what_if": _what_if,
    }
    for telling, read in readers.items():
        if isinstance(data, dict) and telling in data:
            try:
                return read(path, data, key)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise FileFormatError(
                    f"{path}: lacks or has wrong {error}; write it again with this version"
                ) from error
    raise FileFormatError(
        f"{path}: is no result that a report shows; give what `rank --json` or `what-if --json` "
        "wrote, a sweep's .csv, a trace or a scenario"
    )


def _what_if(path: Path, data: dict[str, Any], key: str) -> Section:
    part = Section(title=f"What if: {data['question']}", key=key)
    part.say(data["answer"], "strong")
    rows = data["rows"]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    part.add(
        table(
            path.name,
            columns,
            [[_any(row.get(name)) for name in columns] for row in rows[:MAX_ROWS]],
        )
    )
    part.say_left_out(len(rows), MAX_ROWS)
    return part


def sweep_section(path: Path, key: str) -> Section:
    """A sweep's rows; drawn where they have throughput and TPOT. Raises FileFormatError."""
    try:
        rows = list(csv.DictReader(read_text(path).splitlines(), strict=True))
    except csv.Error as error:
        raise FileFormatError(f"{path}: is no CSV: {error}; write it again") from error
    if not rows:
        raise FileFormatError(f"{path}: has no rows; run the sweep again")
    part = Section(title=f"Sweep: {path.name}", key=key)
    columns = [name for name in rows[0] if name and name != "key"]
    part.add(
        table(
            f"{len(rows):,} points",
            columns,
            [[_any(row.get(name) or "") for name in columns] for row in rows[:MAX_ROWS]],
        )
    )
    part.say_left_out(len(rows), MAX_ROWS)
    if {RATE, INTERVAL_S} <= set(columns):
        part.draw(_sweep_chart(rows, columns))
    return part


def _sweep_chart(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> Chart:
    """A colour and a name for each placement, under each belief where there are several."""
    axes = columns[: columns.index("placement")] if "placement" in columns else columns[:2]
    fitting = [row for row in rows if row.get("status", "ok") == "ok"]
    found = [(row, _float(row[INTERVAL_S]), _float(row[RATE])) for row in fitting]
    kept = [(row, x, y) for row, x, y in found if x is not None and y is not None]
    beliefs = {row.get("belief") for row, _, _ in kept}
    named = ("placement", "belief") if len(beliefs) > 1 else ("placement",)
    groups: dict[str, list[tuple[dict[str, str], float, float]]] = {}
    for row, x, y in kept:
        if x > 0 and y > 0:
            name = ", ".join(row.get(key) or "every point" for key in named)
            groups.setdefault(name, []).append((row, 1e3 * x, y))
    return Chart(
        f"Every point of the sweep that fits in memory: {len(kept):,} of {len(rows):,}.",
        [
            _sweep_points(index, name, each, axes)
            for index, (name, each) in enumerate(groups.items())
        ],
        layout(
            420,
            log_axis("TPOT, ms", [x for each in groups.values() for _, x, _ in each]),
            log_axis("tokens/s", [y for each in groups.values() for _, _, y in each]),
            showlegend=True,
        ),
    )


def _sweep_points(
    index: int,
    name: str,
    found: Sequence[tuple[dict[str, str], float, float]],
    axes: Sequence[str],
) -> dict[str, Any]:
    """Colours come round again with another sign."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": in_chart(name),
        "marker": {
            "color": PALETTE[index % len(PALETTE)],
            "size": 6,
            "symbol": SIGNS[index // len(PALETTE) % len(SIGNS)],
        },
        "x": [x for _, x, _ in found],
        "y": [y for _, _, y in found],
        "text": [
            in_chart(", ".join(f"{name}={row[name]}" for name in axes)) for row, _, _ in found
        ],
        "hovertemplate": "%{text}<br>%{y:,.0f} tokens/s, %{x:.4g} ms<extra></extra>",
    }


def _float(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _any(value: object) -> Cell:
    """Whatever a cell of a file holds; numbers to five digits, sorted as numbers."""
    if isinstance(value, dict):
        return Cell(
            " to ".join(f"{v:.5g}" if isinstance(v, float) else str(v) for v in value.values())
        )
    number = None if isinstance(value, bool) or value is None else _float(value)
    if number is None:
        return Cell("" if value is None else str(value))
    text = f"{number:,.0f}" if number == round(number) and abs(number) < 1e15 else f"{number:.5g}"
    return Cell(text, number)

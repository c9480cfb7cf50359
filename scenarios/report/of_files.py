"""Results that other commands wrote, as parts of a page: `rank --json`, `what-if --json`, sweeps.

What a file holds is data from outside: a key that is missing is an error that names the file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scenarios import tables
from scenarios.report.charts import LIGHT, PREDICTED, axis, bottlenecks, layout
from scenarios.report.markup import Cell, Chart, bullets, in_chart, span, table
from scenarios.report.sections import Section
from sim.plan.errors import FileFormatError
from sim.plan.reading import read_json, read_text
from sim.uncertainty import Interval

MAX_ROWS = 500
MAX_CANDIDATES = 60
MOST_BARS = 12
# What a pair of a sweep's columns is drawn as, where a sweep has both.
RATE, INTERVAL_S = "tokens_per_s", "tpot_s"


def json_section(path: Path, key: str) -> Section:
    """A ranking or the answer to a what-if. Raises FileFormatError for anything else."""
    data = read_json(path)
    readers: dict[str, Callable[[Path, dict[str, Any], str], Section]] = {
        "pareto_front": _ranking, "what_if": _what_if,
    }  # fmt: skip
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


def _ranking(path: Path, data: dict[str, Any], key: str) -> Section:
    part = Section(title=f"Ranking: {data['model']['name']} on {data['cluster']['name']}", key=key)
    part.say(data["verdict"], "strong")
    part.add(bullets(text for text in (data["what_flips_it"],) if text))
    candidates = data["candidates"]
    part.add(table(
        f"Every placement ({path.name})",
        ("placement", "microbatches", "tokens/s", "90 %", "per GPU", "TPOT, ms", "TTFT, ms",
         "bottleneck", "memory, GB", "fits", "tied"),
        [_candidate(each) for each in candidates[:MAX_CANDIDATES]],
    ))  # fmt: skip
    _say_left_out(part, len(candidates), MAX_CANDIDATES)
    part.draw(_front(data["pareto_front"], candidates))
    part.draw(bottlenecks({
        f"{each['placement']} m={each['num_microbatches']}":
        {**each["bound_share"], "bubble": each["bubble_share"]}
        for each in candidates[:MOST_BARS]
    }))  # fmt: skip
    return part


def _candidate(each: dict[str, Any]) -> list[Cell | str]:
    ends = each["tokens_per_s_interval"]
    interval = Interval(ends["low"], ends["high"]) if ends else None
    memory = float(each["memory"]["total_bytes"])
    return [
        str(each["placement"]), _number(each["num_microbatches"]), _number(each["tokens_per_s"]),
        span(interval, tables.number),
        _number(each["tokens_per_s_per_gpu"]), _ms(each["tpot_s"]), _ms(each["ttft_s"]),
        f"{each['bottleneck']} {each['bottleneck_share']:.0%}",
        Cell(tables.gigabytes(memory), memory),
        Cell("yes", style="good") if each["fits"] else Cell("no", style="bad"),
        "with the first" if each["tied_with_winner"] else "",
    ]  # fmt: skip


def _front(front: Sequence[dict[str, Any]], candidates: Sequence[dict[str, Any]]) -> Chart:
    """Throughput against TPOT: what nothing beats, among everything that fits."""

    def points(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "x": [1e3 * each["tpot_s"] for each in found],
            "y": [each["tokens_per_s"] for each in found],
            "text": [
                in_chart(f"{each['placement']}, batch {each['batch_size']}, "
                         f"m={each['num_microbatches']}")
                for each in found
            ],
            "hovertemplate": "%{text}<br>%{y:,.0f} tokens/s, %{x:.4g} ms<extra></extra>",
        }  # fmt: skip

    ends = [(each["tokens_per_s"], each["tokens_per_s_interval"]) for each in front]
    return Chart(
        "Pareto front of throughput against the time between two tokens of a sequence, over "
        "batches up to the one asked for; whiskers are 90 % intervals.",
        [
            {"type": "scatter", "mode": "markers", "name": "fits", "marker": {"color": LIGHT},
             **points([each for each in candidates if each["fits"]])},
            {"type": "scatter", "mode": "lines+markers", "name": "Pareto front",
             "marker": {"color": PREDICTED, "size": 8}, "line": {"color": PREDICTED},
             "error_y": {
                 "type": "data", "symmetric": False, "thickness": 1,
                 "array": [i["high"] - rate if i else 0 for rate, i in ends],
                 "arrayminus": [rate - i["low"] if i else 0 for rate, i in ends],
             }, **points(front)},
        ],
        layout(420, axis("TPOT, ms"), axis("tokens/s", rangemode="tozero")),
    )  # fmt: skip


def _what_if(path: Path, data: dict[str, Any], key: str) -> Section:
    part = Section(title=f"What if: {data['question']}", key=key)
    part.say(data["answer"], "strong")
    rows = data["rows"]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    part.add(table(path.name, columns,
                   [[_any(row.get(name)) for name in columns] for row in rows[:MAX_ROWS]]))  # fmt: skip
    _say_left_out(part, len(rows))
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
    part.add(table(
        f"{len(rows):,} points", columns,
        [[_any(row.get(name) or "") for name in columns] for row in rows[:MAX_ROWS]],
    ))  # fmt: skip
    _say_left_out(part, len(rows))
    if {RATE, INTERVAL_S} <= set(columns):
        part.draw(_sweep_chart(rows, columns))
    return part


def _sweep_chart(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> Chart:
    axes = columns[: columns.index("placement")] if "placement" in columns else columns[:2]
    found = [(row, _float(row[INTERVAL_S]), _float(row[RATE])) for row in rows]
    kept = [(row, x, y) for row, x, y in found if x is not None and y is not None]
    return Chart(
        f"Every point of the sweep with an answer: {len(kept):,} of {len(rows):,}.",
        [{
            "type": "scatter", "mode": "markers", "marker": {"color": PREDICTED, "size": 5},
            "x": [1e3 * x for _, x, _ in kept], "y": [y for _, _, y in kept],
            "text": [in_chart(", ".join(f"{name}={row[name]}" for name in axes))
                     for row, _, _ in kept],
            "hovertemplate": "%{text}<br>%{y:,.0f} tokens/s, %{x:.4g} ms<extra></extra>",
        }],
        layout(420, axis("TPOT, ms", type="log"), axis("tokens/s", type="log")),
    )  # fmt: skip


def _say_left_out(part: Section, num_rows: int, most: int = MAX_ROWS) -> None:
    if num_rows > most:
        part.say(f"The first {most:,} of {num_rows:,} rows; the file has all.", "quiet")


def _number(value: float) -> Cell:
    return Cell(f"{value:,.0f}", float(value))


def _ms(value_s: float) -> Cell:
    return Cell(f"{value_s * 1e3:.4g}", float(value_s))


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

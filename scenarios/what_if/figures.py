"""A what-if's rows as people read them: a column is called, and looks, after its key's ending."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from math import floor, isfinite, log10

from rich.console import Console
from rich.table import Table

from layerwise.scenarios.tables import WIDTH, escape
from layerwise.scenarios.what_if.runner import Answered, Cell, Map, Row
from layerwise.sim.uncertainty import Interval

DIGITS = 3
# A longer text is folded.
PROSE = 24
ENDINGS = {
    "_tokens_per_s": "tokens/s",
    "_tokens_per_s_per_gpu": "tokens/s/GPU",
    "_bytes": "",
    "_bytes_per_s": "",
    "_s": "",
    "_share": "",
}
WORDS = {
    "kv": "KV",
    "gpu": "GPU",
    "gpus": "GPUs",
    "l2": "L2",
    "hbm": "HBM",
    "tpot": "TPOT",
    "ttft": "TTFT",
}
# A heading takes a new line before it gets wider than this.
HEADING = 9
# By the ending of a key, longest first.
UNITS: dict[str, tuple[tuple[float, str], ...]] = {
    "_tokens_per_s": (),
    "_bytes_per_s": ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s")),
    "_bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "_s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")),
    "_parameters": ((1e9, "B"), (1e6, "M"), (1.0, "")),
    "_elements": ((1e9, "B"), (1e6, "M"), (1.0, "")),
}
GAIN_NOTE = "gain: layer-wise over the baseline, the faster of its all-reduces; 90 %: its interval."


def print_answered(answered: Answered, out: Console) -> None:
    """The question, the answer, the figures, and what they rest on."""
    out.print(f"[bold]{escape(answered.what_if.question)}[/bold]")
    out.print(escape(answered.answer))
    out.print()
    picture = answered.what_if.picture
    if isinstance(picture, Map):
        out.print(_pivot(answered.rows, picture))
        out.print(f"{picture.value}; in brackets: does not fit in memory", style="dim")
    else:
        out.print(table_of(answered.rows))
    notes = [GAIN_NOTE] if any("gain" in row for row in answered.rows) else []
    notes += [answered.what_if.note] if answered.what_if.note else []
    for gpu, digest in sorted(answered.profiles.items()):
        if not digest:
            notes.append(
                f"{gpu}: no calibration profile, so nothing is calibrated or has an interval."
            )
    for note in notes:
        out.print(escape(note), style="dim")


def figure(key: str, cell: Cell) -> str:
    """One cell at three digits, in the unit a person would choose."""
    match cell:
        case None:
            return "-"
        case bool():
            return "yes" if cell else "no"
        case str():
            return cell
        case Interval():
            key = key.removesuffix("_90")
            return f"{figure(key, cell.low)} to {figure(key, cell.high)}"
        case _:
            pass
    name = f"_{key.rpartition('.')[2]}"
    if name.endswith("gain"):
        return f"{cell:+.1%}"
    if name.endswith("_share"):
        return f"{cell:.1%}"
    units = next((units for ending, units in UNITS.items() if name.endswith(ending)), ())
    if units:
        scale, unit = next((each for each in units if abs(cell) >= each[0]), units[-1])
        return f"{rounded(cell / scale)} {unit}".strip()
    return f"{cell:,}" if isinstance(cell, int) else rounded(cell)


def rounded(value: float) -> str:
    """Three significant digits, thousands separated."""
    shown = float(f"{value:.{DIGITS}g}")
    if not shown or not isfinite(shown):
        return f"{shown:g}"
    return f"{shown:,.{max(DIGITS - 1 - floor(log10(abs(shown))), 0)}f}"


def heading(key: str, width: int = HEADING) -> str:
    """A key in words, its unit where cells do not carry it, on as many lines as it needs."""
    if key.endswith("_90"):
        return "90 %"
    ending = max((e for e in ENDINGS if key.endswith(e)), key=len, default="")
    text = key.removesuffix(ending).replace("_", " ").replace("layer wise", "layer-wise")
    words = " ".join(WORDS.get(word, word) for word in text.split())
    lines = textwrap.wrap(words, width, break_on_hyphens=False, break_long_words=False)
    return "\n".join([*lines, ENDINGS.get(ending, "")]).strip()


def table_of(rows: Sequence[Row]) -> Table:
    """A row each; only long texts are folded."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for key in rows[0]:
        text = all(isinstance(row[key], str) for row in rows)
        prose = text and max(len(row[key]) for row in rows) > PROSE
        made.add_column(
            heading(key), justify="left" if text else "right", no_wrap=not prose, overflow="fold"
        )
    for row in rows:
        made.add_row(*(escape(figure(key, cell)) for key, cell in row.items()))
    return made


def _pivot(rows: Sequence[Row], picture: Map) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    corner = f"{heading(picture.y, WIDTH)} \\ {heading(picture.x, WIDTH)}"
    made.add_column(corner, justify="right")
    across = list(dict.fromkeys(row[picture.x] for row in rows))
    for value in across:
        made.add_column(figure(picture.x, value), justify="right", no_wrap=True)
    cells = {(row[picture.x], row[picture.y]): row for row in rows}
    for down in dict.fromkeys(row[picture.y] for row in rows):
        shown = [_pivot_cell(cells[value, down], picture.value) for value in across]
        made.add_row(figure(picture.y, down), *shown)
    return made


def _pivot_cell(row: Row, key: str) -> str:
    text = f"{row[key]:+.0%}"
    return text if row.get("fits", True) else f"({text})"

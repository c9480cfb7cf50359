"""What files and people named, made safe for a page: text, tables, data inside scripts, charts.

Every function that returns markup takes plain text and escapes it; `Html` marks what is done.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from layerwise.sim.uncertainty import Interval

# Control and format characters, surrogates, line separators: shown as their code, not obeyed.
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
NESTED = re.compile(r"\{\{(\w+)\}\}")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


@dataclass(frozen=True)
class Cell:
    """A figure in a table as it is read, the number it is sorted by, and how it looks."""

    text: str
    key: float | None = None
    style: str = ""


def span(interval: Interval | None, show: Callable[[float], str]) -> Cell:
    """From the low end to the high one; empty where there is none."""
    return Cell(f"{show(interval.low)} to {show(interval.high)}" if interval else "", style="range")


@dataclass(frozen=True)
class Chart:
    """A figure for plotly, as data: `data` traces, `layout`. `caption` says what it shows."""

    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]

    @property
    def as_data(self) -> dict[str, Any]:
        """For a page's script."""
        return {"caption": self.caption, "data": self.data, "layout": self.layout}


def visible(value: object) -> str:
    """Text whose hidden characters are spelled out, as escapes; tab and newline become blanks."""
    text = re.sub(r"[\t\r\n]+", " ", str(value))
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in HIDDEN else c
        for c in text
    )


def safe(value: object) -> Html:
    """Text as markup: what it says is shown and never obeyed."""
    return value if isinstance(value, Html) else Html(escape(visible(value)))


def in_chart(value: object) -> str:
    """Text for a chart: plotly reads tags and entities in any text it shows."""
    return escape(visible(value), quote=False)


def json_for_script(data: object) -> Html:
    """JSON that no parser of HTML finds an end or a comment in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Html(text)


def paragraph(value: object, style: str = "") -> Html:
    """A paragraph of text."""
    return Html(f'<p class="{style}">{safe(value)}</p>' if style else f"<p>{safe(value)}</p>")


def bullets(values: Iterable[object]) -> Html:
    """A list of sentences; "" of none."""
    items = "".join(f"<li>{safe(value)}</li>" for value in values)
    return Html(f"<ul>{items}</ul>" if items else "")


def details(summary: object, inside: Iterable[Html]) -> Html:
    """A part that opens on a click."""
    return Html(f"<details><summary>{safe(summary)}</summary>{''.join(inside)}</details>")


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell | str]]) -> Html:
    """A table that sorts by any column; `rows` hold as many cells as there are columns."""
    heads = "".join(
        f'<th scope="col"><button type="button">{safe(name)}</button></th>' for name in columns
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return Html(
        f'<div class="wide"><table class="sortable"><caption>{safe(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: Cell | str) -> str:
    cell = value if isinstance(value, Cell) else Cell(value)
    key = f' data-key="{cell.key!r}"' if cell.key is not None else ""
    kind = " ".join(part for part in ("number" if cell.key is not None else "", cell.style) if part)
    shown = f' class="{kind}"' if kind else ""
    return f"<td{key}{shown}>{safe(cell.text)}</td>"


def chart(figure: Chart, name: str) -> Html:
    """A place that the page's script draws in; `name` is unique on the page."""
    height = int(figure.layout.get("height", 420))
    return Html(
        f'<figure class="chart" data-chart="{safe(name)}">'
        f'<div class="plot" style="min-height:{height}px">'
        "<noscript>Charts are drawn by a script; the tables say the same.</noscript></div>"
        f"<figcaption>{safe(figure.caption)}</figcaption></figure>"
        f'<script type="application/json" id="{safe(name)}">{json_for_script(figure.as_data)}</script>'
    )


def template(name: str) -> str:
    """A file of this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def fill(text: str, values: Mapping[str, Html]) -> str:
    """`{{name}}` replaced, in one pass: what is put in is never read as a place again."""
    return NESTED.sub(lambda found: values[found[1]], text)

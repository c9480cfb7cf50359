"""How results look on a terminal: one console, plain tables of at most 100 columns, figures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from rich import markup
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from layerwise.sim.plan.errors import visible

WIDTH = 100
# Of a terminal; no table is made to fit a narrower one.
LEAST_WIDTH = 80


class PlainConsole(Console):
    """A console on which no text that is printed can move the cursor or change a colour."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich does, with control characters spelled out."""
        return super().render_str(visible(text, keep="\n"), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does; names in tables wrap on a narrow console, and no figure is cut off."""
        for each in objects:
            if isinstance(each, Table) and self._least_width(each) > self.width:
                each.padding = (0, 1, 0, 0)
                least = self._least_width(each)
                each.width = least if least > self.width else None
        options.setdefault("crop", False)
        super().print(*objects, **options)

    def _least_width(self, made: Table) -> int:
        """Columns of all its figures, and of the longest word of its names."""
        gaps = sum(made.padding[1::2]) * (len(made.columns) - 1)
        return gaps + sum(self._least_column(column) for column in made.columns)

    def _least_column(self, column: Column) -> int:
        unbounded = self.options.update(width=10 * WIDTH)
        cells = (column.header, *column.cells)
        sizes = [Measurement.get(self, unbounded, cell) for cell in cells]
        return max(size.maximum if column.no_wrap else size.minimum for size in sizes)


def console(*, stderr: bool = False) -> Console:
    """Standard output (or error): coloured on a terminal only, as wide as it, WIDTH columns at most."""
    found = shutil.get_terminal_size((WIDTH, 24)).columns
    width = min(WIDTH, max(LEAST_WIDTH, found))
    return PlainConsole(highlight=False, emoji=False, width=width, stderr=stderr)


def escape(text: str) -> str:
    """A name from a file as text: no markup of rich, no line of its own, nothing a terminal obeys."""
    return markup.escape(visible(text))


def table(title: str, *columns: str, wide: str | None = None, gap: int = 2) -> Table:
    """A table of figures whose first column is text; `wide` names a column of prose.

    `gap`: blanks between columns.
    """
    made = Table(
        title=escape(title) or None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, gap, 0, 0),
        header_style="dim",
    )
    for index, column in enumerate(columns):
        prose = index == 0 or column == wide
        made.add_column(
            column,
            justify="left" if prose else "right",
            no_wrap=not prose,
            overflow="fold",
            ratio=1 if column == wide else None,
        )
    return made


def seconds(value_s: float) -> str:
    """Seconds in the unit a person would choose."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(value_s) >= scale:
            return f"{value_s / scale:.4g} {unit}"
    return f"{value_s * 1e9:.3g} ns"


def milliseconds(value_s: float) -> str:
    """Seconds as milliseconds with four significant digits."""
    value = value_s * 1e3
    return f"{value:,.0f}" if value >= 1e4 else f"{value:.4g}"


def microseconds(value_s: float) -> str:
    """Seconds as microseconds with a tenth."""
    return f"{value_s * 1e6:,.1f}"


def number(value: float) -> str:
    """A large number with separators."""
    return f"{value:,.0f}"


def gigabytes(value_bytes: float) -> str:
    """Bytes as GB (1e9), one decimal."""
    return f"{value_bytes / 1e9:,.1f}"


def megabytes(value_bytes: float) -> str:
    """Bytes as MB (1e6)."""
    return f"{value_bytes / 1e6:,.0f}" if value_bytes >= 1e7 else f"{value_bytes / 1e6:,.1f}"


def span(low: float, high: float, show: Callable[[float], str]) -> str:
    """From one figure to another."""
    return f"{show(low)} to {show(high)}"


def percent(value: float) -> str:
    """A ratio as a percentage."""
    return f"{value:.1%}"


def signed(value: float) -> str:
    """A ratio as a signed percentage."""
    return f"{value:+.1%}"

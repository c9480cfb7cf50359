"""A what-if's picture, by matplotlib: curves with their bands, a map with its crossover, or bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerwise.scenarios.pictures import check_picture, sheet
from layerwise.scenarios.what_if.figures import figure, heading
from layerwise.scenarios.what_if.runner import Answered, Bars, Lines, Map, Row

WIDE = 60


def draw(answered: Answered, path: Path) -> None:
    """Write the picture; the file's ending says how. Raises what `check_picture` does."""
    check_picture(path, "the table")
    with sheet(path, (6.4, 4)) as page:
        axes = page.add_subplot()
        match answered.what_if.picture:
            case Lines() as picture:
                _draw_lines(axes, answered, picture)
            case Map() as picture:
                _draw_map(page, axes, answered.rows, picture)
            case Bars() as picture:
                _draw_bars(axes, answered.rows, picture)
        axes.set_title(answered.what_if.question, fontsize=9, wrap=True)


def _draw_lines(axes: Any, answered: Answered, picture: Lines) -> None:
    others = [name for name in answered.axes if name != picture.x]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in answered.rows:
        groups.setdefault(tuple(row[name] for name in others), []).append(row)
    for group, rows in groups.items():
        where = ", ".join(
            f"{_line(name)} {figure(name, value)}"
            for name, value in zip(others, group, strict=True)
        )
        for key in picture.ys:
            label = ", ".join(part for part in (_line(key), where) if part)
            x = [row[picture.x] for row in rows]
            (drawn,) = axes.plot(x, [row[key] for row in rows], marker="o", label=label)
            bands = [band for row in rows if (band := row.get(f"{key}_90"))]
            if len(bands) == len(rows):
                low, high = [b.low for b in bands], [b.high for b in bands]
                axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.2, linewidth=0)
    axes.set_xscale("log" if picture.log_x else "linear")
    axes.set_yscale("log" if picture.log_y else "linear")
    if picture.mark is not None:
        axes.axhline(picture.mark, color="grey", linestyle="--", linewidth=1)
    _name_values(axes, picture.x, [row[picture.x] for row in answered.rows])
    axes.set_xlabel(_line(picture.x))
    axes.yaxis.set_major_formatter(lambda value, _: figure(picture.ys[0], float(value)))
    axes.legend(fontsize=8)


def _draw_map(sheet: Any, axes: Any, rows: Sequence[Row], picture: Map) -> None:
    across, down = ([*dict.fromkeys(row[key] for row in rows)] for key in (picture.x, picture.y))
    cells = {(row[picture.x], row[picture.y]): row for row in rows}
    values = [[cells[x, y][picture.value] for x in across] for y in down]
    extreme = max(abs(value) for line in values for value in line)
    # By place, so that steps that are not even look even.
    mesh = axes.imshow(
        values, cmap="RdBu", vmin=-extreme, vmax=extreme, origin="lower", aspect="auto"
    )
    if min(map(min, values)) < 0 < max(map(max, values)) and min(len(across), len(down)) > 1:
        axes.contour(values, levels=[0.0], colors="black")
    missing = [(across.index(x), down.index(y)) for (x, y), row in cells.items() if not row["fits"]]
    if missing:
        axes.plot(*zip(*missing, strict=True), "x", color="grey", label="does not fit in memory")
        axes.legend(fontsize=8, loc="lower left")
    axes.set_xticks(range(len(across)), [figure(picture.x, value) for value in across], rotation=45)
    axes.set_yticks(range(len(down)), [figure(picture.y, value) for value in down])
    axes.set_xlabel(_line(picture.x))
    axes.set_ylabel(_line(picture.y))
    bar = sheet.colorbar(mesh, ax=axes, label=_line(picture.value))
    bar.ax.yaxis.set_major_formatter(lambda value, _: figure(picture.value, float(value)))


def _draw_bars(axes: Any, rows: Sequence[Row], picture: Bars) -> None:
    height = 0.8 / len(picture.values)
    for index, key in enumerate(picture.values):
        shown = [(place, row) for place, row in enumerate(rows) if row[key] is not None]
        axes.barh(
            [place + index * height for place, _ in shown],
            [row[key] for _, row in shown],
            height=height,
            label=_line(key),
        )
    middle = 0.4 - height / 2
    axes.set_yticks(
        [place + middle for place in range(len(rows))], [str(row[picture.label]) for row in rows]
    )
    axes.invert_yaxis()
    if picture.log_x:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_formatter(lambda value, _: figure(picture.values[0], float(value)))
    axes.legend(fontsize=8)


def _name_values(axes: Any, key: str, values: Sequence[Any]) -> None:
    """The axis says the values that were tried, no others."""
    tried = sorted(set(values))
    axes.set_xticks(tried, [figure(key, value) for value in tried], rotation=45)
    axes.minorticks_off()


def _line(key: str) -> str:
    return heading(key, WIDE).replace("\n", ", ")

"""Figures for plotly, as plain data: titles, axes, colours that both a dark and a light page carry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerwise.scenarios.report.markup import Chart, in_chart
from layerwise.sim.uncertainty import Interval

PREDICTED, MEASURED, LIGHT, UNCALIBRATED = "#3b82c4", "#e0762f", "#8b929b", "#9a7fd1"
PALETTE = (
    "#3b82c4",
    "#e0762f",
    "#2f9e77",
    "#c2528b",
    "#9a7fd1",
    "#b8901f",
    "#4aa5b5",
    "#c9534f",
    "#6b8e23",
    "#8b929b",
    "#5c6bc0",
    "#a1662f",
)
BOUND_COLOURS = {
    "hbm": "#3b82c4",
    "l2": "#2f9e77",
    "compute": "#9a7fd1",
    "link": "#e0762f",
    "launch": "#b8901f",
    "wait": "#c2528b",
    "bubble": "#8b929b",
}
BOUND_NAMES = {
    "hbm": "HBM",
    "l2": "L2",
    "compute": "compute",
    "link": "links",
    "launch": "launch",
    "wait": "peers",
    "bubble": "bubble",
}
# Of a logarithmic axis: beyond its values, and marks below which finer ones are taken.
LOG_MARGIN, LEAST_MARKS = 1.15, 4
DIVERGING = [[0.0, "#b2512f"], [0.5, "#d9d9d9"], [1.0, "#2f6fb0"]]


@dataclass(frozen=True, kw_only=True)
class Point:
    """Something predicted and measured, in one unit, and where 90 % of measurements should lie."""

    name: str
    predicted: float
    measured: float
    interval: Interval | None
    share: float = 1.0
    is_whole: bool = False


Series = Mapping[str, Sequence[Point]]


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with its title."""
    return {"title": {"text": in_chart(title), "standoff": 12}, "automargin": True, **more}


def log_axis(title: str, values: Iterable[float], **more: Any) -> dict[str, Any]:
    """A logarithmic axis over positive values, marked in round numbers written out.

    At each power of ten; at 1, 2 and 5 times it, or at every multiple, where that is fewer than
    LEAST_MARKS.
    """
    known = list(values) or [1.0]
    low, high = min(known) / LOG_MARGIN, max(known) * LOG_MARGIN
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = ((1,), (1, 2, 5), range(1, 10))
    marks = [[step * 10.0**power for power in powers for step in each] for each in steps]
    inside = [[mark for mark in each if low <= mark <= high] for each in marks]
    chosen = next((each for each in inside if len(each) >= LEAST_MARKS), inside[-1])
    return axis(
        title,
        type="log",
        range=[math.log10(low), math.log10(high)],
        tickvals=chosen,
        ticktext=[f"{mark:,.0f}" if mark >= 10 else f"{mark:g}" for mark in chosen],
        **more,
    )


def layout(height: int, x: dict[str, Any], y: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What all charts share; the page's stylesheet gives text and grid their colours."""
    return {
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 12, "b": 45},
        "xaxis": x,
        "yaxis": y,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "hovermode": "closest",
        "legend": {
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "itemsizing": "constant",
            "traceorder": "normal",
        },
        **more,
    }


def whiskers(values: Iterable[tuple[float, Interval | None]]) -> dict[str, Any]:
    """Intervals around values, as plotly wants them; of no length where there is none."""
    known = list(values)
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1,
        "width": 2,
        "array": [i.high - value if i else 0.0 for value, i in known],
        "arrayminus": [value - i.low if i else 0.0 for value, i in known],
    }


def error_plot(series: Series, unit: str) -> Chart:
    """Predicted against measured with 90 % intervals, on logarithmic axes."""
    ends = [v for each in series.values() for p in each for v in (p.predicted, p.measured) if v > 0]
    edge = [min(ends, default=1.0) / 1.3, max(ends, default=1.0) * 1.3]
    perfect = {
        "type": "scatter",
        "mode": "lines",
        "x": edge,
        "y": edge,
        "name": "predicted = measured",
        "line": {"color": LIGHT, "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
    }
    traces = [
        _points(
            name,
            [p for p in each if p.measured > 0 and p.predicted > 0],
            colour,
            lambda p: (p.measured, p.predicted, p.interval),
        )
        for (name, each), colour in _coloured(series)
    ]
    return Chart(
        "Predicted against measured with 90 % intervals. Diamonds are whole steps with no tracer "
        "attached, circles are ops; larger ones take more of their step.",
        [perfect, *traces],
        layout(460, axis(f"measured, {unit}", type="log"), axis(f"predicted, {unit}", type="log")),
    )


def residual_plot(series: Series, unit: str, tolerance: float) -> Chart:
    """Signed errors by size; an interval that crosses zero holds the measurement."""

    def place(point: Point) -> tuple[float, float, Interval | None]:
        low, high = (point.interval.low, point.interval.high) if point.interval else (0.0, 0.0)
        relative = [100 * (value / point.measured - 1) for value in (point.predicted, low, high)]
        return point.measured, relative[0], Interval(*relative[1:]) if point.interval else None

    traces = [
        _points(name, [p for p in each if p.measured > 0], colour, place)
        for (name, each), colour in _coloured(series)
    ]
    band = {
        "type": "rect",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": -100 * tolerance,
        "y1": 100 * tolerance,
        "fillcolor": "rgba(47,158,119,0.14)",
        "line": {"width": 0},
        "layer": "below",
    }
    return Chart(
        f"Residuals: how far predictions lie above or below. The band is the bar for whole steps, "
        f"{tolerance:.0%}; a bar that crosses zero has the measurement in its 90 % interval.",
        traces,
        layout(
            380,
            axis(f"measured, {unit}", type="log"),
            axis("predicted over measured, less one, %", zeroline=True),
            shapes=[band],
        ),
    )


def _coloured(series: Series) -> Iterable[tuple[tuple[str, Sequence[Point]], str]]:
    colours = [PALETTE[index % len(PALETTE)] for index in range(len(series))]
    return zip(series.items(), colours, strict=True)


def _points(name: str, points: Sequence[Point], colour: str, place: Any) -> dict[str, Any]:
    placed = [place(point) for point in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": in_chart(name),
        "x": [x for x, _, _ in placed],
        "y": [y for _, y, _ in placed],
        "text": [in_chart(f"{name}: {point.name}") for point in points],
        "hovertemplate": "%{text}<br>measured %{x:.4g}<br>%{y:.4g}<extra></extra>",
        "error_y": whiskers([(y, i) for _, y, i in placed]),
        "opacity": 0.85,
        "marker": {
            "color": colour,
            "line": {"width": 0},
            "symbol": ["diamond" if p.is_whole else "circle" for p in points],
            "size": [11 if p.is_whole else 6 + 8 * min(1.0, max(p.share, 0.0)) for p in points],
        },
    }


def stacked_bars(
    caption: str,
    title: str,
    bars: Mapping[str, Mapping[str, float]],
    names: Mapping[str, str],
    colours: Mapping[str, str],
    mark: float | None = None,
) -> Chart:
    """One horizontal bar for each name, made of parts; `mark` draws a line across."""
    labels = [in_chart(name) for name in bars]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": in_chart(names.get(part, part)),
            "y": labels,
            "x": [each.get(part, 0.0) for each in bars.values()],
            "marker": {"color": colours.get(part, LIGHT)},
            "hovertemplate": f"%{{y}}<br>{in_chart(names.get(part, part))} %{{x:.4g}}<extra></extra>",
        }
        for part in names
        if any(each.get(part, 0.0) for each in bars.values())
    ]
    line = {
        "type": "line",
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "x0": mark,
        "x1": mark,
        "line": {"color": "#c9534f", "width": 2, "dash": "dot"},
    }
    return Chart(
        caption,
        traces,
        layout(
            120 + 38 * len(labels),
            axis(title),
            axis("", autorange="reversed"),
            barmode="stack",
            bargap=0.35,
            shapes=[] if mark is None else [line],
        ),
    )


def bottlenecks(shares: Mapping[str, Mapping[str, float]]) -> Chart:
    """Where a GPU's mean step goes, in percent; what no bound explains is the bubble."""
    percents = {
        name: {bound: 100 * value for bound, value in each.items()} for name, each in shares.items()
    }
    return stacked_bars(
        "Bottlenecks: what limits a GPU during its mean step. The bubble is time in which it waits "
        "for work.",
        "share of the step, %",
        percents,
        BOUND_NAMES,
        BOUND_COLOURS,
    )


def rates(
    names: Sequence[str],
    claimed: Sequence[float],
    predicted: Mapping[str, Sequence[tuple[float, Interval | None]]],
) -> Chart:
    """Tokens/s of several placements: claimed, and under every belief."""
    labels = [in_chart(name) for name in names]
    colours = {"speed of light": LIGHT, "uncalibrated": UNCALIBRATED, "calibrated": PREDICTED}
    bars = [
        {
            "type": "bar",
            "name": in_chart(belief),
            "x": labels,
            "y": [rate for rate, _ in found],
            "marker": {"color": colours.get(belief, LIGHT)},
            "error_y": whiskers(found) if any(i for _, i in found) else {"visible": False},
        }
        for belief, found in predicted.items()
    ]
    claims = {
        "type": "scatter",
        "mode": "markers",
        "name": "claimed",
        "x": labels,
        "y": list(claimed),
        "marker": {"symbol": "line-ew-open", "size": 60, "color": MEASURED, "line": {"width": 3}},
    }
    return Chart(
        "Tokens per second: the claim (line) and the predictions; whiskers are 90 % intervals.",
        [*bars, claims],
        layout(380, axis(""), axis("tokens/s", rangemode="tozero"), barmode="group"),
    )


def l2_curve(
    gpu: str,
    line: Sequence[tuple[float, float]],
    l2_bytes: int,
    measured: Mapping[str, Sequence[tuple[float, float]]],
) -> Chart:
    """Read rate against working set: `line` predicted, `measured` by what it was used for.

    Pairs are (bytes, bytes/s).
    """
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "predicted",
            **_as_rate(line),
            "line": {"color": PREDICTED, "width": 2},
        }
    ]
    for (name, points), symbol in zip(measured.items(), ("circle-open", "diamond"), strict=False):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": in_chart(name),
                **_as_rate(points),
                "marker": {"color": MEASURED, "size": 8, "symbol": symbol},
            }
        )
    edge = {
        "type": "line",
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "x0": l2_bytes / 1e6,
        "x1": l2_bytes / 1e6,
        "line": {"color": LIGHT, "width": 1, "dash": "dot"},
    }
    return Chart(
        f"The L2 of the {gpu}: how fast a working set is read again and again. The dotted line is "
        "its size; reads slow down to HBM's rate before it is full.",
        traces,
        layout(
            380,
            axis("working set, MB", type="log"),
            axis("read rate, TB/s", rangemode="tozero"),
            shapes=[edge],
        ),
    )


def _as_rate(points: Iterable[tuple[float, float]]) -> dict[str, Any]:
    kept = list(points)
    return {"x": [size / 1e6 for size, _ in kept], "y": [rate / 1e12 for _, rate in kept]}


def who_wins(
    batches: Sequence[int],
    contexts: Sequence[int],
    gains: Mapping[tuple[int, int], tuple[float, bool]],
) -> Chart:
    """Layer-wise's gain over the baseline by (batch, context); blank where it does not fit."""
    found = [[gains.get((batch, context)) for batch in batches] for context in contexts]
    shown = [[100 * f[0] if f and f[1] else None for f in row] for row in found]
    texts = [[f"{f[0]:+.0%}" if f and f[1] else "" for f in row] for row in found]
    size = max((abs(v) for row in shown for v in row if v is not None), default=1.0)
    return Chart(
        "Who wins over batch and context: layer-wise over the paper's baseline. Blue: layer-wise is "
        "faster; red: the baseline is. Blank: one of them does not fit in memory.",
        [
            {
                "type": "heatmap",
                "x": [f"{b:,}" for b in batches],
                "y": [f"{c:,}" for c in contexts],
                "z": shown,
                "text": texts,
                "texttemplate": "%{text}",
                "colorscale": DIVERGING,
                "zmin": -size,
                "zmax": size,
                "colorbar": {"title": {"text": "gain, %"}},
                "xgap": 2,
                "ygap": 2,
                "hovertemplate": "batch %{x}, %{y} tokens: %{text}<extra></extra>",
                "hoverongaps": False,
            }
        ],
        layout(
            380,
            axis("batch, sequences", type="category", showgrid=False),
            axis("context, tokens", type="category", showgrid=False),
        ),
    )

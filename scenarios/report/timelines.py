"""Rows as a timeline to zoom into: for each rank its predicted streams above its measured ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from layerwise.scenarios.report.charts import axis, layout
from layerwise.scenarios.report.markup import Chart, in_chart
from layerwise.sim.plan.errors import require_listed
from layerwise.sim.trace import Row

MAX_SLICES = 3_000
STREAMS = ("compute", "send", "recv")
# By the kind of op: what colour, and what it is called in the legend.
POINTWISE = ("norm, rope, activation, sampling", "#b8901f")
GROUPS = {
    "Norm": POINTWISE,
    "RotaryWrite": POINTWISE,
    "GatedActivation": POINTWISE,
    "ResidualAdd": POINTWISE,
    "Embed": POINTWISE,
    "Sample": POINTWISE,
    "Matmul": ("matmul", "#3b82c4"),
    "Attention": ("attention", "#2f9e77"),
    "AllReduce": ("collective", "#e0762f"),
    "AllGather": ("collective", "#e0762f"),
    "Send": ("message", "#c2528b"),
    "Recv": ("message", "#c2528b"),
}


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """Rows that share one side of the picture: `side` is "predicted", "measured" or a name."""

    side: str
    rows: Sequence[Row]


def timeline(caption: str, sides: Sequence[Lanes], max_slices: int = MAX_SLICES) -> Chart:
    """Every rank's rows from its own first start; the latest slices are left out, and counted."""
    placed = [
        (rank, index, lanes.side, row, row.start_s - begin_s)
        for index, lanes in enumerate(sides)
        for rank, rows in _by_rank(row for row in lanes.rows if not row.replaced).items()
        for begin_s in [min(row.start_s for row in rows)]
        for row in rows
    ]
    placed.sort(key=lambda each: each[4])
    kept, left_out = placed[:max_slices], max(0, len(placed) - max_slices)
    lanes = sorted(
        {
            (rank, STREAMS.index(row.stream), index, side, row.stream)
            for rank, index, side, row, _ in kept
        }
    )
    names = {key: _lane_name(*key) for key in lanes}
    groups: dict[tuple[str, str], list[tuple[str, Row, float]]] = {}
    for rank, index, side, row, begin_s in kept:
        lane = names[rank, STREAMS.index(row.stream), index, side, row.stream]
        group = require_listed(GROUPS, row.kind, "timelines.GROUPS")
        groups.setdefault(group, []).append((lane, row, begin_s))
    if replaced := sum(row.replaced for row in sides[-1].rows):
        caption += f" {replaced} messages were replaced by local buffers and are not drawn."
    if left_out:
        caption += f" The latest {left_out:,} of {len(placed):,} slices are left out."
    return Chart(
        f"{caption} Drag to zoom in, double-click to zoom out.",
        [_bars(name, colour, found) for (name, colour), found in sorted(groups.items())],
        layout(
            140 + 30 * len(lanes),
            axis("us from the rank's first start", rangemode="tozero"),
            axis(
                "",
                categoryorder="array",
                categoryarray=list(names.values()),
                autorange="reversed",
                fixedrange=True,
            ),
            barmode="overlay",
            bargap=0.15,
        ),
    )


def middle_repeat(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Of a measured run the repeat whose span is the median one."""
    repeats: dict[int, list[Row]] = {}
    for row in rows:
        repeats.setdefault(row.repeat, []).append(row)
    found = sorted(repeats.values(), key=_span_s)
    return tuple(found[len(found) // 2]) if found else ()


def _span_s(rows: Sequence[Row]) -> float:
    each = _by_rank(rows).values()
    return max(max(r.end_s for r in of) - min(r.start_s for r in of) for of in each)


def _by_rank(rows: Iterable[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row.rank, []).append(row)
    return found


def _lane_name(rank: int, stream_index: int, side_index: int, side: str, stream: str) -> str:
    del stream_index, side_index
    return in_chart(f"rank {rank} {side}" + ("" if stream == "compute" else f", {stream}"))


def _bars(name: str, colour: str, found: Sequence[tuple[str, Row, float]]) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": [lane for lane, _, _ in found],
        "base": [_us(begin_s) for _, _, begin_s in found],
        "x": [_us(row.duration_s) for _, row, _ in found],
        "text": [in_chart(row.op) for _, row, _ in found],
        "textposition": "none",
        "marker": {"color": colour, "line": {"width": 0}},
        "customdata": [_us(row.duration_s) for _, row, _ in found],
        "hovertemplate": "%{text}: %{customdata:.2f} us<br>from %{base:.2f} us<extra></extra>",
    }


def _us(value_s: float) -> float:
    return round(value_s * 1e6, 3)

"""Comparisons as files: every line of every level as CSV, and a picture."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from layerwise.scenarios.compare.choosing import Compared
from layerwise.scenarios.compare.scores import LEVELS, Score
from layerwise.scenarios.pictures import check_picture, sheet
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.trace import write_atomically
from layerwise.sim.uncertainty import around

# As many ops as a person can tell apart in a picture; of more, those with the largest shares.
MOST_OPS = 40
COLUMNS = (
    "run",
    "gpu",
    "is_scored",
    "level",
    "name",
    "part",
    "ranks",
    "count",
    "speed_of_light_s",
    "uncalibrated_s",
    "predicted_s",
    "interval_low_s",
    "interval_high_s",
    "measured_s",
    "spread",
    "error",
    "is_inside",
    "share",
    "is_extrapolated",
    "first_step_predicted_s",
    "first_step_measured_s",
    "last_step_predicted_s",
    "last_step_measured_s",
)


def write_csv(compared: tuple[Compared, ...], path: Path) -> str:
    """Every line of every level, one a row, in SI units; returns a sentence.

    Raises FileFormatError when the path cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    lines = [(each, s) for each in compared for level in LEVELS for s in each.comparison.of(level)]
    for each, score in lines:
        row = _csv_row(each, score)
        writer.writerow([row[column] for column in COLUMNS])
    write_atomically(path, text.getvalue())
    return f"{path}: {len(lines)} lines of {len(compared)} runs"


def _csv_row(each: Compared, score: Score) -> dict[str, Any]:
    stage, times, interval = each.comparison.stage, score.times, score.interval
    first, last = score.first, score.last
    return {
        "run": stage.name,
        "gpu": stage.gpu,
        "is_scored": stage.is_scored,
        "level": score.level,
        "name": score.name,
        "part": score.part,
        "ranks": " ".join(map(str, score.ranks)),
        "count": score.count,
        "speed_of_light_s": times.speed_of_light_s,
        "uncalibrated_s": times.uncalibrated_s,
        "predicted_s": times.predicted_s,
        "interval_low_s": interval.low if interval else "",
        "interval_high_s": interval.high if interval else "",
        "measured_s": times.measured_s,
        "spread": score.spread,
        "error": score.error,
        "is_inside": "" if score.is_inside is None else score.is_inside,
        "share": score.share,
        "is_extrapolated": score.extrapolated,
        "first_step_predicted_s": first.predicted_s if first else "",
        "first_step_measured_s": first.measured_s if first else "",
        "last_step_predicted_s": last.predicted_s if last else "",
        "last_step_measured_s": last.measured_s if last else "",
    }


def write_plot(compared: tuple[Compared, ...], path: Path) -> str:
    """Predicted against measured with interval bars, and the errors by op; returns a sentence.

    Raises SpecError for a name that is no picture's or where nothing was traced, and
    MissingPackageError without matplotlib.
    """
    check_picture(path, "the same as text, --json and --csv")
    drawn = [(each, score) for each in compared for score in each.comparison.ops]
    if not drawn:
        raise SpecError(
            "--plot",
            str(path),
            "has nothing to show: no run was traced",
            "compare a trace with rows",
        )
    with sheet(path, (12, 0.22 * min(len(drawn), MOST_OPS) + 2.5)) as figure:
        left, right = figure.subplots(1, 2)
        _draw_pairs(left, drawn)
        _draw_errors(right, drawn)
        names = ", ".join(each.comparison.stage.name for each in compared)
        figure.suptitle(f"Predicted and measured: {names}")
    return f"{path}: {len(drawn)} ops of {len(compared)} runs"


def _draw_pairs(axes: Any, drawn: list[tuple[Compared, Score]]) -> None:
    """Microseconds on logarithmic axes; the diagonal is a perfect prediction."""
    runs: dict[str, list[Score]] = {}
    for each, score in drawn:
        if score.measured_s > 0 and score.predicted_s > 0:
            runs.setdefault(each.comparison.stage.name, []).append(score)
    for name, scores in runs.items():
        middle = [score.predicted_s * 1e6 for score in scores]
        ends = [around(score.predicted_s * 1e6, score.half_width or 0.0) for score in scores]
        low = [m - end.low for m, end in zip(middle, ends, strict=True)]
        high = [end.high - m for m, end in zip(middle, ends, strict=True)]
        axes.errorbar(
            [score.measured_s * 1e6 for score in scores],
            middle,
            yerr=(low, high),
            fmt="o",
            markersize=3,
            linewidth=1,
            label=name,
        )
    values = [
        v * 1e6 for each in runs.values() for s in each for v in (s.measured_s, s.predicted_s)
    ]
    edges = (min(values, default=1.0), max(values, default=1.0))
    axes.plot(edges, edges, color="grey", linewidth=0.8)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="measured, us per step",
        ylabel="predicted with 90 % interval, us per step",
    )
    axes.legend(fontsize=7)


def _draw_errors(axes: Any, drawn: list[tuple[Compared, Score]]) -> None:
    """Signed errors in percent; darker where the op takes more of its step."""
    several = len({id(each) for each, _ in drawn}) > 1
    largest = sorted(drawn, key=lambda pair: -pair[1].share)[:MOST_OPS]
    kept = {id(score) for _, score in largest}
    shown = [pair for pair in drawn if id(pair[1]) in kept][::-1]
    names = [f"{e.comparison.stage.name} {s.op}" if several else s.op for e, s in shown]
    most = max(s.share for _, s in shown) or 1.0
    colours = [(0.1, 0.3, 0.6, 0.25 + 0.75 * max(0.0, s.share) / most) for _, s in shown]
    axes.barh(names, [100 * s.error for _, s in shown], color=colours)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.tick_params(axis="y", labelsize=6)
    axes.set(xlabel="error, %; darker: a larger share of the step")

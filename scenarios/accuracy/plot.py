"""Predicted against measured, with 90 % intervals: everything that no fit has seen, in one picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from layerwise.scenarios import tables
from layerwise.scenarios.accuracy.bars import LAYERS, PAIRS
from layerwise.scenarios.accuracy.scored import WITHOUT_INTERVALS, Scored, coverage_of
from layerwise.scenarios.pictures import check_picture, sheet
from layerwise.sim.profile import Profile
from layerwise.sim.uncertainty import around

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Whole steps, in front of the single ops that all else is.
STEPS = {LAYERS: "tab:blue", PAIRS: "tab:orange"}
# Errors beyond are drawn at the edge, and told in the legend.
MOST_PERCENT = 40.0


def write_plot(scored: Sequence[Scored], profile: Profile, path: Path) -> str:
    """Draw every measurement's error against its time; returns a sentence.

    Raises what `check_picture` does.
    """
    check_picture(path, "the tables and --json")
    shown = [one for one in scored if one.group not in WITHOUT_INTERVALS]
    with sheet(path, (8, 4.2)) as figure:
        axes = figure.add_subplot()
        _draw_ops(axes, [one for one in shown if one.group not in STEPS])
        for group, colour in STEPS.items():
            _draw_steps(axes, group, colour, [one for one in shown if one.group == group])
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(
            xscale="log",
            xlabel="measured time",
            ylim=(-MOST_PERCENT, MOST_PERCENT),
            ylabel="predicted over measured, less one, %",
            title=f"Never fitted, predicted with profile {profile.name} {profile.digest}"
            f"{_covered(shown)}",
        )
        axes.xaxis.set_major_formatter(lambda us, _: tables.seconds(us * 1e-6))
        axes.grid(alpha=0.25)
        axes.legend(loc="upper right", fontsize=7)
    return f"{path}: {len(shown)} measurements"


def _covered(shown: Iterable[Scored]) -> str:
    found = coverage_of(shown)
    return f": {found.covered:.0%} of {found.num} inside their 90 % interval" if found else ""


def _percent(one: Scored) -> float:
    return max(-MOST_PERCENT, min(MOST_PERCENT, 100 * one.error))


def _draw_ops(axes: Axes, ops: Sequence[Scored]) -> None:
    inside = [one for one in ops if one.is_covered]
    outside = [one for one in ops if not one.is_covered]
    for chosen, colour, label in (
        (inside, "tab:gray", "single op, measured inside its interval"),
        (outside, "tab:red", "single op, outside"),
    ):
        axes.scatter(
            [one.measured_s * 1e6 for one in chosen],
            [_percent(one) for one in chosen],
            s=5,
            color=colour,
            alpha=0.6,
            linewidths=0,
            label=f"{label} ({len(chosen)})",
        )


def _draw_steps(axes: Axes, group: str, colour: str, steps: Sequence[Scored]) -> None:
    """Draw each step's error with its interval, as far as the edges of the picture."""
    if not steps:
        return
    ends = [around(one.predicted_s, one.half_width) for one in steps]
    low = [
        100 * (one.predicted_s - end.low) / one.measured_s
        for one, end in zip(steps, ends, strict=True)
    ]
    high = [
        100 * (end.high - one.predicted_s) / one.measured_s
        for one, end in zip(steps, ends, strict=True)
    ]
    axes.errorbar(
        [one.measured_s * 1e6 for one in steps],
        [_percent(one) for one in steps],
        yerr=(low, high),
        fmt="o",
        markersize=3.5,
        linewidth=0.9,
        color=colour,
        label=f"{group}, with 90 % interval ({len(steps)})",
    )

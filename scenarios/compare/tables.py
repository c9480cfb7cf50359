"""Comparisons as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.text import Text

from layerwise.scenarios import tables
from layerwise.scenarios.compare.choosing import Compared, median_absolute_op_error, median_op_error
from layerwise.scenarios.compare.scores import (
    LEVELS,
    STAGE_TOLERANCE,
    Comparison,
    Level,
    Score,
    StageScore,
)
from layerwise.scenarios.tables import escape

# Of one trace the finest level with so many lines is shown where none was asked for.
MOST_LINES = 40
NAMED = 3  # of fitted shapes, so many are named
TITLES: dict[Level, str] = {
    "op": "op by op",
    "layer": "by layer",
    "stage": "by stage, rank and phase",
    "run": "the run and its step",
}
LEGEND = (
    "'light': speed of light; 'uncal.': datasheet rates times published efficiencies; 'calibr.': this "
    "profile's. 'in': the measured median lies in the 90 % interval. 'share': of the rank's whole step, "
    "from first start to last end: the sum of its ops, waits, what lay between them, less what "
    "overlapped. Waits are told from transfers by the shortest span over the members, and count where "
    "the rank did nothing else."
)
WHOLE_LEGEND = (
    "'before': committed before the measurement; '+-': half-width of the 90 % interval, ! where the "
    "measurement lies outside; 'spread': interquartile range of the repeats over their median."
)


def print_comparisons(compared: tuple[Compared, ...], out: Console, *, level: Level | None) -> None:
    """Each trace on one level, then the whole steps, then the gate.

    Without a level: one trace on the finest that is short enough, several as whole steps only.
    """
    if level or len(compared) == 1:
        for each in compared:
            chosen = level or finest_level(each.comparison)
            print_level(each.comparison, chosen, out)
            if each.comparison.trace.rows:
                print_level_trend(each.comparison, chosen, out)
        out.print(LEGEND, style="dim")
        out.print()
    made = tables.table(
        "Whole steps, no tracer attached",
        "run",
        "speed\nof light",
        "uncal.",
        "before",
        "calibr.",
        "+-",
        "measured",
        "spread",
        "error",
        "",
    )
    for each in compared:
        made.add_row(*_stage_cells(each))
    out.print(made)
    out.print(WHOLE_LEGEND, style="dim")
    for each in compared:
        _print_notes(each, out, brief=len(compared) > 1)
    _print_summary(compared, out)


def finest_level(comparison: Comparison) -> Level:
    """The first level with at most MOST_LINES lines."""
    if not comparison.trace.rows:
        return "run"
    for level in LEVELS:
        if len(comparison.of(level)) <= MOST_LINES:
            return level
    return "run"


def mark_of(stage: StageScore) -> Text:
    """PASS, FAIL, or that it has no say."""
    if not stage.is_scored:
        return Text("not scored", style="dim")
    return Text("PASS", style="green") if stage.passes else Text("FAIL", style="bold red")


def print_level(comparison: Comparison, level: Level, out: Console) -> None:
    """The lines of one level, in microseconds or milliseconds."""
    lines = comparison.of(level)
    unit, show = _unit_for(lines)
    growing = " (median over steps)" if any(line.first for line in lines) else ""
    made = tables.table(
        f"{comparison.stage.name}, {TITLES[level]}: {unit} per step{growing} "
        f"({comparison.stage.gpu})",
        level,
        "n",
        "light",
        "uncal.",
        "calibr.",
        "90 %",
        "measured",
        "spread",
        "error",
        "in",
        "share",
        gap=1,
    )
    for line in lines:
        made.add_row(*_cells(line, show), style="" if line.part in ("work", "step") else "dim")
    out.print(made)
    out.print()


def print_level_trend(comparison: Comparison, level: Level, out: Console) -> None:
    """Where the context grows: every line's first and last step."""
    lines = [line for line in comparison.of(level) if line.first and line.last]
    if not lines:
        return
    _, show = _unit_for(lines)
    made = tables.table(
        f"{comparison.stage.name}: from the first step to the last",
        level,
        "calibr.\nfirst",
        "calibr.\nlast",
        "growth",
        "measured\nfirst",
        "measured\nlast",
        "growth",
        "error\nfirst",
        "error\nlast",
        gap=1,
    )
    for line in lines:
        first, last = line.first, line.last
        if first and last:
            made.add_row(
                _name(line),
                show(first.predicted_s),
                show(last.predicted_s),
                _growth(first.predicted_s, last.predicted_s),
                show(first.measured_s),
                show(last.measured_s),
                _growth(first.measured_s, last.measured_s),
                _error(line, first.error),
                _error(line, last.error),
            )
    out.print(made)
    out.print()


def _cells(line: Score, show: Callable[[float], str]) -> tuple[str, ...]:
    interval, inside = line.interval, line.is_inside
    return (
        _name(line),
        str(line.count or ""),
        *(show(value) for value in line.times.values[:3]),
        f"{show(interval.low)}-{show(interval.high)}" if interval else "",
        show(line.measured_s),
        tables.percent(line.spread) if line.spread else "",
        _error(line, line.error),
        "" if inside is None else "yes" if inside else "NO",
        tables.percent(line.share),
    )


def _name(line: Score) -> str:
    wait = " wait" if line.part == "wait" and line.level in ("op", "layer") else ""
    return escape(line.name) + wait + (" *" if line.extrapolated else "")


def _error(line: Score, error: float) -> str:
    """Of waits and of what lies between ops, differences are no errors of a prediction."""
    return tables.signed(error) if line.part in ("work", "step") else ""


def _growth(first: float, last: float) -> str:
    return tables.signed(last / first - 1) if first > 0 else ""


def _unit_for(lines: Iterable[Score]) -> tuple[str, Callable[[float], str]]:
    longest_s = max((line.measured_s for line in lines), default=0.0)
    scale, unit = (1e6, "us") if longest_s < 0.1 else (1e3, "ms")

    def show(value_s: float) -> str:
        value = value_s * scale
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"

    return unit, show


def _stage_cells(each: Compared) -> tuple[str | Text, ...]:
    stage, before = each.comparison.stage, each.committed
    outside = "!" if stage.is_inside is False else ""
    width = "" if stage.half_width is None else f"{math.expm1(stage.half_width):.1%}"
    return (
        escape(stage.name),
        tables.seconds(stage.speed_of_light_s),
        tables.seconds(stage.uncalibrated_s),
        tables.seconds(before.predicted_step_s) if before else "none",
        tables.seconds(stage.predicted_s),
        f"{width}{outside}",
        tables.seconds(stage.measured_s),
        tables.percent(stage.spread) if stage.spread else "",
        tables.signed(stage.error),
        mark_of(stage),
    )


def _print_notes(each: Compared, out: Console, *, brief: bool) -> None:
    """What to know of one run: is it validation, was it predicted before, who paces it."""
    comparison, stage = each.comparison, each.comparison.stage
    notes = _brief_notes(each) + ([] if brief else _more_notes(comparison))
    out.print(f"{escape(stage.name)}: {escape('; '.join(notes))}.", style="dim")
    for caution in comparison.cautions:
        scored = "not scored: " if caution in stage.quarantine else ""
        out.print(f"{escape(stage.name)}: {scored}{escape(caution)}.", style="yellow")


def _brief_notes(each: Compared) -> list[str]:
    comparison = each.comparison
    notes = [each.earlier.told, _fitted(comparison)]
    if not comparison.trace.rows:
        notes.append("not traced, the whole step only")
    error, size = comparison.median_op_error, comparison.median_absolute_op_error
    if error is not None and size is not None:
        notes.append(
            f"median error over ops {tables.signed(error)}, absolute {tables.percent(size)}"
        )
    return notes


def _more_notes(comparison: Comparison) -> list[str]:
    stage, notes = comparison.stage, list[str]()
    if comparison.pacing:
        ours, theirs = comparison.pacing.predicted, comparison.pacing.measured
        notes.append(f"paced by rank {theirs} (predicted: rank {ours})")
    if comparison.num_replaced:
        notes.append(f"{comparison.num_replaced} messages replaced by local buffers, not scored")
    if stage.traced_ratio:
        notes.append(f"traced / untraced step {stage.traced_ratio:.3f}")
    if stage.hbm_floor_fraction:
        notes.append(f"reading weights and KV takes {stage.hbm_floor_fraction:.1%} of the step")
    if any(score.extrapolated for score in comparison.ops):
        notes.append("* outside what was calibrated")
    return notes


def _fitted(comparison: Comparison) -> str:
    names = comparison.fitted.names
    if not names:
        return comparison.fitted.told
    more = f", {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{comparison.fitted.told} ({', '.join(names[:NAMED])}{more})"


def _print_summary(compared: Sequence[Compared], out: Console) -> None:
    found = tuple(compared)
    middle, size = median_op_error(found), median_absolute_op_error(found)
    if middle is not None and size is not None:
        out.print(
            f"\nMedian error over all ops: signed {tables.signed(middle)}, "
            f"absolute {tables.percent(size)}."
        )
    mismatched = [
        escape(c.comparison.stage.name)
        for c in found
        if c.committed and c.committed.profile_digest != c.profile.digest
    ]
    if mismatched:
        digests = ", ".join(dict.fromkeys(c.profile.digest for c in found))
        out.print(f"Committed with another profile than {digests}: {', '.join(mismatched)}.")
    stages = [each.comparison.stage for each in found if each.comparison.stage.is_scored]
    failed = [escape(stage.name) for stage in stages if not stage.passes]
    if failed:
        out.print(
            f"FAIL: {len(failed)} of {len(stages)} validation stages are off by more than "
            f"{STAGE_TOLERANCE:.0%}: {', '.join(failed)}.",
            style="bold red",
        )
    elif stages:
        out.print(
            f"PASS: all {len(stages)} validation stages are within {STAGE_TOLERANCE:.0%}.",
            style="green",
        )
    else:
        out.print("No validation: none of these runs was made for it, or counts.", style="dim")

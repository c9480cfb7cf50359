"""Measured runs as parts of a page: whole steps, errors with intervals, each run op by op."""

from __future__ import annotations

from collections.abc import Sequence

from layerwise.scenarios import tables
from layerwise.scenarios.compare.choosing import Compared, median_absolute_op_error
from layerwise.scenarios.compare.scores import STAGE_TOLERANCE, Comparison, Score
from layerwise.scenarios.predict.alone import predict_run
from layerwise.scenarios.report.charts import Point, error_plot, residual_plot
from layerwise.scenarios.report.markup import Cell, Chart, Html, bullets, details, span, table
from layerwise.scenarios.report.sections import Section
from layerwise.scenarios.report.timelines import Lanes, middle_repeat, timeline
from layerwise.sim.plan.files import scenario_from_data
from layerwise.sim.uncertainty import Interval

US = 1e6
LINE_COLUMNS = (
    "op",
    "rank",
    "n",
    "speed of light, us",
    "uncalibrated, us",
    "calibrated, us",
    "90 %, us",
    "measured, us",
    "error",
    "inside",
    "share",
)


def runs_section(compared: Sequence[Compared]) -> Section:
    """All runs: a line each, then the pictures, then every run by itself."""
    part = Section(title="Predicted beside measured", key="runs")
    stages = [each.comparison.stage for each in compared]
    scored = [stage for stage in stages if stage.is_scored]
    size, passed = median_absolute_op_error(tuple(compared)), sum(s.passes for s in scored)
    said = f"{passed} of {len(scored)} scored runs are within {STAGE_TOLERANCE:.0%}"
    if size is not None:
        said += f"; the median absolute error over their ops is {tables.percent(size)}"
    part.say(f"{said}.", "strong")
    part.add(
        table(
            "Whole steps, no tracer attached",
            (
                "run",
                "GPU",
                "speed of light, ms",
                "uncalibrated, ms",
                "calibrated, ms",
                "90 %, ms",
                "measured, ms",
                "error",
                "inside",
                "verdict",
            ),
            [_stage_row(each) for each in compared],
        )
    )
    series = {each.comparison.stage.name: _points(each.comparison) for each in compared}
    part.draw(error_plot(series, "us per step"))
    part.draw(residual_plot(series, "us per step", STAGE_TOLERANCE))
    for each in compared:
        part.add(
            details(
                f"{each.comparison.stage.name}: op by op, and its timeline", _one_run(part, each)
            )
        )
    return part


def _stage_row(each: Compared) -> list[Cell | str]:
    stage = each.comparison.stage
    verdict = Cell("not scored", style="quiet")
    if stage.is_scored:
        verdict = Cell("pass", style="good") if stage.passes else Cell("fail", style="bad")
    return [
        Cell(stage.name, style="range"),
        stage.gpu,
        _ms(stage.speed_of_light_s),
        _ms(stage.uncalibrated_s),
        _ms(stage.predicted_s),
        span(stage.interval, _ms_text),
        _ms(stage.measured_s),
        _error(stage.error),
        _inside(stage.is_inside),
        verdict,
    ]


def _points(comparison: Comparison) -> list[Point]:
    whole = [score for score in comparison.of("run") if score.part == "step"]
    return [_point(score, is_whole=False) for score in comparison.ops] + [
        _point(score, is_whole=True) for score in whole[-1:]
    ]


def _point(score: Score, *, is_whole: bool) -> Point:
    interval = score.interval
    return Point(
        name=score.name,
        predicted=score.predicted_s * US,
        measured=score.measured_s * US,
        interval=Interval(interval.low * US, interval.high * US) if interval else None,
        share=score.share,
        is_whole=is_whole,
    )


def _one_run(part: Section, each: Compared) -> list[Html]:
    comparison, trace = each.comparison, each.comparison.trace
    quarantine = comparison.stage.quarantine
    notes = [each.earlier.told, comparison.fitted.told]
    notes += [f"not scored: {c}" if c in quarantine else c for c in comparison.cautions]
    found = [bullets(dict.fromkeys(notes))]
    if not trace.rows:
        return found
    found.append(
        table(
            "Op by op, a step of a rank",
            LINE_COLUMNS,
            [_line(score) for score in comparison.of("op")],
        )
    )
    return [*found, part.drawn(_timeline(each))]


def _timeline(each: Compared) -> Chart:
    trace = each.comparison.trace
    measured = middle_repeat(trace.rows)
    scenario = scenario_from_data(trace.scenario, f"trace {trace.name!r}: scenario")
    run = predict_run(scenario, each.profile)
    steps, ranks = {row.step for row in measured}, {row.rank for row in measured}
    predicted = [row for row in run.rows if row.step in steps and row.rank in ranks]
    return timeline(
        "Predicted above measured, the median repeat; each side from its own first start on a rank.",
        [Lanes(side="predicted", rows=predicted), Lanes(side="measured", rows=measured)],
    )


def _line(score: Score) -> list[Cell | str]:
    wait = " wait" if score.part == "wait" else ""
    is_error = score.part in ("work", "step")
    return [
        score.name + wait + (" *" if score.extrapolated else ""),
        " ".join(map(str, score.ranks)),
        Cell(str(score.count), score.count),
        *(_us(value_s) for value_s in score.times.values[:3]),
        span(score.interval, tables.microseconds),
        _us(score.measured_s),
        _error(score.error) if is_error else "",
        _inside(score.is_inside),
        Cell(tables.percent(score.share), score.share),
    ]


def _us(value_s: float) -> Cell:
    return Cell(tables.microseconds(value_s), value_s)


def _ms_text(value_s: float) -> str:
    return f"{value_s * 1e3:.4g}"


def _ms(value_s: float) -> Cell:
    return Cell(_ms_text(value_s), value_s)


def _error(value: float) -> Cell:
    return Cell(tables.signed(value), value)


def _inside(value: bool | None) -> Cell:
    if value is None:
        return Cell("")
    return Cell("yes") if value else Cell("no", style="warn")

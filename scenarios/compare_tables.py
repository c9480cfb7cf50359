"""Comparisons as people read them."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from scenarios import tables
from scenarios.compare import (
    STAGE_TOLERANCE,
    TRACED_RATIO_LIMIT,
    Comparison,
    StageScore,
)
from scenarios.comparing import Compared, median_absolute_op_error, median_op_error
from sim.profile import Profile


def print_comparisons(
    compared: tuple[Compared, ...], profile: Profile, out: Console, *, ops: bool
) -> None:
    """Each trace op by op (unless `ops` is off), then all stages, then the gate."""
    if ops:
        for each in compared:
            _print_ops(each, out)
    made = tables.table(
        "Whole stages, no tracer attached", "run", "speed\nof light", "predicted\nbefore run",
        "predicted\nnow", "measured", "error", "ops", "HBM floor", "",
    )  # fmt: skip
    for each in compared:
        made.add_row(*_stage_cells(each))
    out.print(made)
    _print_summary(compared, profile, out)


def mark_of(stage: StageScore) -> Text:
    """PASS, FAIL, or that it has no say."""
    if not stage.validation:
        return Text("not scored", style="dim")
    return Text("PASS", style="green") if stage.passes else Text("FAIL", style="bold red")


def _print_ops(each: Compared, out: Console) -> None:
    comparison = each.comparison
    made = tables.table(
        f"{comparison.stage.name}: time per step in us ({comparison.stage.gpu})", "op", "n",
        "speed\nof light", "predicted", "measured", "spread", "error", "share",
    )  # fmt: skip
    for score in comparison.ops:
        made.add_row(
            score.op + (" *" if score.extrapolated else ""), str(score.count),
            tables.microseconds(score.speed_of_light_s), tables.microseconds(score.predicted_s),
            tables.microseconds(score.measured_s),
            tables.percent(score.spread) if score.spread else "",
            tables.signed(score.error), tables.percent(score.share),
        )  # fmt: skip
    if comparison.gap:
        made.add_row(
            "(between ops)", "", "", tables.microseconds(comparison.gap.predicted_s),
            tables.microseconds(comparison.gap.measured_s), "", "",
            tables.percent(comparison.gap.share), style="dim",
        )  # fmt: skip
    if comparison.ops:
        out.print(made)
    _print_op_notes(comparison, out)


def _print_op_notes(comparison: Comparison, out: Console) -> None:
    stage = comparison.stage
    notes = []
    if not comparison.ops:
        notes.append(f"{escape(stage.name)}: not traced, the whole step only")
    if comparison.median_op_error is not None:
        notes.append(f"median signed error over ops {tables.signed(comparison.median_op_error)}")
    if comparison.median_absolute_op_error is not None:
        notes.append(f"absolute {tables.percent(comparison.median_absolute_op_error)}")
    if comparison.num_replaced:
        notes.append(f"{comparison.num_replaced} messages replaced by local buffers, not scored")
    if any(score.extrapolated for score in comparison.ops):
        notes.append("* outside what was calibrated")
    if stage.traced_ratio:
        notes.append(f"traced / untraced step {stage.traced_ratio:.3f}")
    out.print("; ".join(notes) + ".", style="dim")
    if stage.is_distorted:
        out.print(f"The tracer slowed this run by more than {TRACED_RATIO_LIMIT - 1:.0%}: "
                  "its split by op is distorted.", style="yellow")  # fmt: skip
    out.print()


def _stage_cells(each: Compared) -> tuple[str | Text, ...]:
    stage, before = each.comparison.stage, each.committed
    ops, size = each.comparison.median_op_error, each.comparison.median_absolute_op_error
    return (
        escape(stage.name),
        tables.seconds(stage.speed_of_light_s),
        tables.seconds(before.predicted_step_s) if before else "none",
        tables.seconds(stage.predicted_s),
        tables.seconds(stage.measured_s),
        tables.signed(stage.error),
        "" if ops is None or size is None else f"{tables.signed(ops)}, {tables.percent(size)}",
        tables.percent(stage.hbm_floor_fraction) if stage.hbm_floor_fraction else "",
        mark_of(stage),
    )


def _print_summary(compared: tuple[Compared, ...], profile: Profile, out: Console) -> None:
    out.print(
        "'predicted before run' was committed before the measurement; 'ops' the median error over ops,\n"
        "signed and absolute; 'HBM floor' the share of the measured step that reading weights and KV\n"
        "needs at least.", style="dim",
    )  # fmt: skip
    middle, size = median_op_error(compared), median_absolute_op_error(compared)
    if middle is not None and size is not None:
        out.print(f"\nMedian error over all ops: signed {tables.signed(middle)}, "
                  f"absolute {tables.percent(size)}.")  # fmt: skip
    mismatched = [escape(c.comparison.stage.name) for c in compared
                  if c.committed and c.committed.profile_digest != profile.digest]  # fmt: skip
    if mismatched:
        out.print(f"Committed with another profile than {profile.digest}: {', '.join(mismatched)}.")
    stages = [each.comparison.stage for each in compared if each.comparison.stage.validation]
    failed = [escape(stage.name) for stage in stages if not stage.passes]
    if failed:
        out.print(f"FAIL: {len(failed)} of {len(stages)} validation stages are off by more than "
                  f"{STAGE_TOLERANCE:.0%}: {', '.join(failed)}.", style="bold red")  # fmt: skip
    elif stages:
        out.print(f"PASS: all {len(stages)} validation stages are within {STAGE_TOLERANCE:.0%}.",
                  style="green")  # fmt: skip
    else:
        out.print("No validation: none of these runs was made for it.", style="dim")

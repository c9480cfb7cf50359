"""A sweep on a terminal: how far it is, and how it ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from layerwise.scenarios import tables
from layerwise.scenarios.sweep.run import Outcome, Progress
from layerwise.scenarios.sweep.spec import Sweep

LINE_EVERY_S = 10.0
NUM_REASONS = 5


@contextmanager
def showing_progress(total: int) -> Generator[Progress]:
    """On stderr: a bar with rate and time left on a terminal, else a line every ten seconds."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    columns = (
        TextColumn("sweep"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task, begin = bar.add_task("", total=total, rate=""), time.monotonic()

        def show(done: int, total: int) -> None:
            del total
            bar.update(task, completed=done, rate=_rate(done, begin))

        yield show


def _lines() -> Progress:
    begin = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY_S:
            return
        last = now
        left_s = (total - done) * (now - begin) / max(done, 1)
        line = f"{done:,} of {total:,} points, {_rate(done, begin)}, {left_s:,.0f} s left"
        print(line, file=sys.stderr, flush=True)

    return show


def _rate(done: int, begin: float) -> str:
    return f"{done / max(time.monotonic() - begin, 1e-3):,.1f}/s"


def print_outcome(sweep: Sweep, outcome: Outcome, out: Path, console: Console) -> None:
    """Where the rows are, how many of each status, and why points have no answer."""
    title = f"{sweep.name}: {outcome.num_points:,} points in {out}"
    console.print(tables.escape(title), style="bold", soft_wrap=True)
    made = tables.table("", "", "points")
    for label, count in _counts(outcome).items():
        if count:
            made.add_row(label, tables.number(count))
    console.print(made)
    if outcome.computed:
        rate = outcome.computed / max(outcome.seconds, 1e-3)
        console.print(f"{tables.seconds(outcome.seconds)}, {rate:,.1f} new points/s")
    if outcome.reasons:
        why = tables.table("without an answer that holds", "points", "reason", wide="reason")
        for reason, count in outcome.reasons.most_common(NUM_REASONS):
            why.add_row(tables.number(count), tables.escape(reason))
        if len(outcome.reasons) > NUM_REASONS:
            why.add_row(
                "", f"and {len(outcome.reasons) - NUM_REASONS} more; column `reason` has all"
            )
        console.print(why)


def _counts(outcome: Outcome) -> dict[str, int]:
    return {
        **outcome.statuses,
        "of these taken over from an earlier result": outcome.taken_over,
        "equal to another point, whose row they share": outcome.num_alike,
    }


def outcome_as_data(sweep: Sweep, outcome: Outcome, out: Path) -> dict[str, Any]:
    """How a sweep ended, with stable keys; the rows are in the file."""
    return {
        "sweep": sweep.name,
        "out": str(out),
        "num_points": outcome.num_points,
        "num_done": outcome.done,
        "num_computed": outcome.computed,
        "num_taken_over": outcome.taken_over,
        "num_alike": outcome.num_alike,
        "statuses": dict(outcome.statuses),
        "reasons": dict(outcome.reasons.most_common()),
        "interrupted": outcome.interrupted,
        "seconds": outcome.seconds,
    }

"""Accuracy on what no fit has seen, as people and machines read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from layerwise.scenarios import tables
from layerwise.scenarios.accuracy.bars import BARS, Row, groups_of, is_beyond, passes, rows_of
from layerwise.scenarios.accuracy.ranking import Ranked, asked_of, rank
from layerwise.scenarios.accuracy.red import reds_as_data
from layerwise.scenarios.accuracy.scored import (
    WITHOUT_INTERVALS,
    Coverage,
    Scored,
    Summary,
    coverage_of,
    summary_of,
)
from layerwise.scenarios.tables import escape
from layerwise.sim.profile import Profile

NUM_WORST = 10
RED_LIST, EXPLAINED = "tests/accuracy/red.toml", "scenarios/accuracy/README.md"
COLOURS = {
    "PASS": "[green]PASS[/green]",
    "FAIL": "[red]FAIL[/red]",
    "MISSING": "[red]MISSING[/red]",
    "": "",
}


def print_accuracy(scored: Sequence[Scored], profile: Profile, out: Console) -> None:
    """Every bar with its verdict; errors by group and part, intervals, rankings, the worst."""
    out.print(
        f"What no fit has seen, predicted with profile {escape(profile.name)} {profile.digest}."
    )
    rows = rows_of(scored)
    out.print(_bars(rows))
    _print_red(rows, out)
    made = tables.table(
        "|predicted / measured - 1|",
        "",
        "n",
        "signed",
        "median",
        "mean",
        "90th",
        "worst",
        "blind median",
    )
    for name, found in _named_parts(scored):
        made.add_row(name, *_figures(found))
    out.print(made)
    _print_coverage(scored, out)
    _print_ranking(asked_of(rank(scored)), out)
    listed = tables.table("The worst", "", "measured", "predicted", "error")
    for one in sorted(scored, key=lambda one: -abs(one.error))[:NUM_WORST]:
        listed.add_row(
            escape(one.name),
            tables.seconds(one.measured_s),
            tables.seconds(one.predicted_s),
            f"{one.error:+.1%}",
        )
    out.print(listed)


def _bars(rows: Sequence[Row]) -> Table:
    made = tables.table("Bars", "", "bar", "n", "seen", "", "points beyond")
    for row in rows:
        beyond = "" if row.each is None else f"{row.num_beyond} (> {row.each:.0%})"
        made.add_row(row.what, row.bar, str(row.num), row.seen, COLOURS[row.verdict], beyond)
    return made


def _print_red(rows: Sequence[Row], out: Console) -> None:
    """Each figure that misses its bar, and where causes are told."""
    for row in rows:
        for figure, how in row.misses.items():
            out.print(f"[red]In red[/red]: {escape(row.what)}, {figure}: {how}.")
    if num := sum(row.num_beyond for row in rows):
        out.print(f"{num} points are farther off than their family's bar allows each.")
    if num or any(row.misses for row in rows):
        out.print(f"What is known to be in red, and why: {RED_LIST}, {EXPLAINED}.")


def _named_parts(scored: Sequence[Scored]) -> list[tuple[str, Sequence[Scored]]]:
    """Each group, and below it its parts where there are several."""
    named: list[tuple[str, Sequence[Scored]]] = []
    for group, found in groups_of(scored).items():
        parts = sorted({one.part for one in found} - {""})
        named.append((group, found))
        if len(parts) > 1:
            named += [(f"  {part}", [o for o in found if o.part == part]) for part in parts]
    return named


def _print_coverage(scored: Sequence[Scored], out: Console) -> None:
    """How many measurements lie in their 90 % intervals, by group and part, and all together."""
    made = tables.table(
        "90 % intervals", "", "n", "covered", "median half-width", "median |error|", "ratio"
    )
    for name, found in (*_named_parts(scored), ("all", scored)):
        if covered := coverage_of(found):
            made.add_row(
                name,
                str(covered.num),
                f"{covered.covered:.1%}",
                f"{covered.median_half_width:.1%}",
                f"{covered.median_error:.1%}",
                f"{covered.width_ratio:.2f}",
            )
    out.print(made)


def _print_ranking(asked: Sequence[Ranked], out: Console) -> None:
    """Pairs that came out the wrong way round; nothing where there are none."""
    wrong = [pair for pair in asked if not pair.is_right]
    if not wrong:
        return
    made = tables.table(
        "Ranked wrongly", "faster", "slower", "measured gap", "predicted gap", "interval"
    )
    for pair in wrong:
        made.add_row(
            escape(pair.faster),
            escape(pair.slower),
            f"{pair.measured_gap:+.1%}",
            f"{pair.predicted_gap:+.1%}",
            f"{pair.half_width:.1%}",
        )
    out.print(made)


def accuracy_as_data(scored: Sequence[Scored], profile: Profile) -> dict[str, Any]:
    """The same with stable keys."""
    return {
        "profile": {"name": profile.name, "digest": profile.digest},
        "passes": passes(scored),
        "bars": [asdict(row) | {"misses": list(row.misses)} for row in rows_of(scored)],
        "red": reds_as_data(scored),
        "groups": {
            group: asdict(summary_of(one.error for one in found))
            | {"bar": asdict(BARS[group]), "blind": _blind(found)}
            for group, found in groups_of(scored).items()
        },
        "intervals": _coverage_as_data(coverage_of(scored)),
        "ranking": [asdict(p) | {"is_right": p.is_right} for p in asked_of(rank(scored))],
        "measurements": [
            {
                "group": one.group,
                "part": one.part,
                "name": one.name,
                "measured_s": one.measured_s,
                "predicted_s": one.predicted_s,
                "error": one.error,
                "tolerance": BARS[one.group].each,
                "is_beyond": is_beyond(one),
                "blind_error": one.blind_error,
                "log_half_width": one.half_width,
                "spread": one.spread,
                "kernel_set": one.kernel_set,
                "covered": None if one.group in WITHOUT_INTERVALS else one.is_covered,
            }
            for one in scored
        ],
    }


def _coverage_as_data(covered: Coverage | None) -> dict[str, Any] | None:
    if covered is None:
        return None
    # JSON knows no infinity: without any error there is no ratio.
    ratio = covered.width_ratio if covered.median_error else None
    return asdict(covered) | {"width_ratio": ratio, "passes": covered.passes}


def _figures(found: Sequence[Scored]) -> tuple[str, ...]:
    now, before = summary_of(one.error for one in found), blind_summary(found)
    return (
        str(now.num),
        f"{now.signed:+.1%}",
        f"{now.median:.1%}",
        f"{now.mean:.1%}",
        f"{now.p90:.1%}",
        f"{now.worst:.1%}",
        f"{before.median:.1%}" if before else "none",
    )


def blind_summary(found: Sequence[Scored]) -> Summary | None:
    """Of the predictions made before; None unless all of these were."""
    errors = [one.blind_error for one in found if one.blind_error is not None]
    return summary_of(errors) if errors and len(errors) == len(found) else None


def _blind(found: Sequence[Scored]) -> dict[str, Any] | None:
    summary = blind_summary(found)
    return asdict(summary) if summary else None

"""What each group of unseen measurements must reach, and whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from layerwise.scenarios.accuracy.ranking import asked_of, rank
from layerwise.scenarios.accuracy.scored import (
    MAX_COVERAGE,
    MAX_WIDTH_RATIO,
    MIN_COVERAGE,
    MIN_INTERVALS,
    MOVED,
    READS,
    WINDOWS,
    Scored,
    Summary,
    coverage_of,
    summary_of,
)

SMALL_MATMULS, LARGE_MATMULS = "matmul, M <= 1024", "matmul, M > 1024"
DECODES, PREFILLS = "attention, decode", "attention, prefill"
SENDS, ALL_REDUCES, ALL_GATHERS = "send/recv", "all-reduce", "all-gather"
LAYERS, PAIRS = "whole layers and stages", "two-GPU steps"
MODEL_DECODES, MODEL_PREFILLS = "whole models, decode", "whole models, prefill"
SUSTAINED = "matmul, M > 1024, sustained"
MAX_SMALL_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a group must reach: its median error, mean, 90th percentile and worst, or None of them.

    `each`: the tolerance of every point; those beyond it are in `tests/accuracy/red.toml`, with causes.
    `is_optional`: not every machine can measure it.
    """

    each: float
    median: float | None = None
    mean: float | None = None
    p90: float | None = None
    worst: float | None = None
    is_optional: bool = False

    @property
    def limits(self) -> dict[str, float]:
        """The figures of a Summary that have a limit."""
        given = {"median": self.median, "mean": self.mean, "p90": self.p90, "worst": self.worst}
        return {figure: limit for figure, limit in given.items() if limit is not None}

    def misses(self, summary: Summary) -> dict[str, str]:
        """The figures that are too high, each with what was seen and what is allowed."""
        return {
            figure: f"{value:.1%} where {_percent(limit)} is allowed"
            for figure, limit in self.limits.items()
            if (value := getattr(summary, figure)) > limit
        }


# `each` is the limit of the worst, or else twice that of the mean. No bar was ever set for layers
# with windows, nor for gathers: they are told, and do not fail.
BARS: dict[str, Bar] = {
    READS: Bar(median=0.03, worst=0.10, each=0.10),
    SMALL_MATMULS: Bar(median=0.03, mean=0.05, each=0.10),
    LARGE_MATMULS: Bar(mean=0.07, each=0.14),
    DECODES: Bar(median=0.03, mean=0.05, each=0.10),
    PREFILLS: Bar(median=0.03, mean=0.05, each=0.10),
    SENDS: Bar(mean=0.05, each=0.10, is_optional=True),
    ALL_REDUCES: Bar(mean=0.05, each=0.10, is_optional=True),
    ALL_GATHERS: Bar(each=0.10, is_optional=True),
    LAYERS: Bar(median=0.02, worst=0.06, each=0.06),
    WINDOWS: Bar(each=0.08, is_optional=True),
    PAIRS: Bar(median=0.03, worst=0.08, each=0.08, is_optional=True),
    MODEL_DECODES: Bar(median=0.015, worst=0.06, each=0.06, is_optional=True),
    MODEL_PREFILLS: Bar(median=0.03, worst=0.07, each=0.07, is_optional=True),
    SUSTAINED: Bar(median=0.04, p90=0.09, each=0.14, is_optional=True),
    MOVED: Bar(median=0.08, each=0.16, is_optional=True),
}
RANKING, INTERVALS = "ranking of placements", "90 % intervals"
FAMILIES = (*BARS, RANKING, INTERVALS)
Verdict = Literal["PASS", "FAIL", "MISSING", ""]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One family's bar, what was seen, and the verdict (empty: nothing was asked, or too little).

    `misses`: the figures in red, and how far. `num_beyond`: points that are off by more than `each`.
    """

    what: str
    bar: str
    num: int
    seen: str
    verdict: Verdict
    misses: dict[str, str] = field(default_factory=dict[str, str])
    each: float | None = None
    num_beyond: int = 0


def groups_of(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    """The measurements by group, in the order of the bars."""
    return {
        group: found for group in BARS if (found := [one for one in scored if one.group == group])
    }


def rows_of(scored: Sequence[Scored]) -> list[Row]:
    """Every bar with what was seen."""
    groups = groups_of(scored)
    rows = [_group_row(group, bar, groups.get(group, ())) for group, bar in BARS.items()]
    return [*rows, _ranking_row(scored), _coverage_row(scored)]


def passes(scored: Sequence[Scored]) -> bool:
    """Does every bar hold, and is nothing missing that every machine can measure?"""
    return not any(row.misses for row in rows_of(scored))


def is_beyond(one: Scored) -> bool:
    """Is a point farther off than its family's bar allows each?"""
    return abs(one.error) > BARS[one.group].each


def _group_row(group: str, bar: Bar, found: Sequence[Scored]) -> Row:
    limits = bar.limits.items()
    text = ", ".join(f"{figure} {_percent(limit)}" for figure, limit in limits) or "none"
    if not found:
        missing = {} if bar.is_optional else {"measurements": "there is none"}
        verdict: Verdict = "MISSING" if missing else ""
        return Row(
            what=group, bar=text, num=0, seen="not measured", verdict=verdict, misses=missing
        )
    summary = summary_of(one.error for one in found)
    shown = bar.limits or {"median": 0.0, "worst": 0.0}
    misses = bar.misses(summary)
    return Row(
        what=group,
        bar=text,
        num=len(found),
        seen=", ".join(f"{figure} {getattr(summary, figure):.1%}" for figure in shown),
        verdict=_verdict(misses) if bar.limits else "",
        misses=misses,
        each=bar.each,
        num_beyond=sum(map(is_beyond, found)),
    )


def _percent(share: float) -> str:
    """`6%`, and `1.5%` where the limit is no whole number of them."""
    return f"{100 * share:.3g}%"


def _verdict(misses: dict[str, str]) -> Verdict:
    return "FAIL" if misses else "PASS"


def _ranking_row(scored: Sequence[Scored]) -> Row:
    ranked = rank(scored)
    asked = asked_of(ranked)
    num_wrong = sum(not pair.is_right for pair in asked)
    misses = {"pairs": f"{num_wrong} of {len(asked)} the wrong way round"} if num_wrong else {}
    seen = f"{len(asked) - num_wrong} of {len(asked)} pairs" if asked else "not measured"
    return Row(
        what=RANKING,
        bar="all pairs told apart",
        num=len(ranked),
        seen=seen,
        verdict=_verdict(misses) if asked else "",
        misses=misses,
    )


def _coverage_row(scored: Sequence[Scored]) -> Row:
    bar = f"{MIN_COVERAGE:.0%} to {MAX_COVERAGE:.0%}, ratio {MAX_WIDTH_RATIO:g}"
    found = coverage_of(scored)
    if not found or found.num < MIN_INTERVALS:
        num = found.num if found else 0
        few = f"fewer than {MIN_INTERVALS}"
        return Row(what=INTERVALS, bar=bar, num=num, seen=few, verdict="")
    misses = found.misses
    return Row(
        what=INTERVALS,
        bar=bar,
        num=found.num,
        seen=f"{found.covered:.1%}, ratio {found.width_ratio:.2f}",
        verdict=_verdict(misses),
        misses=misses,
    )

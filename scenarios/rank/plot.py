"""The Pareto front of a ranking as a picture. Needs matplotlib (extra `plots`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from layerwise.scenarios.pictures import check_picture, sheet
from layerwise.scenarios.rank.asked import Candidate
from layerwise.scenarios.rank.ranking import Ranking
from layerwise.scenarios.rank.tables import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_RIVALS = 3
# A bar within so many times the longest TPOT is drawn.
NEAR = 1.5
# Of the highest point: room for the rivals' names.
TOP_SHARE = 1.2
# Of the picture's width: the same.
NAMES_SHARE = 0.25


def write_plot(ranking: Ranking, path: Path) -> str:
    """Draw throughput against TPOT over batches, and every layout; returns a sentence."""
    check_picture(path, "the table")
    with sheet(path, (9, 5.5)) as figure:
        _draw(ranking, figure)
    fitting = sum(each.fits for each in ranking.best)
    return f"{path}: {len(ranking.front)} points on the front, {fitting} placements"


def _draw(ranking: Ranking, figure: Figure) -> None:
    axes = figure.add_subplot()
    fitting = [each for each in ranking.best if each.fits]
    axes.scatter(
        [c.tpot_s * 1e3 for c in fitting],
        [c.tokens_per_s for c in fitting],
        s=14,
        color="tab:gray",
        label=f"every placement at batch {ranking.asked.workload.batch_size}",
    )
    front = ranking.front
    axes.errorbar(
        [c.tpot_s * 1e3 for c in front],
        [c.tokens_per_s for c in front],
        yerr=[[_below(c) for c in front], [_above(c) for c in front]],
        marker="o",
        capsize=3,
        label=_front_words(front),
    )
    for each in front:
        # Above and to the left of a front that rises to the right, nothing else is drawn.
        axes.annotate(
            f"batch {each.batch_size}",
            (each.tpot_s * 1e3, each.tokens_per_s),
            xytext=(-6, 4),
            textcoords="offset points",
            ha="right",
            fontsize=7,
        )
    _draw_range(ranking, axes, [*fitting, *front])
    _name_rivals(axes, [each for each in fitting if each is not ranking.winner][:NUM_RIVALS])
    work = ranking.asked.workload
    axes.set_title(
        plain(
            f"{ranking.asked.model.name} on {ranking.asked.cluster.name}, batch "
            f"{work.batch_size}, {work.context_tokens:,} tokens of context"
        )
    )
    axes.set_ylabel("tokens/s")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)


def _front_words(front: Sequence[Candidate]) -> str:
    """The front's placements, each with the batches that it leads at."""
    words = ["Pareto front over batches, 90 % interval:"]
    for layout, each in groupby(front, key=lambda c: c.layout.name):
        batches = [c.batch_size for c in each]
        to = f" to {batches[-1]}" if len(batches) > 1 else ""
        words.append(f"batch {batches[0]}{to}: {layout}")
    return "\n".join(words)


def _draw_range(ranking: Ranking, axes: Axes, shown: Sequence[Candidate]) -> None:
    """As far as the data go; the bar is drawn where it is near them, and told where it is not."""
    label, bar_s = "TPOT, ms", ranking.tpot_below_s
    most_s = max((c.tpot_s for c in shown), default=1e-3)
    if bar_s is not None and bar_s <= NEAR * most_s:
        axes.axvline(bar_s * 1e3, color="tab:red", label=f"bar: {bar_s * 1e3:g} ms")
        most_s = max(most_s, bar_s)
    elif bar_s is not None:
        label += f" (bar: {bar_s * 1e3:g} ms, beyond the right edge)"
    axes.set_xlabel(label)
    least_s = min((c.tpot_s for c in shown), default=0.0)
    # Room on the left for the batches' names.
    axes.set_xlim(max(0.0, least_s - 0.15 * most_s) * 1e3, 1.1 * most_s * 1e3)
    axes.set_ylim(0, TOP_SHARE * max((c.tokens_per_s + _above(c) for c in shown), default=1.0))


def _name_rivals(axes: Axes, rivals: Sequence[Candidate]) -> None:
    """Above everything and to the right of all their dots, so that no line crosses a name."""
    low, high = axes.get_xlim()
    last = max((each.tpot_s * 1e3 for each in rivals), default=low)
    high = max(high, low + (last - low) / (1 - NAMES_SHARE))
    axes.set_xlim(low, high)
    at = last + 0.03 * (high - low)
    for place, each in enumerate(rivals):
        axes.annotate(
            each.layout.name,
            (each.tpot_s * 1e3, each.tokens_per_s),
            xytext=(at, axes.get_ylim()[1] * (0.96 - 0.04 * place)),
            fontsize=7,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "tab:gray", "lw": 0.5, "relpos": (0, 0.5)},
        )


def _below(each: Candidate) -> float:
    return each.tokens_per_s - each.interval.low if each.interval else 0.0


def _above(each: Candidate) -> float:
    return each.interval.high - each.tokens_per_s if each.interval else 0.0

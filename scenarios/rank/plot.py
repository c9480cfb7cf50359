"""The Pareto front of a ranking as a picture. Needs matplotlib (extra `plots`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from scenarios.rank.asked import Candidate
from scenarios.rank.ranking import Ranking
from scenarios.rank.tables import plain
from sim.plan.errors import MissingPackageError, SpecError

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot_path(path: Path) -> None:
    """Before the work is done: raises SpecError for another format, MissingPackageError."""
    if path.suffix.lower() not in SUFFIXES:
        raise SpecError(
            "--plot",
            str(path),
            "is no picture that can be drawn",
            f"end it in {', '.join(SUFFIXES)}",
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingPackageError(
            "matplotlib", "draw the Pareto front", "pip install '.[plots]'", "the table"
        )


def write_plot(ranking: Ranking, path: Path) -> str:
    """Draw throughput against TPOT over batches, and every layout; returns a sentence."""
    check_plot_path(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    fitting = [each for each in ranking.best if each.fits]
    axes.scatter(
        [c.tpot_s * 1e3 for c in fitting], [c.tokens_per_s for c in fitting], s=14,
        color="tab:gray", label=f"every placement at batch {ranking.asked.workload.batch_size}",
    )  # fmt: skip
    front = ranking.front
    axes.errorbar(
        [c.tpot_s * 1e3 for c in front], [c.tokens_per_s for c in front],
        yerr=[[_below(c) for c in front], [_above(c) for c in front]],
        marker="o", capsize=3, label="Pareto front over batches, 90 % interval",
    )  # fmt: skip
    for each in front:
        axes.annotate(
            f"{each.layout.name}, batch {each.batch_size}", (each.tpot_s * 1e3, each.tokens_per_s),
            xytext=(6, -10), textcoords="offset points", fontsize=7,
        )  # fmt: skip
    if ranking.tpot_below_s is not None:
        axes.axvline(ranking.tpot_below_s * 1e3, color="tab:red", label="TPOT asked for")
    asked = ranking.asked
    axes.set_title(
        plain(
            f"{asked.model.name} on {asked.cluster.name}, {asked.workload.context_tokens:,} tokens"
        ),
        parse_math=False,
    )
    axes.set_xlabel("TPOT, ms")
    axes.set_ylabel("tokens/s")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    return f"{path}: {len(front)} points on the front, {len(fitting)} placements"


def _below(each: Candidate) -> float:
    return each.tokens_per_s - each.interval.low if each.interval else 0.0


def _above(each: Candidate) -> float:
    return each.interval.high - each.tokens_per_s if each.interval else 0.0

"""Pictures of what a fit leaves over: predicted over measured against each main feature of a kind."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from layerwise.calibration.review import HELD_OUT_BAR, Reviewed
from layerwise.sim.cost.kinds import kind_named

WITHOUT = (
    "no pictures: matplotlib is not installed (pip install '.[plots]'); points.csv has the "
    "same numbers"
)
COLOURS = {True: "tab:blue", False: "tab:red"}


def have_matplotlib() -> bool:
    """Can pictures be drawn here?"""
    return find_spec("matplotlib") is not None


def draw_residuals(reviewed: Sequence[Reviewed], folder: Path) -> list[Path]:
    """One PNG a kind of op: a panel for each feature, cold points blue and warm ones red."""
    import matplotlib as mpl

    mpl.use("Agg")
    kinds = sorted({one.kind for one in reviewed})
    return [_draw_kind(kind, [o for o in reviewed if o.kind == kind], folder) for kind in kinds]


def _draw_kind(kind: str, points: Sequence[Reviewed], folder: Path) -> Path:
    from matplotlib import pyplot as plt

    named = kind_named(kind).features
    features = (*named, "measured seconds")
    figure, axes = plt.subplots(
        1, len(features), figsize=(4 * len(features), 3.6), sharey=True, squeeze=False
    )
    for number, (axis, name) in enumerate(zip(axes[0], features, strict=True)):
        for is_cold in (True, False):
            chosen = [p for p in points if p.is_cold is is_cold]
            values = [p.features[number] if number < len(named) else p.measured_s for p in chosen]
            axis.scatter(
                values,
                [p.ratio for p in chosen],
                s=6,
                alpha=0.5,
                linewidths=0,
                color=COLOURS[is_cold],
                label="cold" if is_cold else "warm",
            )
        _label(axis, name)
    axes[0][0].set_ylabel("predicted / measured, shape left out")
    axes[0][0].legend(loc="best", fontsize="small")
    figure.suptitle(f"{kind}: {len(points):,} points; the band is {HELD_OUT_BAR:.0%}")
    figure.tight_layout()
    path = folder / f"residuals-{kind}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _label(axis: Any, name: str) -> None:
    axis.axhspan(1 - HELD_OUT_BAR, 1 + HELD_OUT_BAR, color="0.9", zorder=0)
    axis.axhline(1.0, color="0.4", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel(name.replace("_", " "))

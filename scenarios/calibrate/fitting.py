"""Fit what a folder holds: write the profile, print how well it fits, store its diagnostics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from layerwise.calibration.data import transfers_path
from layerwise.scenarios.tables import percent, table
from layerwise.sim.plan.errors import MissingPackageError, SpecError
from layerwise.sim.plan.hardware import GPUS

if TYPE_CHECKING:
    from layerwise.calibration.dataset import Table
    from layerwise.calibration.least_squares import FitError
    from layerwise.scenarios.calibrate.fit_report import FitReport
    from layerwise.sim.profile import OpFit, Profile


def require_scipy() -> None:
    """Raise MissingPackageError, saying what works without it, when scipy is not installed."""
    if find_spec("scipy") is None:
        raise MissingPackageError(
            "scipy",
            "fit a profile",
            "pip install '.[calibration]'",
            "all that predicts with a shipped profile (layerwise paper, predict, compare)",
        )


def fit_to(folder: Path, out: Path, name: str, gpu: str, console: Console) -> str:
    """Fit the measurements in a folder, print the fits, write the profile; returns a sentence.

    Diagnostics are stored beside the profile. Raises MissingPackageError without scipy, SpecError
    for an unknown GPU, FitError or FileFormatError; then nothing is written, and the table names
    the kinds that failed.
    """
    require_scipy()
    if gpu not in GPUS:
        raise SpecError("gpu", gpu, "is not a known GPU", f"use one of {', '.join(GPUS)}")
    from layerwise.calibration.build import build_profile
    from layerwise.calibration.least_squares import FitError
    from layerwise.calibration.transfers import read_transfers
    from layerwise.scenarios.calibrate.collect import GPU_KERNELS
    from layerwise.scenarios.calibrate.fit_report import print_report, store_report
    from layerwise.sim.profile import write_profile

    outcomes: dict[str, OpFit | FitError] = {}
    aside: list[str] = []
    by_kind: dict[str, Table] = {}
    try:
        profile = build_profile(
            folder,
            name=name,
            gpu=gpu,
            kernels=GPU_KERNELS,
            transfers=read_transfers(transfers_path(gpu)),
            progress=outcomes.__setitem__,
            quarantine=lambda where, why: aside.append(f"{where}: {why}"),
            joined=by_kind.update,
        )
    except FitError:
        if outcomes:
            print_fits(outcomes, console)
        raise
    print_fits(outcomes, console)
    report = report_of(folder, profile, by_kind, aside)
    print_report(report, console)
    write_profile(profile, out)
    stored = store_report(report, out)
    partial = profile.provenance.get("partial")
    note = f"\npartial: {partial}; run it again to measure the rest" if partial else ""
    return f"{out}: profile {name} of {gpu}, digest {profile.digest}\n{stored}{note}"


def add_to(folder: Path, base: Path, out: Path) -> str:
    """Write a profile that has the kinds of op which the base lacks and the folder tells."""
    require_scipy()
    from layerwise.calibration.build import with_kinds
    from layerwise.scenarios.calibrate.collect import GPU_KERNELS
    from layerwise.sim.profile import load_profile, write_profile

    old = load_profile(base)
    new = with_kinds(folder, old, GPU_KERNELS)
    write_profile(new, out)
    added = ", ".join(sorted(new.fits.keys() - old.fits.keys()))
    return f"{out}: {added} added to {old.name}, digest {new.digest}"


def report_of(
    folder: Path, profile: Profile, by_kind: Mapping[str, Table], quarantined: Sequence[str]
) -> FitReport:
    """What a person looks at, of a profile and the tables and folder that it was fitted to."""
    from layerwise.calibration.build import read_points
    from layerwise.calibration.dataset import read_sweep
    from layerwise.calibration.design import run_to_run
    from layerwise.calibration.review import boxes, review
    from layerwise.scenarios.calibrate.fit_report import FitReport

    again = folder / "repeats.jsonl"
    _, measured = read_points(folder, profile.kernels)
    return FitReport(
        profile_name=profile.name,
        profile_digest=profile.digest,
        reviewed=tuple(review(profile.fits, by_kind, GPUS[profile.gpu])),
        boxes=tuple(boxes(profile.fits, (), kept_apart(folder, profile))),
        quarantined=tuple(quarantined),
        spread=run_to_run(measured, read_sweep(again)) if again.exists() else None,
    )


def kept_apart(folder: Path, profile: Profile) -> tuple[int, float] | None:
    """Of points that no fit has seen: how many, and the share inside their intervals.

    Raises FileFormatError when one of them is no such point.
    """
    from layerwise.calibration.dataset import check_sweep, read_sweep
    from layerwise.calibration.pricing import price_point
    from layerwise.calibration.unseen import unseen

    path = folder / "unseen.jsonl"
    measured = read_sweep(path) if path.exists() else {}
    if not measured:
        return None
    points = {point.name: point for point in unseen(profile.kernels)}
    check_sweep(points.values(), measured)
    inside = 0
    for name, one in measured.items():
        predicted_s, half_width = price_point(profile, points[name])
        inside += abs(math.log(one.step_s / predicted_s)) <= half_width
    return len(measured), inside / len(measured)


def print_fits(outcomes: dict[str, OpFit | FitError], console: Console) -> None:
    """One row per kind of op with three yes/no boxes, then the parameters that met a bound."""
    from layerwise.calibration.fit import parameters_at_bound
    from layerwise.calibration.review import HELD_OUT_BAR
    from layerwise.sim.profile import OpFit

    made = table(
        "Fits by kind of op: |predicted / measured - 1|",
        "kind",
        "points",
        "form",
        "held out",
        "p90",
        "converged",
        "off bounds",
        f"held out < {HELD_OUT_BAR:.0%}",
    )
    bound: list[str] = []
    for kind, fit in outcomes.items():
        if not isinstance(fit, OpFit):
            made.add_row(kind, "-", "-", "-", "-", "no", "-", "-")
            continue
        stopped = parameters_at_bound(kind, fit)
        bound += [f"{kind}.{name} = {fit.values[name]:.4g}" for name in stopped]
        made.add_row(
            kind,
            f"{fit.num_points:,}",
            percent(fit.form_median_error),
            percent(fit.held_out_median_error),
            percent(fit.held_out_p90_error),
            "yes",
            _box(not stopped),
            _box(fit.held_out_median_error < HELD_OUT_BAR),
        )
    console.print(made)
    console.print(
        "form: median of the physics form alone; held out: median, and p90, of points that the "
        "fit had not seen (matmuls: whole weight shapes)."
    )
    if bound:
        console.print("At a bound, so not told by the data: " + ", ".join(bound) + ".")


def _box(holds: bool) -> str:
    return "yes" if holds else "no"

"""What a calibration tells about itself: printed, and stored beside the profile."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console

from layerwise.calibration.design import Spread
from layerwise.calibration.review import Box, Reviewed, worst
from layerwise.scenarios.calibrate.residual_plots import WITHOUT, draw_residuals, have_matplotlib
from layerwise.scenarios.tables import escape, percent, seconds, signed, table
from layerwise.sim.trace import write_atomically

FORMAT, VERSION = "layerwise-diagnostics", 1


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """Everything a person looks at: each point, the boxes, what was set aside, the spread."""

    profile_name: str
    profile_digest: str
    reviewed: tuple[Reviewed, ...]
    boxes: tuple[Box, ...]
    quarantined: tuple[str, ...] = ()
    spread: Spread | None = None


def diagnostics_folder(profile: Path) -> Path:
    """Beside the profile, under its name."""
    return profile.with_name(f"{profile.name.removesuffix('.json')}.diagnostics")


def print_report(report: FitReport, console: Console) -> None:
    """Boxes first, then the worst points with the likely reason, then what was set aside."""
    made = table("Yes or no", "question", "answer", "because", wide="because")
    for box in report.boxes:
        made.add_row(box.question, box.answer, escape(box.detail))
    console.print(made)
    if report.reviewed:
        _print_worst(report.reviewed, console)
    console.print(spread_sentence(report.spread))
    if report.quarantined:
        console.print(f"Set aside, in no fit ({len(report.quarantined)}):")
        for line in report.quarantined:
            console.print(f"  {escape(line)}")


def _print_worst(reviewed: Sequence[Reviewed], console: Console) -> None:
    made = table(
        "The worst points, each predicted as if its shape had not been measured",
        "point",
        "measured",
        "error",
        "likely reason",
        wide="likely reason",
    )
    for one, reason in worst(reviewed):
        made.add_row(escape(one.name), seconds(one.measured_s), signed(one.ratio - 1), reason)
    console.print(made)


def spread_sentence(spread: Spread | None) -> str:
    """How far two measurements of the same points lie apart."""
    if spread is None:
        return "Run-to-run spread: not measured; no point was measured twice."
    return (
        f"Run-to-run spread, {spread.num} points at the start and at the end: median "
        f"{percent(spread.median)}, p90 {percent(spread.p90)}, drift {signed(spread.drift)}."
    )


def store_report(report: FitReport, profile: Path) -> str:
    """Write points.csv, report.json and, with matplotlib, a picture a kind; returns a sentence."""
    folder = diagnostics_folder(profile)
    write_atomically(folder / "points.csv", _as_csv(report.reviewed))
    write_atomically(folder / "report.json", json.dumps(_as_data(report), indent=1) + "\n")
    if not have_matplotlib():
        return f"{folder}: points and boxes; {WITHOUT}"
    pictures = draw_residuals(report.reviewed, folder)
    return f"{folder}: points, boxes and {len(pictures)} pictures"


def _as_csv(reviewed: Sequence[Reviewed]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Reviewed)]
    writer.writerow([*names, "predicted_over_measured"])
    for one in reviewed:
        row = [getattr(one, name) for name in names]
        writer.writerow(
            [" ".join(map(str, v)) if isinstance(v, tuple) else v for v in row] + [one.ratio]
        )
    return text.getvalue()


def _as_data(report: FitReport) -> dict[str, object]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "profile": {"name": report.profile_name, "digest": report.profile_digest},
        "boxes": [asdict(box) for box in report.boxes],
        "worst": [
            {
                "name": one.name,
                "measured_s": one.measured_s,
                "predicted_s": one.predicted_s,
                "likely_reason": reason,
            }
            for one, reason in worst(report.reviewed)
        ],
        "quarantined": list(report.quarantined),
        "run_to_run": asdict(report.spread) if report.spread else None,
    }

"""Timelines in one file for ui.perfetto.dev: a prediction, or runs beside their predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from layerwise.scenarios.compare.accounts import measured_transfers, members_of
from layerwise.scenarios.predict.alone import PredictedRun, predict_run
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.predict import Prediction
from layerwise.sim.profile import Profile
from layerwise.sim.timeline.chosen import MAX_SLICES, Panel
from layerwise.sim.timeline.sides import MeasuredSide, PredictedSide
from layerwise.sim.timeline.writing import write_timeline
from layerwise.sim.trace import Row, Trace

if TYPE_CHECKING:
    from layerwise.scenarios.paper.experiment import Entry, Report

# From idle, then two steps that follow at once: fill and the steady stream both show.
NUM_STEPS = 3
CLOCKS = (
    "every rank has a clock of its own: each measured step is laid where its rank begins the "
    "predicted one, or later where a message would arrive unsent"
)
VIEWER = "open it at https://ui.perfetto.dev"


def write_panels(panels: Sequence[Panel], path: Path, max_slices: int = MAX_SLICES) -> str:
    """Write a timeline (`.gz` compresses) and say in a sentence what went into it.

    Raises what `layerwise.sim.timeline.writing.write_timeline` raises.
    """
    written = write_timeline(panels, path, max_slices)
    said = [f"{path}: {written.num_slices:,} slices, {written.num_arrows:,} arrows"]
    if written.left_out:
        said.append(
            f"left out to stay under {max_slices:,} slices: {'; '.join(written.left_out)} "
            "(--trace-slices N draws more)"
        )
    return "; ".join(dict.fromkeys((*said, *written.notes, VIEWER)))


def write_predicted_timeline(
    prediction: Prediction, path: Path, max_slices: int = MAX_SLICES
) -> str:
    """Write the simulation that a prediction was read from, and say what was written."""
    assert prediction.simulation is not None, "a fresh prediction carries its simulation"
    side = PredictedSide(prediction.simulation)
    return write_panels([Panel(name="", sides=[side])], path, max_slices)


def write_compared_timeline(
    runs: Iterable[tuple[Trace, Profile]], path: Path, max_slices: int = MAX_SLICES
) -> str:
    """Write each measured run rank by rank below its prediction, and say what was written.

    Raises SpecError where no run has rows: then nobody timed its ops.
    """
    chosen = [(trace, profile) for trace, profile in runs if trace.rows]
    if not chosen:
        raise SpecError(
            "--trace",
            str(path),
            "has no measured op to draw",
            "measure with --timing cupti, or leave it out",
        )
    panels = [
        Panel(name=trace.name if len(chosen) > 1 else "", sides=sides_of(trace, profile))
        for trace, profile in chosen
    ]
    return write_panels(panels, path, max_slices)


def write_paper_timeline(report: Report, path: Path, max_slices: int = MAX_SLICES) -> str:
    """Simulate both of the paper's placements again, keeping every op, and write them."""
    entries = (report.best_baseline, report.layer_wise)
    panels = [
        Panel(name=entry.best.placement, sides=[_entry_side(entry, report.profile)])
        for entry in entries
    ]
    return write_panels(panels, path, max_slices)


def sides_of(trace: Trace, profile: Profile) -> tuple[PredictedSide, MeasuredSide]:
    """A measured run and its prediction; of its repeats the one whose longest rank is the median.

    Raises what `layerwise.scenarios.predict.alone.predict_run` raises.
    """
    from layerwise.sim.plan.files import scenario_from_data

    scenario = scenario_from_data(trace.scenario, f"trace {trace.name!r}: scenario")
    predicted = predict_run(scenario, profile)
    rows, repeat, num_repeats = _middle_repeat(trace.rows)
    side = PredictedSide(predicted.simulation)
    drawn = f"{trace.name}: repeat {repeat} of {num_repeats} is drawn, the one of median length"
    return side, MeasuredSide(
        rows=rows, predicted=side, transfers_s=_transfers_s(rows, predicted), notes=(drawn, CLOCKS)
    )


def _transfers_s(rows: Sequence[Row], predicted: PredictedRun) -> dict[tuple[int, int, str], float]:
    """Of messages and collectives whose other members were measured too."""
    ranks, steps = {row.rank for row in rows}, sorted({row.step for row in rows})
    members = members_of(predicted.run, ranks, steps) if len(ranks) > 1 else {}
    return {key: took_s for (_, key), took_s in measured_transfers(rows, members).items()}


def _middle_repeat(rows: Iterable[Row]) -> tuple[tuple[Row, ...], int, int]:
    """Its rows, its place among the repeats (from 1) and how many there are."""
    repeats: dict[int, list[Row]] = {}
    for row in rows:
        repeats.setdefault(row.repeat, []).append(row)
    order = sorted(repeats)
    middle = sorted(order, key=lambda repeat: _length_s(repeats[repeat]))[len(order) // 2]
    return tuple(repeats[middle]), order.index(middle) + 1, len(order)


def _length_s(rows: Iterable[Row]) -> float:
    """Of the longest step of a rank; a step's times count from its own start."""
    return max(row.end_s for row in rows)


def _entry_side(entry: Entry, profile: Profile | None) -> PredictedSide:
    scenario = entry.scenario.with_microbatches(entry.best.num_microbatches)
    scenario = replace(scenario, run=replace(scenario.run, num_steps=NUM_STEPS))
    return PredictedSide(predict_run(scenario, profile).simulation)

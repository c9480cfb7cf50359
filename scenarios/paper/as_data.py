"""The paper's report for machines: stable keys, SI units in their names, no NaN."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from layerwise.scenarios.paper.answer import answer_of
from layerwise.scenarios.paper.experiment import Entry, Report
from layerwise.scenarios.paper.verdicts import Reading
from layerwise.scenarios.predict.beliefs import (
    on_chip_line,
    prediction_as_data,
    provenance_of,
    warnings_of,
)
from layerwise.sim.memory import Remedy
from layerwise.sim.plan.scenario import place


def report_as_data(report: Report) -> dict[str, Any]:
    """Everything the printed report says, and what it rounds."""
    return {
        "format": "layerwise-paper",
        "version": 1,
        "provenance": provenance_of(report.profile),
        "question": asdict(report.question),
        "answer": list(answer_of(report)),
        "model": asdict(report.layer_wise.scenario.model)
        | {"parameters": report.layer_wise.scenario.model.parameters},
        "cluster": asdict(report.layer_wise.scenario.cluster),
        "workload": asdict(report.layer_wise.scenario.workload),
        "placements": [
            _entry(entry, found)
            for entry, found in zip(report.entries, report.remedies, strict=True)
        ],
        "claims": [asdict(judged) for judged in report.claims],
        "readings": [_reading(reading) for reading in report.readings],
        "lm_head": {
            "vocab_size": report.head.vocab_size,
            "baseline": prediction_as_data(report.head.baseline),
            "layer_wise": prediction_as_data(report.head.layer_wise),
        },
        "measured_stages": [
            asdict(stage) | {"error": stage.error, "passes": stage.passes}
            for stage in report.stages
        ],
    }


def _entry(entry: Entry, found: tuple[Remedy, ...]) -> dict[str, Any]:
    light, calibrated = entry.beliefs.speed_of_light, entry.beliefs.calibrated
    return {
        "placement": entry.best.placement,
        "strategy": entry.scenario.placement.strategy,
        "all_reduce": entry.all_reduce or None,
        "claimed": {
            "tokens_per_s": entry.claimed_tokens_per_s,
            "inverse_throughput_s": entry.claimed_inverse_throughput_s,
        },
        "speed_of_light": prediction_as_data(light),
        "uncalibrated": prediction_as_data(entry.beliefs.uncalibrated),
        "predicted": prediction_as_data(calibrated) if calibrated else None,
        "measured": {"tokens_per_s": None, "stage_alone_s": entry.measured_stage_s},
        "warnings": list(warnings_of(entry.scenario, entry.best)),
        "on_chip": on_chip_line(entry.scenario, place(entry.scenario)),
        "remedies": [asdict(remedy) for remedy in found],
    }


def _reading(reading: Reading) -> dict[str, Any]:
    theirs, ours = reading.claim_ratios
    return asdict(reading) | {
        "baseline_claimed_over_predicted": theirs,
        "layer_wise_claimed_over_predicted": ours,
    }

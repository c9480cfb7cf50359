"""A timeline of both of the paper's placements, in one file for ui.perfetto.dev."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from scenarios.paper.experiment import Entry, Report
from sim.plan.scenario import compile_run
from sim.predict import cost_model
from sim.profile import Profile
from sim.simulate import simulate_scenario
from sim.trace import write_atomically
from sim.trace_export import Timeline, export, message_pairs

# From idle, then two steps that follow at once: fill and the steady stream both show.
NUM_STEPS = 3


def write_paper_timeline(report: Report, path: Path) -> str:
    """Simulate both placements again, keeping every op, and write them (`.gz` compresses).

    Returns what was written, in a sentence.
    """
    entries = (report.best_baseline, report.layer_wise)
    exported = export([_timeline(entry, report.profile) for entry in entries])
    write_atomically(path, json.dumps(exported.data, separators=(",", ":")))
    left_out = f"; the latest {exported.num_left_out:,} left out" if exported.num_left_out else ""
    return f"{path}: {exported.num_slices:,} slices{left_out}; open it at https://ui.perfetto.dev"


def _timeline(entry: Entry, profile: Profile | None) -> Timeline:
    scenario = entry.scenario.with_microbatches(entry.best.num_microbatches)
    scenario = replace(scenario, run=replace(scenario.run, num_steps=NUM_STEPS))
    run = compile_run(scenario)
    simulation = simulate_scenario(scenario, run, cost_model(scenario.cluster, profile))
    return Timeline(name=entry.best.placement, rows=simulation.rows, messages=message_pairs(run))

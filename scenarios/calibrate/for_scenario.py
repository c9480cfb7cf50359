"""Measure exactly the op shapes that one scenario needs, and give them to a profile."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from layerwise.calibration.build import read_environment
from layerwise.calibration.data import file_hash
from layerwise.calibration.dataset import (
    Measurement,
    check_sweep,
    gpu_with_ramp,
    read_sweep,
    tables,
)
from layerwise.calibration.particular import points_of, with_points
from layerwise.calibration.points import SweepPoint
from layerwise.calibration.pricing import price_point
from layerwise.scenarios.calibrate.fitting import require_scipy
from layerwise.scenarios.calibrate.here import (
    Progress,
    check_same_machine,
    instruments_here,
    work_folder,
)
from layerwise.scenarios.tables import escape, seconds, signed, table
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.files import load_scenario
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.predict import predict
from layerwise.sim.profile import Profile, load_profile, write_profile
from layerwise.sim.trace import write_atomically

if TYPE_CHECKING:
    from layerwise.scenarios.calibrate.collect import Instruments
    from layerwise.sim.plan.scenario import Scenario

FILE = "particular.jsonl"
# So many shapes are printed: those that were farthest off.
MOST_PRINTED = 20
# Where these differ, another driver or library chose the kernels that the profile knows.
VERSIONS = ("driver", "torch", "cudnn")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a scenario needs, what of it was measured, and what was not."""

    points: tuple[SweepPoint, ...]
    measured: Mapping[str, Measurement]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def measure_for(
    scenario_path: Path,
    base: Path,
    out: Path,
    budget_s: float,
    console: Console,
    progress: Progress,
    instruments: Instruments | None = None,
) -> str:
    """Measure a scenario's ops on this GPU, write the profile with them; returns a sentence.

    Collectives and messages are left to the profile. Raises ProfileMismatchError for a scenario of
    another GPU, FileFormatError when nothing was measured, and what `calibrate_here` raises.
    """
    require_scipy()
    profile, scenario = load_profile(base), load_scenario(scenario_path)
    profile.check_gpu(scenario.cluster)
    scenario = scenario.with_kernels(profile.kernels)
    chosen = instruments or instruments_here(progress)
    folder, environment = work_folder(out), chosen.environment()
    check_same_machine(folder, environment)
    wanted = points_of(scenario, profile)
    write_atomically(folder / "environment.json", json.dumps(environment, indent=1) + "\n")
    environment = read_environment(folder / "environment.json", GPUS[profile.gpu])
    order = list(wanted.points)
    random.Random(len(order)).shuffle(order)
    progress(f"[{budget_s:.0f} s left] {len(order)} shapes of {scenario.name}")
    num_left = chosen.programs([(p.name, p.program) for p in order], folder / FILE, budget_s)
    asked = Asked(
        points=tuple(order),
        measured=_read(folder / FILE, order),
        left_out=wanted.left_out,
        notes=_notes(profile, environment, num_left),
    )
    made = profile_with(profile, scenario, asked, environment, folder)
    print_asked(profile, made, scenario, asked, console)
    write_profile(made, out)
    return (
        f"{out}: {profile.name} with {len(asked.measured)} points of {scenario.name}, digest "
        f"{profile.digest} -> {made.digest}"
    )


def _read(path: Path, points: list[SweepPoint]) -> dict[str, Measurement]:
    found = read_sweep(path) if path.exists() else {}
    check_sweep(points, found)
    if not found:
        raise FileFormatError(f"{path}: nothing was measured; give more seconds with --budget-s")
    return found


def profile_with(
    profile: Profile, scenario: Scenario, asked: Asked, environment: Mapping[str, str], folder: Path
) -> Profile:
    """The profile with these points as its own, which its provenance says."""
    ramp = (profile.machine[name].value for name in ("l2_full_hit", "l2_no_hit"))
    by_kind = tables(
        asked.points,
        asked.measured,
        gpu_with_ramp(profile.gpu, *ramp),
        profile.machine["graph_launch_s"].value,
    )
    where = f"{environment['gpu']}, {environment.get('date_utc', 'undated')[:10]}"
    said = {
        "measured_for": f"{scenario.name}: {len(asked.measured)} of {len(asked.points)} shapes, "
        f"{where}; runs of these shapes no longer validate it",
        "measured_onto": f"{profile.name}, digest {profile.digest}",
    }
    if asked.notes:
        said["measured_for_notes"] = "; ".join(asked.notes)
    made = with_points(
        profile, by_kind, GPUS[profile.gpu], said, {f"for/{FILE}": file_hash(folder / FILE)}
    )
    return replace(made, name=f"{profile.name}, for {scenario.name}")


def _notes(profile: Profile, environment: Mapping[str, str], num_left: int) -> tuple[str, ...]:
    other = [
        f"{key} is {environment[key]} here and {profile.provenance[key]} in the profile"
        for key in VERSIONS
        if key in environment and environment[key] != profile.provenance.get(key, environment[key])
    ]
    anchor = [f"{', '.join(other)}: anchor the profile first (--anchor)"] if other else []
    cut = [f"{num_left} shapes did not fit the budget: run it again"] if num_left else []
    return (*anchor, *cut)


def print_asked(
    old: Profile, new: Profile, scenario: Scenario, asked: Asked, console: Console
) -> None:
    """The shapes that were farthest off, before and now, and what the scenario's prediction does."""
    made = table(
        "Measured for this scenario: predicted over measured", "point", "measured", "before", "now"
    )
    rows: list[tuple[SweepPoint, float, float, float]] = []
    for point in asked.points:
        if point.name not in asked.measured or point.kind not in new.fits:
            continue
        measured_s = asked.measured[point.name].step_s
        before, now = (price_point(p, point)[0] / measured_s - 1 for p in (old, new))
        rows.append((point, measured_s / point.num_repeats, before, now))
    rows.sort(key=lambda row: -abs(math.log1p(row[2])))
    for point, measured_s, before, now in rows[:MOST_PRINTED]:
        made.add_row(point.name, seconds(measured_s), signed(before), signed(now))
    console.print(made)
    if len(rows) > MOST_PRINTED:
        console.print(f"and {len(rows) - MOST_PRINTED} shapes that were nearer.")
    rates = [predict(scenario, each).tokens_per_s for each in (old, new)]
    console.print(f"{escape(scenario.name)}: {rates[0]:,.0f} -> {rates[1]:,.0f} tokens/s.")
    missing = sorted({p.kind for p in asked.points} - new.fits.keys())
    for line in (*(f"kind {kind} is not in the profile" for kind in missing), *asked.left_out):
        console.print(f"Left to the profile: {escape(line)}.")
    for note in asked.notes:
        console.print(f"Note: {escape(note)}.")

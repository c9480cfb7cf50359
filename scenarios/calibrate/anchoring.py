"""Move a shipped profile to this machine: few points, the read curve, two stages, a few layers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console

from layerwise.calibration.anchor import Anchored, MachineShift, Shift, anchored
from layerwise.calibration.build import (
    PROVENANCE_KEYS,
    fit_traces,
    graph_launch,
    read_environment,
    stage_constants,
)
from layerwise.calibration.checks import read_curve
from layerwise.calibration.data import file_hash
from layerwise.calibration.dataset import check_sweep, gpu_with_ramp, read_sweep, tables
from layerwise.calibration.design import anchor_points
from layerwise.calibration.l2_curve import fit_l2_curve
from layerwise.calibration.least_squares import FitError
from layerwise.calibration.selection import fit_layers
from layerwise.scenarios.calibrate.collect import FIT_SCENARIOS, on_gpu
from layerwise.scenarios.calibrate.fit_report import diagnostics_folder
from layerwise.scenarios.calibrate.fitting import require_scipy
from layerwise.scenarios.calibrate.here import (
    Progress,
    check_same_machine,
    instruments_here,
    work_folder,
)
from layerwise.scenarios.tables import escape, percent, signed, table
from layerwise.sim.plan.files import load_scenario
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.profile import Constant, Profile, load_profile, write_profile
from layerwise.sim.trace import write_atomically, write_trace

if TYPE_CHECKING:
    from layerwise.scenarios.calibrate.collect import Instruments
    from layerwise.sim.plan.scenario import Scenario
    from layerwise.sim.trace import Trace

# One tells HBM's rate and the gap in graphs, the other what the host takes to issue.
STAGES = ("h2048-decode", "h2048-eager")
# To see what the shift does to whole layers: of the widths that a fit may use, small to large.
LAYERS = ("h1152.kv9.l1", "h1792.kv14.l3", "h3584.kv28.l1", "h6144.kv48.l1")
# Curve and stages may have used this share, points the next; layers get what is left.
STAGES_SHARE, POINTS_SHARE = 0.4, 0.85


@dataclass(frozen=True, kw_only=True)
class LayerCheck:
    """A whole layer: measured here, and predicted by the old and the new profile."""

    name: str
    measured_s: float
    old_s: float
    new_s: float


def anchor_to(
    base: Path,
    out: Path,
    budget_s: float,
    console: Console,
    progress: Progress,
    instruments: Instruments | None = None,
) -> str:
    """Measure a little, move the profile, print every shift, write it; returns a sentence.

    Raises what `calibrate_here` raises, and FitError when the budget bought too little to tell
    anything: then nothing is written.
    """
    require_scipy()
    profile = load_profile(base)
    chosen = instruments or instruments_here(progress)
    folder = work_folder(out)
    check_same_machine(folder, chosen.environment())
    collect_anchor(folder, profile, budget_s, progress, chosen)
    found, checks, aside = anchor_folder(folder, profile)
    print_anchored(found, checks, aside, console)
    write_profile(found.profile, out)
    _store(found, checks, aside, out)
    return (
        f"{out}: {profile.name} anchored to this machine, digest {profile.digest} -> "
        f"{found.profile.digest}; shifts in {diagnostics_folder(out)}"
    )


def collect_anchor(
    folder: Path, profile: Profile, budget_s: float, progress: Progress, chosen: Instruments
) -> None:
    """Measure what an anchor needs, in the order of what it can least do without; resumable."""
    ends_s = time.monotonic() + budget_s

    def left_s(share: float = 1.0) -> float:
        return ends_s - (1 - share) * budget_s - time.monotonic()

    environment = chosen.environment()
    write_atomically(folder / "environment.json", json.dumps(environment, indent=1) + "\n")
    read_environment(folder / "environment.json", GPUS[profile.gpu])
    curve = folder / "read_curve.json"
    if not curve.exists():
        progress(f"[{left_s():.0f} s left] read curve")
        write_atomically(curve, json.dumps(chosen.curve("read-curve")) + "\n")
    stages = [replace(load_scenario(FIT_SCENARIOS / f"{name}.toml"), name=name) for name in STAGES]
    _measure(stages, chosen.stage, profile, folder, lambda: left_s(STAGES_SHARE), progress)
    points = anchor_points(profile.kernels, profile.fits)
    progress(f"[{left_s():.0f} s left] {len(points)} points")
    chosen.programs(
        [(p.name, p.program) for p in points], folder / "anchor.jsonl", left_s(POINTS_SHARE)
    )
    layers = [layer for layer in fit_layers() if layer.name.startswith(LAYERS)]
    _measure(layers, chosen.layer, profile, folder / "layers", left_s, progress)


def _measure(
    scenarios: Iterable[Scenario],
    measure: Callable[[Scenario], Trace],
    profile: Profile,
    folder: Path,
    left_s: Callable[[], float],
    progress: Progress,
) -> None:
    for scenario in scenarios:
        path = folder / f"{scenario.name}.jsonl"
        if path.exists() or left_s() <= 0:
            continue
        progress(f"[{left_s():.0f} s left] {scenario.name}")
        trace = measure(on_gpu(scenario, profile.gpu).with_kernels(profile.kernels))
        write_trace(replace(trace, purpose="fit"), path)


def anchor_folder(
    folder: Path, profile: Profile
) -> tuple[Anchored, list[LayerCheck], tuple[str, ...]]:
    """What the measurements in a folder make of a profile; also what was set aside.

    Raises FitError when the folder has too little, FileFormatError for a bad file.
    """
    spec = GPUS[profile.gpu]
    environment = read_environment(folder / "environment.json", spec)
    where = f"{environment['gpu']}, {environment.get('date_utc', 'undated')[:10]}, anchor"
    aside: list[str] = []

    def put_aside(place: str, why: str) -> None:
        aside.append(f"{place}: {why}")

    points = {point.name: point for point in anchor_points(profile.kernels, profile.fits)}
    measured = read_sweep(folder / "anchor.jsonl", put_aside)
    check_sweep(points.values(), measured)
    traces = _traces(folder, profile, environment, put_aside)
    machine = _machine(folder, spec.l2_bytes, [t for _, t in traces if t.name in STAGES], where)
    machine["graph_launch_s"] = graph_launch(list(points.values()), measured, where)
    ramp = (profile.machine[name].value for name in ("l2_full_hit", "l2_no_hit"))
    by_kind = tables(
        points.values(),
        measured,
        gpu_with_ramp(profile.gpu, *ramp),
        machine["graph_launch_s"].value,
    )
    here = {key: environment[key] for key in PROVENANCE_KEYS if key in environment}
    found = anchored(
        profile,
        by_kind,
        machine,
        spec,
        here | ({"quarantined": "; ".join(aside)} if aside else {}),
        {p.name: file_hash(p) for p in sorted(folder.rglob("*.json*")) if p.is_file()},
    )
    checks = [
        _check(trace, profile, found.profile)
        for path, trace in traces
        if path.parent.name == "layers"
    ]
    return found, checks, tuple(aside)


def _traces(
    folder: Path,
    profile: Profile,
    environment: dict[str, str],
    put_aside: Callable[[str, str], None],
) -> list[tuple[Path, Trace]]:
    paths = [folder / f"{name}.jsonl" for name in STAGES]
    if missing := [path.name for path in paths if not path.exists()]:
        raise FitError(f"{folder}: {missing} were not measured; run it again with more --budget-s")
    return fit_traces(folder, profile.kernels, profile.gpu, environment, put_aside)


def _machine(folder: Path, l2_bytes: int, traces: list[Trace], where: str) -> dict[str, Constant]:
    curve = fit_l2_curve(read_curve(folder / "read_curve.json"), l2_bytes, f"{where}: reads")
    return {"read_hbm_bytes_per_s": curve["read_hbm_bytes_per_s"], **stage_constants(traces, where)}


def _check(trace: Trace, old: Profile, new: Profile) -> LayerCheck:
    from layerwise.scenarios.accuracy.predictions import layer_seconds

    (layer,) = [layer for layer in fit_layers() if layer.name == trace.name]
    layer = layer.with_kernels(old.kernels)
    return LayerCheck(
        name=trace.name,
        measured_s=median(trace.untraced_step_s),
        old_s=layer_seconds(old, layer),
        new_s=layer_seconds(new, layer),
    )


def print_anchored(
    found: Anchored, checks: list[LayerCheck], aside: tuple[str, ...], console: Console
) -> None:
    """Every shift with its standard error, the machine's constants, whole layers before and after."""
    made = table(
        "Shift of each kind: time here over time there, less HBM's own",
        "kind",
        "points",
        "measured",
        "+- s.e.",
        "applied",
        "significant",
    )
    for shift in (found.hbm, *found.kinds):
        made.add_row(*_shift_cells(shift))
    console.print(made)
    made = table("Constants of the machine", "constant", "old", "new", "+- s.e.", "significant")
    for one in found.machine:
        made.add_row(*_machine_cells(one))
    console.print(made)
    if checks:
        made = table("Whole layers, predicted over measured", "layer", "old", "new")
        for check in checks:
            made.add_row(
                check.name,
                signed(check.old_s / check.measured_s - 1),
                signed(check.new_s / check.measured_s - 1),
            )
        console.print(made)
        console.print(f"Median |error| of {len(checks)} whole layers: {layers_sentence(checks)}.")
    for line in aside:
        console.print(f"Set aside: {escape(line)}")


def layers_sentence(checks: list[LayerCheck]) -> str:
    """The median error of whole layers, before and after."""
    old = median(abs(c.old_s / c.measured_s - 1) for c in checks)
    new = median(abs(c.new_s / c.measured_s - 1) for c in checks)
    return f"{percent(old)} -> {percent(new)}"


def _shift_cells(shift: Shift) -> tuple[str, ...]:
    if not shift.num_points:
        return shift.name, "0", "-", "-", "-", "not measured"
    return (
        shift.name,
        str(shift.num_points),
        signed(shift.log_shift),
        percent(shift.standard_error),
        signed(shift.applied),
        "yes" if shift.is_significant else "no",
    )


def _machine_cells(one: MachineShift) -> tuple[str, ...]:
    return (
        one.name,
        f"{one.old.value:.4g}",
        f"{one.new.value:.4g}",
        f"{one.standard_error:.2g}",
        "yes" if one.is_significant else "no",
    )


def _store(found: Anchored, checks: list[LayerCheck], aside: tuple[str, ...], out: Path) -> None:
    data = {
        "format": "layerwise-anchor",
        "version": 1,
        "shifts": [
            {
                "kind": s.name,
                "num_points": s.num_points,
                "log_shift": s.log_shift,
                "standard_error": s.standard_error,
                "applied": s.applied,
                "significant": s.is_significant,
            }
            for s in (found.hbm, *found.kinds)
        ],
        "machine": [
            {
                "name": m.name,
                "old": m.old.value,
                "new": m.new.value,
                "standard_error": m.standard_error,
                "significant": m.is_significant,
            }
            for m in found.machine
        ],
        "layers": [
            {"name": c.name, "measured_s": c.measured_s, "old_s": c.old_s, "new_s": c.new_s}
            for c in checks
        ],
        "quarantined": list(aside),
    }
    path = diagnostics_folder(out) / "anchor.json"
    write_atomically(path, json.dumps(data, indent=1) + "\n")

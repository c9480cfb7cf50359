"""A folder of measurements -> a profile: every fit, the machine's constants, provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median

from layerwise.calibration.bootstrap import intercept_error, resampled_constant
from layerwise.calibration.checks import check_apart, check_trace, read_curve, without_throttled
from layerwise.calibration.data import file_hash, overlap_path, windows_path
from layerwise.calibration.dataset import (
    Measurement,
    Quarantine,
    Table,
    check_sweep,
    gpu_with_ramp,
    graph_launch_seconds,
    graph_launch_steps,
    read_sweep,
    tables,
)
from layerwise.calibration.denser import denser
from layerwise.calibration.design import FIT_POINTS, every_point
from layerwise.calibration.edges import EDGES_FILE, fitted_edges, not_fitted
from layerwise.calibration.fit import fit_kind
from layerwise.calibration.interleaving import fit_interleaving, fit_step_factor
from layerwise.calibration.l2_curve import fit_l2_curve
from layerwise.calibration.least_squares import FitError, significant
from layerwise.calibration.overlap import fit_overlap
from layerwise.calibration.points import SweepPoint
from layerwise.calibration.power import POWER_FILE, fit_power
from layerwise.calibration.sweeps import flash_random
from layerwise.calibration.windows import fit_set_aside
from layerwise.sim.cost.kinds import KINDS, OPTIONAL_KINDS
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.hardware import GPUS, GpuSpec
from layerwise.sim.plan.reading import read_json
from layerwise.sim.profile import Constant, OpFit, Profile, TransferFit, no_interleaving
from layerwise.sim.trace import Trace, as_data, read_trace

PROVENANCE_KEYS = ("gpu", "driver", "torch", "cuda", "cudnn", "nccl", "triton", "date_utc")
# Context, libraries and graphs of one process; the engine's readings are below it.
RESERVED_BYTES = 2 * 10**9
# Files of points that are fitted, and which; one of them at least must be there. `designed` holds
# points of all, in the order in which a budget buys most.
FITTED: dict[str, Callable[[KernelChoice], Sequence[SweepPoint]]] = {
    **{f"{task}.jsonl": made for task, made in FIT_POINTS.items()},
    "designed.jsonl": every_point,
}
# Sweeps whose shapes were drawn at random: they tell how wide intervals are.
DRAWN = (denser, flash_random, fitted_edges)
# Every other .jsonl is a trace.
POINTS = (
    *FITTED,
    POWER_FILE,
    "sustained.jsonl",
    "repeats.jsonl",
    "unseen.jsonl",
    "anchor.jsonl",
    "failed.jsonl",
)
Progress = Callable[[str, OpFit | FitError], None]
# Points that a machine has no room for are missing from any sweep; this share may be.
WHOLE = 0.97


def build_profile(
    folder: Path,
    *,
    name: str,
    gpu: str,
    kernels: KernelChoice,
    transfers: dict[str, TransferFit],
    progress: Progress = lambda _kind, _outcome: None,
    quarantine: Quarantine = lambda _where, _why: None,
    joined: Callable[[dict[str, Table]], None] = lambda _by_kind: None,
) -> Profile:
    """Fit everything one GPU can show to the measurements in `folder`.

    Expects read_curve.json, environment.json, points in one or more files of FITTED and traces of
    whole stages whose purpose is "fit"; takes whole layers in layers/, whole models in models/ and
    power.jsonl where they are, and what windows and messages cost from their own committed files.
    A sweep that was cut short is fitted as far as it goes, and says so in `provenance`: its
    intervals are as wide as its held-out errors and distances make them, and shapes outside its
    ranges are flagged. `progress` hears of every
    kind of op: its fit, or why there is none; `quarantine` of what was left out; `joined` gets the
    tables that are fitted. Raises FitError,
    naming all that is missing, or FileFormatError; then no profile exists.
    """
    spec = GPUS[gpu]
    environment = read_environment(folder / "environment.json", spec)
    source = f"{environment['gpu']}, {environment.get('date_utc', 'undated')[:10]}"
    aside: list[str] = []

    def put_aside(where: str, why: str) -> None:
        aside.append(f"{where}: {why}")
        quarantine(where, why)

    traces = [trace for _, trace in fit_traces(folder, kernels, gpu, environment, put_aside)]
    machine = machine_of(folder, spec, traces, source)
    points, measured = read_points(folder, kernels, put_aside)
    machine["graph_launch_s"] = graph_launch(points, measured, f"{source}: graph_launch points")
    launch_s = machine["graph_launch_s"].value
    l2 = gpu_with_ramp(gpu, machine["l2_full_hit"].value, machine["l2_no_hit"].value)
    by_kind = tables(points, measured, l2, launch_s)
    joined(by_kind)
    drawn = {point.name for made in DRAWN for point in made(kernels)}
    fits = _fit_kinds(by_kind, spec, f"{source}: sweep", drawn, progress)
    if "matmul.skinny" not in fits:
        kernels = replace(kernels, small_matmul="cublas")
    alone = Profile(
        name=name,
        gpu=gpu,
        kernels=kernels,
        fits=fits,
        transfers=transfers,
        machine=machine | no_interleaving(machine),
        provenance={},
    )
    machine |= fit_interleaving(alone, traces, f"{source}: decode steps kept for fitting")
    whole = replace(alone, machine=machine)
    power = None
    if (folder / POWER_FILE).exists():
        power = fit_power(
            folder / POWER_FILE, whole, kernels, f"{source}: {POWER_FILE}, models", traces
        )
    factor = fit_step_factor(replace(whole, power=power), traces)
    return Profile(
        name=name,
        gpu=gpu,
        kernels=kernels,
        fits=fits,
        transfers=transfers,
        machine=machine,
        provenance={k: str(environment[k]) for k in PROVENANCE_KEYS if k in environment}
        | _clocks(traces)
        | _partial(points, measured)
        | ({"quarantined": "; ".join(aside)} if aside else {}),
        reserved_bytes=RESERVED_BYTES,
        step_factor=factor,
        data_hashes={
            str(path.relative_to(folder)): file_hash(path)
            for path in sorted(
                path
                for place in ("*.json*", "layers/*.jsonl*", "models/*.jsonl*")
                for path in folder.glob(place)
            )
        },
        power=power,
    )


def with_kinds(folder: Path, profile: Profile, kernels: KernelChoice) -> Profile:
    """Return the profile with a fit of each kind that it lacks and the folder's points tell.

    Everything else in it stays as it is. Raises FitError where there is no such kind.
    """
    spec, machine = GPUS[profile.gpu], profile.machine
    environment = read_environment(folder / "environment.json", spec)
    source = f"{environment['gpu']}, {environment.get('date_utc', 'undated')[:10]}: {folder.name}"
    points, measured = read_points(folder, kernels)
    l2 = gpu_with_ramp(profile.gpu, machine["l2_full_hit"].value, machine["l2_no_hit"].value)
    by_kind = tables(points, measured, l2, machine["graph_launch_s"].value)
    drawn = {point.name for made in DRAWN for point in made(kernels)}
    lacking = {kind: table for kind, table in by_kind.items() if kind not in profile.fits}
    if not lacking:
        raise FitError(
            f"{folder} has points of {sorted(by_kind)} and profile {profile.name!r} has their fits; "
            "give points of another kind, or fit it anew (--fit without --profile)"
        )
    fits = {kind: fit_kind(table, spec, source, drawn) for kind, table in lacking.items()}
    hashes = {
        f"{folder.name}/{path.name}": file_hash(path) for path in sorted(folder.glob("*.json*"))
    }
    return replace(profile, fits=profile.fits | fits, data_hashes=profile.data_hashes | hashes)


def read_points(
    folder: Path, kernels: KernelChoice, quarantine: Quarantine = lambda _where, _why: None
) -> tuple[list[SweepPoint], dict[str, Measurement]]:
    """The points that were measured to be fitted, and their measurements.

    Raises FileFormatError for a point in two files, of another sweep, or kept for scoring.
    """
    points: dict[str, SweepPoint] = {}
    measured: dict[str, Measurement] = {}
    paths = [folder / name for name in FITTED if (folder / name).exists()]
    for path in paths or [folder / "sweep.jsonl"]:
        found = read_sweep(path, quarantine)
        if twice := sorted(found.keys() & measured.keys()):
            raise FileFormatError(
                f"{path}: {len(twice)} points are in another file of {folder} too, {twice[0]!r} "
                "first; keep one measurement of each"
            )
        points |= {point.name: point for point in FITTED[path.name](kernels)}
        aside = not_fitted(found) if path.name == EDGES_FILE else frozenset[str]()
        measured |= {name: one for name, one in found.items() if name not in aside}
    check_sweep(points.values(), measured)
    check_apart((points[name] for name in measured), kernels)
    return list(points.values()), measured


def _partial(points: Sequence[SweepPoint], measured: Mapping[str, Measurement]) -> dict[str, str]:
    """What a reader must know of a sweep that was cut short: nothing where it is as good as whole."""
    if len(measured) >= WHOLE * len(points):
        return {}
    return {"partial": f"{len(measured):,} of {len(points):,} points measured"}


def _clocks(traces: list[Trace]) -> dict[str, str]:
    """The SM clocks read around the stages, and whether anything held them down."""
    keys = ("sm_clock_mhz_before", "sm_clock_mhz_after")
    clocks = sorted({int(t.environment[k]) for t in traces for k in keys if k in t.environment})
    if not clocks:
        return {}
    reasons = {t.environment.get("throttled_after", "no") for t in traces} - {"no"}
    held = f", {' and '.join(sorted(reasons))} in prefill stages" if reasons else ""
    return {"sm_clock_mhz": f"{clocks[0]} to {clocks[-1]}{held}"}


def read_environment(path: Path, spec: GpuSpec) -> dict[str, str]:
    """Where the folder was measured; refused when that was another kind of GPU."""
    environment = read_json(path)
    for key, expected in (("num_sms", spec.num_sms), ("l2_bytes", spec.l2_bytes)):
        if environment.get(key) != str(expected):
            raise FileFormatError(
                f"{path}: {key}={environment.get(key)!r} and a {spec.name} has {expected}; "
                "fit with --gpu as the GPU that was measured"
            )
    return environment


def fit_traces(
    folder: Path,
    kernels: KernelChoice,
    gpu: str,
    environment: Mapping[str, str],
    quarantine: Quarantine = lambda _where, _why: None,
) -> list[tuple[Path, Trace]]:
    """Whole stages and layers to fit. Raises FitError for one that no fit may see."""
    stages = [path for path in sorted(folder.glob("*.jsonl")) if path.name not in POINTS]
    apart = (sorted(folder.glob(f"{name}/*.jsonl*")) for name in ("layers", "models"))
    paths = (*stages, *chain.from_iterable(apart))
    found = [(path, read_trace(path)) for path in paths]
    wrong = [trace.name for _, trace in found if trace.purpose != "fit"]
    if wrong:
        raise FitError(f"{wrong}: not measured for fitting; keep validation runs out of the fit")
    # What was no choice yet when a trace was written was what is the default now. Both matmuls are
    # fitted, each by its own points: either tells what a kernel pays among others.
    default, either = as_data(KernelChoice()), {"small_matmul": kernels.small_matmul}
    other = [
        trace.name
        for _, trace in found
        if not (ran := trace.scenario.get("kernels")) or default | ran | either != as_data(kernels)
    ]
    if other:
        raise FitError(f"{other}: measured with other kernels than {kernels}; measure again")
    for path, trace in found:
        check_trace(path, trace, gpu, environment)
    return without_throttled(found, quarantine)


def _fit_kinds(
    by_kind: dict[str, Table], spec: GpuSpec, source: str, drawn: set[str], progress: Progress
) -> dict[str, OpFit]:
    """Every kind's fit. Tries them all before it raises a FitError that names each failure."""
    fits: dict[str, OpFit] = {}
    failures: list[str] = []
    for kind in sorted(KINDS.keys() - (OPTIONAL_KINDS - by_kind.keys())):
        try:
            if kind not in by_kind:
                raise FitError(f"{kind}: the sweep has no points; measure them")
            outcome = fits[kind] = fit_kind(by_kind[kind], spec, source, drawn)
        except FitError as error:
            outcome = error
            failures.append(str(error))
        progress(kind, outcome)
    if failures:
        raise FitError("; ".join(failures))
    return fits


def machine_of(
    folder: Path, spec: GpuSpec, traces: Sequence[Trace], where: str
) -> dict[str, Constant]:
    """The constants of the machine that reads and stages tell, errors by bootstrap over runs."""
    source = f"{where}: read_curve.json"
    machine = fit_l2_curve(read_curve(folder / "read_curve.json"), spec.l2_bytes, source)
    machine["set_aside_hbm_slowdown"] = fit_set_aside(
        windows_path(spec.name), spec.l2_bytes, f"traces/windows-{spec.name}: HBM-bound cases"
    )
    machine |= fit_overlap(overlap_path(), "traces/two-h200: overlap.json")
    return machine | stage_constants(traces, where)


def stage_constants(traces: Sequence[Trace], where: str) -> dict[str, Constant]:
    """HBM's best read, the gap between kernels of a graph, the host's time to issue an op."""
    rates = [
        [t.measured["read_bandwidth_bytes_per_s"]]
        for t in traces
        if "read_bandwidth_bytes_per_s" in t.measured
    ]
    if not rates:
        raise FitError("no stage trace carries a read bandwidth; measure with it")
    gaps = [_gaps(t) for t in traces if t.scenario["run"]["launch"] == "graph"]
    if not any(gaps):
        raise FitError("no stage was traced in a graph; its gaps are needed")
    eager = [_issues(t) for t in traces if t.scenario["run"]["launch"] == "eager"]
    if not eager:
        raise FitError("no stage was run eagerly; the host's issue time is needed")
    return {
        "hbm_bytes_per_s": resampled_constant(
            rates,
            max,
            "bytes/s",
            f"{where}: read_curve.json: best read over rotating 2 GiB",
            "reads of GiB",
        ),
        "graph_gap_s": resampled_constant(
            gaps,
            _positive_median,
            "s",
            f"{where}: median time between kernels of consecutive ops in a graph",
            "graphs",
        ),
        "eager_issue_s": resampled_constant(
            eager,
            median,
            "s",
            f"{where}: eager step time over its ops, where the host is the limit",
            "eager steps that the host paces",
        ),
    }


def graph_launch(
    points: Sequence[SweepPoint], measured: Mapping[str, Measurement], source: str
) -> Constant:
    """What every replay of a graph costs the GPU, with the error of leaving out each point."""
    repeats, seconds = graph_launch_steps(points, measured)
    return Constant(
        value=significant(graph_launch_seconds(points, measured)),
        standard_error=significant(intercept_error(repeats, seconds)),
        unit="s",
        source=source,
        num_points=len(repeats),
        valid=f"graphs of {min(repeats)} to {max(repeats)} ops",
    )


def _positive_median(gaps: Sequence[float]) -> float:
    return max(0.0, median(gaps))


def _gaps(trace: Trace) -> list[float]:
    rows = sorted(
        (r for r in trace.rows if not r.replaced), key=lambda r: (r.repeat, r.step, r.start_s)
    )
    return [
        after.start_s - before.end_s
        for before, after in zip(rows, rows[1:], strict=False)
        if (before.repeat, before.step) == (after.repeat, after.step)
    ]


def _issues(trace: Trace) -> list[float]:
    """Each step's time over its ops. The median of all is that of the medians: runs are one."""
    num_ops = len({(r.step, r.op) for r in trace.rows if not r.replaced})
    if not num_ops:
        raise FitError(f"{trace.name}: has no rows of ops to divide its time by; measure again")
    return [seconds / num_ops for seconds in trace.untraced_step_s]

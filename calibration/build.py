"""A folder of measurements -> a profile: every fit, the machine's constants, provenance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

from calibration.dataset import gpu_with_ramp, graph_launch_seconds, read_sweep, tables
from calibration.fit import FitError, fit_kind
from calibration.interleaving import fit_interleaving, no_interleaving
from calibration.l2_curve import fit_l2_curve
from calibration.sweeps import sweep
from sim.cost.shapes import FEATURES
from sim.plan.compile import KernelChoice
from sim.plan.hardware import GPUS, GpuSpec
from sim.profile import Constant, Profile, TransferFit
from sim.trace import Trace, read_trace

PROVENANCE_KEYS = ("gpu", "driver", "torch", "cuda", "cudnn", "nccl", "triton", "date_utc")


def build_profile(
    folder: Path,
    *,
    name: str,
    gpu: str,
    kernels: KernelChoice,
    transfers: dict[str, TransferFit],
    progress: Callable[[str], None] = print,
) -> Profile:
    """Fit everything one GPU can show to the measurements in `folder`.

    Expects sweep.jsonl, read_curve.json, environment.json and traces of whole stages whose
    purpose is "fit". Raises FitError or FileFormatError; then no profile exists.
    """
    spec = GPUS[gpu]
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    source = f"{environment.get('gpu', gpu)}, {environment.get('date_utc', 'undated')[:10]}"
    traces = _fit_traces(folder)
    machine = _machine(folder, spec, traces, f"{source}: read_curve.json")
    points = sweep(kernels)
    seconds = read_sweep(folder / "sweep.jsonl")
    launch_s = graph_launch_seconds(points, seconds)
    machine["graph_launch_s"] = _constant(launch_s, "s", f"{source}: sweep.jsonl, graph_launch")
    l2 = gpu_with_ramp(gpu, machine["l2_full_hit"].value, machine["l2_no_hit"].value)
    fits = {}
    for kind, table in tables(points, seconds, l2, launch_s).items():
        fits[kind] = fit_kind(table, spec, f"{source}: sweep.jsonl")
        progress(
            f"{kind:26s} {len(table):5d} points, form alone {fits[kind].form_median_error:6.1%}, "
            f"held out: median {fits[kind].held_out_median_error:6.1%}, "
            f"p90 {fits[kind].held_out_p90_error:6.1%}"
        )
    missing = FEATURES.keys() - fits.keys()
    if missing:
        raise FitError(f"the sweep has no points of {sorted(missing)}; measure them")
    alone = Profile(
        name=name, gpu=gpu, kernels=kernels, fits=fits, transfers=transfers,
        machine=machine | no_interleaving(), provenance={},
    )  # fmt: skip
    machine |= fit_interleaving(alone, traces, f"{source}: decode stages kept for fitting")
    return Profile(
        name=name, gpu=gpu, kernels=kernels, fits=fits, transfers=transfers, machine=machine,
        provenance={k: str(environment[k]) for k in PROVENANCE_KEYS if k in environment},
        reserved_bytes=2 * 10**9,
        data_hashes={p.name: file_hash(p) for p in sorted(folder.glob("*.json*"))},
    )  # fmt: skip


def file_hash(path: Path) -> str:
    """Short SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _fit_traces(folder: Path) -> list[Trace]:
    traces = [read_trace(path) for path in sorted(folder.glob("*.jsonl"))
              if path.name != "sweep.jsonl"]  # fmt: skip
    wrong = [trace.name for trace in traces if trace.purpose != "fit"]
    if wrong:
        raise FitError(f"{wrong}: not measured for fitting; keep validation runs out of the fit")
    return traces


def _machine(
    folder: Path, spec: GpuSpec, traces: list[Trace], source: str
) -> dict[str, Constant]:
    curve = json.loads((folder / "read_curve.json").read_text(encoding="utf-8"))
    machine = fit_l2_curve([(int(b), float(s)) for b, s in curve], spec.l2_bytes, source)
    rates = [t.measured["read_bandwidth_bytes_per_s"] for t in traces
             if "read_bandwidth_bytes_per_s" in t.measured]  # fmt: skip
    if not rates:
        raise FitError("no stage trace carries a read bandwidth; measure with it")
    machine["hbm_bytes_per_s"] = _constant(
        max(rates), "bytes/s", f"{source}: best read over rotating 2 GiB"
    )
    machine["graph_gap_s"] = _constant(
        _gap([t for t in traces if t.scenario["run"]["launch"] == "graph"]), "s",
        f"{source}: median time between kernels of consecutive ops in a graph",
    )  # fmt: skip
    machine["eager_issue_s"] = _constant(
        _issue([t for t in traces if t.scenario["run"]["launch"] == "eager"]), "s",
        f"{source}: eager step time over its ops, where the host is the limit",
    )  # fmt: skip
    return machine


def _gap(traces: list[Trace]) -> float:
    gaps = []
    for trace in traces:
        rows = sorted(
            (r for r in trace.rows if not r.replaced), key=lambda r: (r.repeat, r.step, r.start_s)
        )
        for before, after in zip(rows, rows[1:], strict=False):
            if (before.repeat, before.step) == (after.repeat, after.step):
                gaps.append(after.start_s - before.end_s)
    if not gaps:
        raise FitError("no stage was traced in a graph; its gaps are needed")
    return max(0.0, median(gaps))


def _issue(traces: list[Trace]) -> float:
    if not traces:
        raise FitError("no stage was run eagerly; the host's issue time is needed")
    times = []
    for trace in traces:
        ops = {(r.step, r.op) for r in trace.rows if not r.replaced}
        times.append(median(trace.untraced_step_s) / len(ops))
    return median(times)


def _constant(value: float, unit: str, source: str) -> Constant:
    return Constant(value=float(f"{value:.4g}"), standard_error=0.0, unit=unit, source=source)

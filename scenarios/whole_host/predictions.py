"""What a host's runs and links are predicted to take, written to disk before anything is measured.

A file holds, by run, what decides its time (`asked`), so that a prediction is never laid beside
another run than it was made for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from layerwise.calibration.data import FOLDER, profile_path, transfers_path
from layerwise.calibration.transfers import read_transfers, without_in_switch_reduction
from layerwise.hw.links.series import MIB, score_sizes_between, sizes_between
from layerwise.scenarios.predict.alone import PredictedRun, run_plan
from layerwise.scenarios.predict.committed import read_committed
from layerwise.scenarios.whole_host.asked import HostRun, asked_of
from layerwise.scenarios.whole_host.op_times import op_medians
from layerwise.sim.plan.errors import FileFormatError, SpecError, shown
from layerwise.sim.profile import Profile, load_profile
from layerwise.sim.resolve import best_belief, resolve
from layerwise.sim.trace import write_atomically

FORMAT, VERSION = "layerwise-host-prediction", 1
LARGEST_BYTES = 512 * MIB
# Two H200s of one node, measured with this engine: what other hosts' links are guessed from.
MEASURED_PAIR = "h200"


@dataclass(frozen=True, kw_only=True)
class RunPrediction:
    """One run. `half_width`: of the step's 90 % interval, as ln(measured / predicted).

    `asked`: what decides its time. `ops`: median seconds by kind of op, as `op_times` has them.
    """

    asked: dict[str, Any]
    step_s: float
    speed_of_light_s: float
    uncalibrated_s: float
    half_width: float = 0.0
    ops: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True)
class HostPrediction:
    """Everything predicted for one host. `links`: transfer -> payload in bytes -> seconds.

    `profile_digest`: of the shipped profile with the `transfers` named; `created`: UTC, ISO 8601.
    """

    gpu: str
    num_gpus: int
    profile_digest: str
    transfers: str
    created: str
    runs: dict[str, RunPrediction]
    links: dict[str, dict[str, float]]


def committed_path(gpu: str, num_gpus: int) -> Path:
    """Where the prediction of a host is committed; it may not exist."""
    return FOLDER / "predictions" / f"host-{num_gpus}-{gpu}.json"


def host_profile(gpu: str) -> Profile:
    """The shipped profile with the collectives of a host whose NVLink multicast is off.

    The shipped tables of 4 and 8 GPUs come from a host where switches reduce.
    """
    profile = load_profile(profile_path(gpu))
    own, public = read_transfers(transfers_path(MEASURED_PAIR)), read_transfers(transfers_path())
    moved = without_in_switch_reduction(own, public)
    return replace(profile, transfers=profile.transfers | moved)


def predict_host(runs: Sequence[HostRun], profile: Profile | None) -> HostPrediction:
    """Predict every run; without a profile (the quick scale) uncalibrated, and no links."""
    first = runs[0].scenario.cluster
    return HostPrediction(
        gpu=first.gpu.name,
        num_gpus=first.num_gpus,
        profile_digest=profile.digest if profile else "",
        transfers="two H200s and public tables, moved: calibration.transfers"
        if profile
        else "uncalibrated",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        runs={run.name: predict_one(run, profile) for run in runs},
        links=_links(profile, first.num_gpus) if profile else {},
    )


def predict_one(run: HostRun, profile: Profile | None) -> RunPrediction:
    """One run under each belief, and its ops under the best one there is."""
    plan = resolve(run.scenario, profile, best_belief(profile))
    best, light = run_plan(plan), run_plan(plan.under("speed_of_light"))
    middle = run_plan(plan.under("uncalibrated")) if profile else best
    return RunPrediction(
        asked=asked_of(run.scenario),
        step_s=_short(best.step_s),
        speed_of_light_s=_short(light.step_s),
        uncalibrated_s=_short(middle.step_s),
        half_width=_short(best.uncertainty.half_width if best.uncertainty else 0.0),
        ops={kind: _short(seconds) for kind, seconds in predicted_ops(best).items()},
    )


def predicted_ops(predicted: PredictedRun) -> dict[str, float]:
    """Of the steps that a measurement repeats."""
    steps = set(predicted.repeated_steps)
    rows = [row for row in predicted.rows if row.step in steps]
    return op_medians(list(predicted.run), rows)


def write_prediction(prediction: HostPrediction, path: Path) -> None:
    """Write it, and have it on the disk before this returns.

    Raises FileFormatError when the file exists: what was predicted before a run is not predicted
    again after it.
    """
    if path.exists():
        raise FileFormatError(
            f"{path}: exists; a committed prediction is never overwritten, choose another file"
        )
    data: dict[str, Any] = {"format": FORMAT, "version": VERSION} | asdict(prediction)
    runs = ",\n".join(f"  {json.dumps(n)}: {json.dumps(r)}" for n, r in data.pop("runs").items())
    head = json.dumps(data, indent=1).removesuffix("\n}")
    write_atomically(path, f'{head},\n "runs": {{\n{runs}\n }}\n}}\n')
    _flush(path)


def keep_on_disk(source: Path, path: Path) -> None:
    """The same bytes elsewhere, on the disk before this returns."""
    write_atomically(path, source.read_text(encoding="utf-8"))
    _flush(path)


def read_prediction(path: Path) -> HostPrediction | None:
    """What was written, or None where nothing was. Raises FileFormatError or SpecError."""
    return read_committed(path, HostPrediction, FORMAT, VERSION)


def check_runs(prediction: HostPrediction, runs: Iterable[HostRun], path: Path) -> None:
    """Raises SpecError for a run that the prediction has not, or has of something else."""
    for run in runs:
        predicted, asked = prediction.runs.get(run.name), asked_of(run.scenario)
        if predicted is None:
            raise SpecError(
                "runs", run.name, "was not predicted", "predict to another file", str(path)
            )
        for key, value in asked.items():
            if (before := predicted.asked.get(key)) != value:
                raise SpecError(
                    f"runs.{run.name}.{key}",
                    before,
                    f"was predicted and {shown(value)} would run",
                    "predict to another file, or run the version that predicted",
                    str(path),
                )


def _links(profile: Profile, num_gpus: int) -> dict[str, dict[str, float]]:
    """Every transfer inside a node of so many GPUs, at every payload that is timed."""
    sizes = sorted({*sizes_between(512, LARGEST_BYTES), *score_sizes_between(512, LARGEST_BYTES)})
    inside = {
        name: fit
        for name, fit in profile.transfers.items()
        if name == "send.nvlink4"
        or (not name.startswith("send.") and int(name.rpartition(".")[2]) <= num_gpus)
    }
    return {
        name: {str(size): _short(fit.seconds(size)) for size in sizes}
        for name, fit in sorted(inside.items())
    }


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(value: float) -> float:
    """Six digits: more than anything here is known to."""
    return float(f"{value:.6g}")

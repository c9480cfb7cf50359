"""Predictions of what is measured and never fitted, as it is measured; committed ahead of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from layerwise.calibration.power_points import unseen_sustained
from layerwise.calibration.pricing import point_seconds, price_sustained
from layerwise.calibration.selection import engine_layers, two_gpu_runs, validation_layers
from layerwise.calibration.unseen import unseen
from layerwise.calibration.whole_models import validation_models
from layerwise.scenarios.calibrate.collect import GPU_KERNELS, on_gpu
from layerwise.scenarios.predict.alone import PredictedRun, predict_run
from layerwise.scenarios.predict.committed import read_committed, write_committed
from layerwise.sim.cost.forms import pass_seconds
from layerwise.sim.plan.errors import ProfileMismatchError
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.profile import Profile

FORMAT, VERSION = "layerwise-unseen", 1


@dataclass(frozen=True, kw_only=True)
class Held:
    """One prediction of sustained work: seconds, its half-width as ln, and at which clock and power."""

    step_s: float
    half_width: float
    clock_share: float
    watts: float
    energy_per_step_j: float


@dataclass(frozen=True, kw_only=True)
class Committed:
    """Predictions of everything unseen, made at one time with one profile; seconds by name.

    `layers`: stages and runs of several GPUs too. `sustained`: points in sustained work, and
    `models`: whole models; both optional, older files read as without.
    """

    profile_digest: str
    created: str
    points: dict[str, float] = field(default_factory=dict[str, float])
    layers: dict[str, float] = field(default_factory=dict[str, float])
    read_curve: dict[str, float] = field(default_factory=dict[str, float])
    sustained: dict[str, Held] = field(default_factory=dict[str, Held])
    models: dict[str, Held] = field(default_factory=dict[str, Held])


def predict_unseen(profile: Profile, curve_sizes_bytes: Iterable[int]) -> Committed:
    """Predict every unseen point, layer, run of two GPUs and size of the read curve."""
    layers = [*validation_layers(), *engine_layers(), *two_gpu_runs(profile.gpu)]
    return Committed(
        profile_digest=profile.digest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        points={p.name: point_seconds(profile, p) for p in unseen(GPU_KERNELS)},
        layers={one.name: layer_seconds(profile, one) for one in layers},
        read_curve={str(b): read_seconds(profile, b) for b in curve_sizes_bytes},
        sustained=predict_sustained(profile),
        models=predict_models(profile),
    )


def predict_sustained(profile: Profile) -> dict[str, Held]:
    """Predict every unseen point in sustained work; nothing for a profile that knows no power."""
    if profile.power is None:
        return {}
    found = {p.name: price_sustained(profile, p) for p in unseen_sustained(GPU_KERNELS)}
    return {
        name: Held(
            step_s=one.seconds,
            half_width=one.half_width,
            clock_share=one.clock_share,
            watts=one.watts,
            energy_per_step_j=one.energy_j,
        )
        for name, one in found.items()
    }


def predict_models(profile: Profile) -> dict[str, Held]:
    """Predict every whole model that only scores; nothing for a profile that knows no power."""
    if profile.power is None:
        return {}
    return {one.name: held_of(predict_run(one, profile)) for one in validation_models(profile.gpu)}


def held_of(run: PredictedRun) -> Held:
    """What is said of a run beside its time; raises ProfileMismatchError where no power is known."""
    if run.power is None:
        raise ProfileMismatchError("the profile says nothing of power; fit it (--what power)")
    return Held(
        step_s=run.step_s,
        half_width=run.uncertainty.half_width if run.uncertainty else 0.0,
        clock_share=run.power.clock_share,
        watts=run.power.watts,
        energy_per_step_j=run.power.energy_per_step_j,
    )


def commit_unseen(profile: Profile, path: Path, curve_sizes_bytes: Iterable[int]) -> str:
    """Write predictions ahead of a run; returns a sentence.

    Raises FileFormatError when the file exists: what was predicted before a run is not predicted
    again after it.
    """
    made = write_committed(
        path, lambda: predict_unseen(profile, curve_sizes_bytes), FORMAT, VERSION
    )
    num = len(made.points) + len(made.layers) + len(made.read_curve)
    return f"{path}: {num} predictions with profile {profile.digest}"


def read_blind(path: Path) -> Committed | None:
    """What was predicted before a run was made; raises what `read_committed` does."""
    return read_committed(path, Committed, FORMAT, VERSION)


def read_all_blind(paths: Iterable[Path]) -> Committed:
    """Of several files together; of two predictions of one thing the first file's counts."""
    found = Committed(profile_digest="", created="")
    for path in paths:
        if one := read_blind(path):
            found = replace(
                one,
                points=one.points | found.points,
                layers=one.layers | found.layers,
                read_curve=one.read_curve | found.read_curve,
                sustained=one.sustained | found.sustained,
                models=one.models | found.models,
            )
    return found


def layer_seconds(profile: Profile, layer: Scenario) -> float:
    """One steady decode step, or a whole prefill, in the kernels that the profile chooses."""
    return predict_run(on_gpu(layer, profile.gpu), profile).step_s


def read_seconds(profile: Profile, working_set_bytes: int) -> float:
    """One pass of the read kernel over a working set that it has passed over before."""
    values = {name: constant.value for name, constant in profile.machine.items()}
    if "read_l2_bytes_per_s" not in values:
        raise ProfileMismatchError(
            f"profile {profile.name!r} has no machine constant 'read_l2_bytes_per_s'; it is from "
            "another version: calibrate again"
        )
    size = np.array([working_set_bytes], dtype=np.float64)
    return float(pass_seconds(values, size, GPUS[profile.gpu].l2_bytes)[0])

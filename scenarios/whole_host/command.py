"""Answer `layerwise host`: the request of a call, its predictions, its traces op by op."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from layerwise.scenarios.compare.scores import Level
from layerwise.scenarios.whole_host.comparing import compare_folder
from layerwise.scenarios.whole_host.driving import HostRequest, runs_of
from layerwise.scenarios.whole_host.predictions import (
    host_profile,
    predict_host,
    read_prediction,
    write_prediction,
)
from layerwise.scenarios.whole_host.settling import Settled
from layerwise.sim.plan.errors import SpecError

# In-switch reduction is not what is predicted, and a shared host may not have it tried.
WITHOUT_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}


def request_of(
    settled: Settled, out: Path, budget_s: float, prediction: Path | None
) -> HostRequest:
    """Make the request of a call, and have the ranks that it will start leave multicast off."""
    for name, value in WITHOUT_MULTICAST.items():
        os.environ.setdefault(name, value)
    return HostRequest(
        out=out,
        num_gpus=settled.num_gpus,
        gpu=settled.gpu,
        device=settled.device,
        budget_s=budget_s,
        prediction=prediction,
    )


def predict_to(request: HostRequest, path: Path) -> dict[str, Any]:
    """Write every run's prediction; returns how many. Raises FileFormatError rather than overwrite."""
    profile = host_profile(request.gpu) if request.scale == "full" else None
    made = predict_host(runs_of(request, profile), profile)
    write_prediction(made, path)
    return {
        "predictions": str(path),
        "num_runs": len(made.runs),
        "profile": made.profile_digest or None,
    }


def compared(request: HostRequest, level: Level) -> str:
    """Return every trace of the folder as `layerwise compare` prints it, and keep it there.

    Raises SpecError where the folder holds no traces of GPUs.
    """
    prediction = read_prediction(request.out / "predictions.json")
    if request.scale == "quick" or prediction is None:
        raise SpecError("--level", level, "needs traces of GPUs", "leave it out with --device cpu")
    profile = host_profile(request.gpu)
    return compare_folder(request.out, prediction, runs_of(request, profile), profile, level)

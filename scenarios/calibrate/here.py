"""Calibrate this machine's GPU in one go: measure, fit, score on points kept apart, write, tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from layerwise.calibration.least_squares import FitError
from layerwise.scenarios.calibrate.fitting import fit_to, require_scipy
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.plan.reading import read_json

if TYPE_CHECKING:
    from layerwise.scenarios.calibrate.collect import Instruments, Task

Progress = Callable[[str], None]
# Which tasks may have used which share of the budget when they are done. Curve, stages and layers
# are few and all needed; then points, until there is just time to score and to repeat a few.
SHARES: tuple[tuple[float, tuple[Task, ...]], ...] = (
    (0.40, ("read-curve", "stages", "fit-layers")),
    (0.90, ("designed",)),
    (0.97, ("unseen",)),
    (1.00, ("repeats",)),
)
# What makes a folder's measurements those of one machine.
SAME_MACHINE = ("gpu", "num_sms", "l2_bytes", "driver", "torch")


def calibrate_here(
    out: Path | None,
    budget_s: float,
    gpu: str,
    name: str,
    console: Console,
    progress: Progress,
    instruments: Instruments | None = None,
) -> str:
    """Measure into a folder beside the profile, fit it, write the profile; returns a sentence.

    The folder keeps what was measured: an interrupted run, or one out of budget, goes on there.
    Raises NotAvailableError without a GPU, SpecError for a folder of another machine, and what
    `fit_to` raises: then there is no profile.
    """
    from layerwise.scenarios.calibrate.collect import collect

    require_scipy()
    chosen = instruments or instruments_here(progress)
    environment = chosen.environment()
    gpu = gpu or gpu_of(environment)
    out = out or Path(f"{gpu}.json")
    folder = work_folder(out)
    check_same_machine(folder, environment)
    started_s = time.monotonic()

    def tell(line: str) -> None:
        left_s = max(0.0, budget_s - (time.monotonic() - started_s))
        progress(f"[{left_s:.0f} s left] {line}")

    missing = 0
    for share, tasks in SHARES:
        left_s = share * budget_s - (time.monotonic() - started_s)
        missing += collect(folder, left_s, tasks, tell, chosen, gpu=gpu).num_missing
    if missing:
        tell(f"{missing:,} measurements did not fit the budget; they are left for another run")
    try:
        return fit_to(folder, out, name or gpu, gpu, console)
    except FitError as error:
        raise FitError(
            f"{error}; {folder} keeps what was measured: run it again, with --budget-s "
            f"{2 * budget_s:.0f} or more"
        ) from error


def work_folder(out: Path) -> Path:
    """Beside the profile, under its name: what was measured for it."""
    return out.with_name(f"{out.name.removesuffix('.json')}.work")


def instruments_here(progress: Progress) -> Instruments:
    """This machine's GPU. Raises MissingPackageError without torch, NotAvailableError without it."""
    from layerwise.scenarios.measure.measuring import require_torch

    require_torch()
    import torch

    from layerwise.hw.errors import NotAvailableError

    if not torch.cuda.is_available():
        raise NotAvailableError(
            f"layerwise calibrate measures on a CUDA GPU and torch {torch.__version__} sees none; "
            "collect on a machine that has one (--collect DIR), and fit its folder here (--fit DIR)"
        )
    from layerwise.scenarios.calibrate.collect import gpu_instruments

    return gpu_instruments(progress)


def gpu_of(environment: Mapping[str, str]) -> str:
    """Which known GPU this is, by its SMs and its L2. Raises SpecError for none, or for several."""
    found = [
        name
        for name, spec in GPUS.items()
        if environment.get("num_sms") == str(spec.num_sms)
        and environment.get("l2_bytes") == str(spec.l2_bytes)
    ]
    if len(found) == 1:
        return found[0]
    what = f"{environment.get('gpu')} ({environment.get('num_sms')} SMs)"
    problem = "may be several known GPUs" if found else "is not a known GPU"
    raise SpecError("--gpu", what, problem, f"name one of {', '.join(found or GPUS)} with --gpu")


def check_same_machine(folder: Path, environment: Mapping[str, str]) -> None:
    """Raise SpecError when the folder already holds what another machine measured."""
    path = folder / "environment.json"
    if not path.exists():
        return
    before = read_json(path)
    for key in SAME_MACHINE:
        if before.get(key) != environment.get(key):
            raise SpecError(
                str(folder),
                environment.get(key),
                f"was measured where {key}={before.get(key)!r}",
                "write another profile with --out, or remove the folder",
            )

"""Calibrate: measure what a fit needs, or fit it, write the profile and print how well it fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from layerwise.calibration.data import profile_path
from layerwise.scenarios.calibrate.fitting import add_to, fit_to
from layerwise.sim.plan.errors import SpecError

if TYPE_CHECKING:
    pass


BUDGETS_S = {
    "": 600.0,
    "--collect": 600.0,
    "--fit": 0.0,
    "--anchor": 300.0,
    "--for": 120.0,
    "--links": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What `layerwise calibrate` was given. `budget_s` 0 and empty texts: the task's own default."""

    collect: Path | None = None
    fit: Path | None = None
    anchor: Path | None = None
    scenario: Path | None = None
    links: Path | None = None
    out: Path | None = None
    what: tuple[str, ...] = ()
    budget_s: float = 0.0
    gpu: str = ""
    name: str = ""
    profile: Path | None = None

    @property
    def tasks(self) -> list[str]:
        """The options given that each are a task of their own."""
        given = {
            "--collect": self.collect,
            "--fit": self.fit,
            "--anchor": self.anchor,
            "--for": self.scenario,
            "--links": self.links,
        }
        return [option for option, value in given.items() if value is not None]


def calibrate(asked: Asked, console: Console, progress: Callable[[str], None]) -> str:
    """Do the one task that was asked for, or all of it; returns what to say at the end.

    Raises SpecError for options that do not go together, and what each task raises.
    """
    _check(asked)
    budget_s = asked.budget_s or BUDGETS_S[asked.tasks[0] if asked.tasks else ""]
    if asked.collect is not None:
        return collect_to(asked.collect, budget_s, asked.what, asked.gpu or "h100-sxm")
    if asked.fit is not None and asked.profile is not None:
        return add_to(asked.fit, asked.profile, _named(asked.out))
    if asked.fit is not None:
        gpu = asked.gpu or "h100-sxm"
        return fit_to(asked.fit, _named(asked.out), asked.name or gpu, gpu, console)
    if asked.anchor is not None:
        from layerwise.scenarios.calibrate.anchoring import anchor_to

        return anchor_to(asked.anchor, _named(asked.out), budget_s, console, progress)
    if asked.scenario is not None:
        from layerwise.scenarios.calibrate.for_scenario import measure_for

        base = asked.profile or _shipped(asked.scenario)
        return measure_for(asked.scenario, base, _named(asked.out), budget_s, console, progress)
    if asked.links is not None:
        from layerwise.scenarios.calibrate.from_links import profile_from_links

        return profile_from_links(asked.links, asked.profile, asked.gpu, _named(asked.out), console)
    from layerwise.scenarios.calibrate.here import calibrate_here

    return calibrate_here(asked.out, budget_s, asked.gpu, asked.name, console, progress)


def _check(asked: Asked) -> None:
    if len(asked.tasks) > 1:
        raise SpecError(
            "/".join(asked.tasks),
            "together",
            "is not one task",
            "give one of --collect, --fit, --anchor, --for and --links, or none to do it all here",
        )
    if asked.budget_s < 0 or not math.isfinite(asked.budget_s):
        raise SpecError("--budget-s", asked.budget_s, "is no time", "give seconds above 0")
    for option, value, only in (
        ("--what", asked.what, ("--collect",)),
        ("--profile", asked.profile, ("--fit", "--for", "--links")),
    ):
        if value and not set(only) & set(asked.tasks):
            needed = " or ".join(only)
            raise SpecError(option, str(value), f"has no meaning without {needed}", "remove it")


def _named(out: Path | None) -> Path:
    if out is None:
        raise SpecError("--out", None, "is missing", "add --out PROFILE.json")
    return out


def _shipped(scenario: Path) -> Path:
    from layerwise.sim.plan.files import load_scenario

    gpu = load_scenario(scenario).cluster.gpu.name
    path = profile_path(gpu)
    if not path.exists():
        raise SpecError(
            "--profile",
            None,
            f"is missing, and none is shipped for {gpu}",
            "give the profile to add to with --profile FILE",
        )
    return path


def collect_to(
    folder: Path, budget_s: float, what: Sequence[str] = (), gpu: str = "h100-sxm"
) -> str:
    """Measure on this machine's GPU; returns a sentence. `what` names tasks of scenarios.calibrate.collect.

    Raises MissingPackageError without torch, NotAvailableError without a GPU, SpecError for an
    unknown task.
    """
    from layerwise.scenarios.measure.measuring import require_torch

    require_torch()
    import torch

    from layerwise.hw.errors import NotAvailableError

    if not torch.cuda.is_available():
        raise NotAvailableError(
            f"--collect measures on a CUDA GPU and torch {torch.__version__} sees none; collect on "
            "a machine that has one, and fit its folder here with --fit"
        )
    from layerwise.scenarios.calibrate.collect import collect, tasks_of

    found = collect(folder, budget_s, tasks_of(what), gpu=gpu)
    if not found.num_missing:
        return f"{folder}: complete"
    failed = f"; {found.num_failed} failed, see failed.jsonl" if found.num_failed else ""
    return f"{folder}: {found.num_missing} measurements are missing: run it again{failed}"

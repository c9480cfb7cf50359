"""What every command does: finds its profile, prints JSON, says on stderr what it did beside."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerwise.sim.profile import Profile


def profile_or_none(path: Path | None, gpu: str) -> Profile | None:
    """The given profile, the shipped one for this GPU, or none when none is shipped."""
    from layerwise.calibration.data import profile_path
    from layerwise.sim.profile import load_profile

    chosen = path or profile_path(gpu)
    return load_profile(chosen) if path or chosen.exists() else None


def needed_profile(path: Path | None, gpu: str) -> Profile:
    """The given profile or the shipped one; raises FileFormatError where there is neither."""
    from layerwise.sim.plan.errors import FileFormatError

    found = profile_or_none(path, gpu)
    if found is None:
        raise FileFormatError(
            f"there is no calibration profile for {gpu}, only for "
            f"{' and '.join(shipped_profiles())}; give one with --profile FILE, as `layerwise "
            "calibrate` writes it"
        )
    return found


def shipped_profiles() -> list[str]:
    """The GPUs that have one, by name."""
    from layerwise.calibration.data import profile_path
    from layerwise.sim.plan.hardware import GPUS

    return [name for name in GPUS if profile_path(name).exists()]


def check_gpu(name: str, own: str) -> None:
    """Raise SpecError for a GPU that is not known; "" names none. `own`: what to do for one's own."""
    from layerwise.sim.plan.errors import SpecError, nearest
    from layerwise.sim.plan.hardware import GPUS

    if name and name not in GPUS:
        raise SpecError("--gpu", name, "is not known", f"{nearest(name, GPUS)} (one's own: {own})")


JSON_VERSION = 1
"""Of what every command prints for machines; a key that goes or changes its meaning raises it."""


def print_json(answers: str, data: Mapping[str, Any]) -> None:
    """Print an answer for machines, in SI units, with the format and version that it is of.

    `answers`: what to, by the name of its command.
    """
    print_plain_json({"format": f"layerwise-{answers}", "version": JSON_VERSION} | dict(data))


def print_plain_json(data: Mapping[str, Any]) -> None:
    """Print JSON that has a format of its own, or none: a schema, a list of names."""
    print(json.dumps(data, indent=2, allow_nan=False))


def note_changes(changes: Sequence[str] | None) -> None:
    """Which fields were changed with --set, if any."""
    if changes:
        note(f"changed: {', '.join(changes)}")


def note(text: str) -> None:
    """What a command did beside its answer: on stderr, so that stdout stays parseable."""
    from layerwise.sim.plan.errors import visible

    print(visible(text, keep="\n"), file=sys.stderr)

"""What-ifs by key: any key of a scenario file, set to what a user wrote."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from layerwise.sim.plan.errors import SpecError, nearest
from layerwise.sim.plan.files import with_values
from layerwise.sim.plan.tables import PATHS

__all__ = ["nearest", "parse_settings", "with_values"]


def parse_settings(settings: Iterable[str]) -> dict[str, str]:
    """Return `KEY=VALUE`, as the command line gives them, by key. Raises SpecError for other text.

    A file that is named is one from here, as everywhere on a command line, or else one from the
    scenario file's folder.
    """
    found: dict[str, str] = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not (key and equals and value):
            fix = "write it like --set workload.batch_size=64"
            raise SpecError("--set", setting, "is not KEY=VALUE", fix)
        if key in found:
            raise SpecError("--set", setting, f"sets {key} again", "keep one of them")
        found[key] = value
        if key in PATHS and value.endswith(PATHS[key]) and Path(value).is_file():
            found[key] = str(Path(value).resolve())
    return found

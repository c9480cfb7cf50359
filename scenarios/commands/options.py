"""What options are called, and which values they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


def parse_seconds(written: str | float) -> float:
    """`20ms`, `10min`, or plain seconds. Raises SpecError."""
    from layerwise.sim.plan.units import parse_real

    return parse_real("time_s", str(written))


def shipped(option: str, *kinds: str) -> Callable[[Any], Any]:
    """Return what makes a path, or each of several, a file: its own, or a shipped one by its name.

    A callback, as typer makes pages of what a parser raises. Raises SpecError.
    """

    def find_files(given: Path | Sequence[Path] | None) -> Path | list[Path] | None:
        from layerwise.scenarios.shipped import find

        if given is None:
            return None
        if isinstance(given, Path):
            return find(given, option, *kinds)
        return [find(one, option, *kinds) for one in given]

    return find_files


class ModelName(StrEnum):
    """The paper's model as its dimensions give it, and as its parameter count needs it."""

    PAPER_16 = "paper-16"
    PAPER_30B = "paper-30b"


class PhaseName(StrEnum):
    """What the sequences are doing."""

    DECODE = "decode"
    PREFILL = "prefill"


class LaunchName(StrEnum):
    """How kernels are launched."""

    GRAPH = "graph"
    EAGER = "eager"


class Purpose(StrEnum):
    """What a trace may be used for."""

    FIT = "fit"
    VALIDATION = "validation"
    OTHER = "other"


class DeviceName(StrEnum):
    """What measures."""

    CUDA = "cuda"
    CPU = "cpu"


class LevelName(StrEnum):
    """What a line of a comparison is."""

    OP = "op"
    LAYER = "layer"
    STAGE = "stage"
    RUN = "run"


class TimingName(StrEnum):
    """Who times each op of a measurement."""

    CUPTI = "cupti"
    EVENTS = "events"
    CLOCK = "clock"
    NONE = "none"


ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="PROFILE",
        callback=shipped("--profile", "profile"),
        help="Calibration profile: a file, or h200.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON, in SI units, for machines.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a scenario file's key (repeatable): workload.batch_size=64.",
    ),
]
ScenarioArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SCENARIO",
        callback=shipped("SCENARIO", "scenario"),
        help="A .toml file, or a shipped name (see layerwise shipped).",
    ),
]
OptionalScenario = Annotated[
    Path | None,
    typer.Argument(
        metavar="SCENARIO",
        callback=shipped("SCENARIO", "scenario"),
        help="A .toml file, or a shipped name.",
    ),
]
TimelineOption = Annotated[
    Path | None,
    typer.Option(
        "--trace", metavar="FILE", help="Write a timeline for ui.perfetto.dev (.json.gz)."
    ),
]
SlicesOption = Annotated[
    int,
    typer.Option("--trace-slices", metavar="N", help="Most slices it has; whole steps are kept."),
]
# As `layerwise.sim.timeline.chosen.MAX_SLICES`, which a command imports only when it draws.
MAX_SLICES = 300_000

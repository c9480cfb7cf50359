"""Describe how a scenario is measured: the one list of options, read by every way to measure.

`python -m layerwise.hw` makes its options of these fields, and `layerwise measure` takes their
defaults and their help. Imports nothing heavy: help is printed without torch.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from layerwise.hw.engine.weights import WeightSource
    from layerwise.hw.instrument.power import PowerOptions

DeviceType = Literal["cuda", "cpu"]
Timing = Literal["cupti", "events", "clock", "none"]
Purpose = Literal["fit", "validation", "other"]


def _option(default: Any, told: str, choices: Any = None) -> Any:
    """Make a field that is an option of commands; `told` is its help."""
    return field(default=default, metadata={"help": told, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to measure a scenario. `timing` None is the device's default.

    `out` is the trace to write: without one, a run that ends early leaves nothing. `weights`
    defaults to seeded random values. `announce`: say on stderr what begins. `sampling` says how
    power is sampled where it is; None as on any GPU.
    """

    device: DeviceType = _option("cuda", "GPUs, or the CPU.", DeviceType)
    timing: Timing | None = _option(
        None,
        "Who times each op; by default CUPTI, or events without it; on a CPU its clock.",
        Timing,
    )
    traced_repeats: int = _option(5, "Repeats that become rows.")
    bandwidth: bool = _option(False, "Measure HBM's read rate as well.")
    purpose: Purpose = _option(
        "other", "What the trace may be used for; a fit never validates.", Purpose
    )
    power: bool = _option(True, "Sample power and clocks beside.")
    energy_s: float = _option(0.0, "Repeat so long afterwards, for energy alone (0.5 s or more).")
    timeout_s: float = _option(1800.0, "End a run that takes longer.")
    stall_s: float = _option(30.0, "How long a rank may stand still while others wait for it.")
    out: Path | None = None
    weights: WeightSource | None = None
    announce: bool = False
    sampling: PowerOptions | None = None

    def given(self) -> list[str]:
        """Name the options that differ from their defaults, as commands write them."""
        return [
            option_name(each)
            for each in fields(self)
            if each.metadata and getattr(self, each.name) != each.default
        ]


def option_name(option: Field[Any]) -> str:
    """Return how commands write an option."""
    return f"--{option.name.replace('_', '-')}"


def help_of(name: str) -> str:
    """Return what an option of a measurement is for."""
    return Options.__dataclass_fields__[name].metadata["help"]

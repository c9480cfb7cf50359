"""Hand a scenario to the engine. Imports torch, through hw, only when called."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Literal

from sim.plan.errors import MissingPackageError
from sim.plan.scenario import Scenario
from sim.trace import Trace

Purpose = Literal["fit", "validation", "other"]
TimingName = Literal["cupti", "events", "clock", "none"]


def measure_to(
    scenario: Scenario,
    out: Path,
    device: Literal["cpu", "cuda"],
    timing: TimingName | None,
    with_bandwidth: bool,
    purpose: Purpose = "other",
) -> str:
    """Measure and write the trace; returns a sentence.

    Raises MissingPackageError without torch, NotAvailableError without a GPU, SpecError.
    """
    require_torch()
    from hw.launch import Options, launch
    from sim.trace import write_trace

    chosen = timing or ("clock" if device == "cpu" else "cupti")
    options = Options(timing=chosen, device=device, with_bandwidth=with_bandwidth)
    trace = launch(scenario, options)
    if trace is None:
        return "the first rank writes the trace"
    write_trace(replace(trace, purpose=purpose), out)
    return f"{out}: {len(trace.rows)} rows, timing {chosen}; {_summary(trace)}"


def _summary(trace: Trace) -> str:
    step = f"median step {1e3 * median(trace.untraced_step_s):.4g} ms"
    if "hbm_floor_fraction" not in trace.measured:
        return step
    fraction, rate = (
        trace.measured[key] for key in ("hbm_floor_fraction", "read_bandwidth_bytes_per_s")
    )
    return f"{step}, {fraction:.1%} of the HBM floor at {rate / 1e12:.3g} TB/s"


def require_torch() -> None:
    """Raise MissingPackageError, saying what works without it, when torch is not installed."""
    if find_spec("torch") is None:
        raise MissingPackageError(
            "torch", "measure", "pip install 'layerwise[hw]'",
            "all that predicts (layerwise paper, predict, compare)",
        )  # fmt: skip

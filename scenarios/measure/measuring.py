"""Hand a scenario to the engine. Imports torch, through hw, only when called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

from layerwise.hw.options import DeviceType, Options
from layerwise.sim.plan.errors import MissingPackageError, SpecError
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.trace import Trace

if TYPE_CHECKING:
    from layerwise.sim.profile import Profile


# Nothing is sampled beside an import either way.
READ_BY_IMPORTS = ("--device", "--purpose", "--power")


def measure_to(scenario: Scenario, options: Options) -> str:
    """Measure and write the trace to `options.out`; returns what it says, in a few lines.

    Raises MissingPackageError without torch, NotAvailableError without a GPU, SpecError.
    """
    require_torch()
    _check_kernels(scenario, options.device)
    from layerwise.hw.ranks.launch import launch

    trace = launch(scenario, options)
    if trace is None:
        return "the first rank writes the trace"
    return f"{options.out}: {len(trace.rows)} rows, timing {trace.timing}\n{summary(trace)}"


@dataclass(frozen=True)
class ImportedFiles:
    """Another profiler's files, in place of a run. `rank_of`: texts `PID=RANK`."""

    paths: tuple[Path, ...] = ()
    rank_of: tuple[str, ...] = ()
    untraced: Path | None = None

    @property
    def are_asked_for(self) -> bool:
        """Was any of them given?"""
        return bool(self.paths or self.rank_of or self.untraced)


def import_to(scenario: Scenario, out: Path, files: ImportedFiles, options: Options) -> str:
    """Write the trace that a profiler's files show; returns what it says, in a few lines.

    Raises SpecError, also for options that only a run reads, FileFormatError, UnmeasuredOpError,
    TraceMismatchError.
    """
    if not files.paths:
        raise SpecError("--import", None, "is missing", "name a file beside --rank-of, --untraced")
    if unused := [option for option in options.given() if option not in READ_BY_IMPORTS]:
        raise SpecError(
            "--import",
            [str(p) for p in files.paths],
            f"runs nothing for {unused}",
            "leave them out",
        )
    require_torch()
    from layerwise.hw.imported.trace import import_trace
    from layerwise.sim.trace import read_trace, write_trace

    untraced = read_trace(files.untraced) if files.untraced else None
    ranks = dict(_rank_of(text) for text in files.rank_of)
    trace = import_trace(scenario, files.paths, rank_of=ranks, untraced=untraced)
    write_trace(replace(trace, purpose=options.purpose), out)
    kept, stray = (trace.environment[key] for key in ("imported_repeats", "unmatched_kernels"))
    said = (
        f"{out}: {len(trace.rows)} rows, timing {trace.timing}, {kept} repeats; "
        f"{stray} kernels of the files belong to no op and ran outside these repeats' ranges"
    )
    steps = summary(trace) if untraced else "no step times: add --untraced TRACE to compare it"
    return f"{said}\n{steps}"


def _rank_of(text: str) -> tuple[int, int]:
    process_id, _, rank = text.partition("=")
    if not (process_id.isdecimal() and rank.isdecimal()):
        raise SpecError("--rank-of", text, "is no pair of numbers", "write --rank-of 4242=0")
    return int(process_id), int(rank)


def summary(trace: Trace) -> str:
    """A measured trace in a few lines: step times and their spread, energy, what to beware of."""
    lines = [_step_line(trace), _energy_line(trace)]
    lines += [f"caution: {caution}" for caution in trace.cautions()]
    return "\n".join(filter(None, lines))


def _step_line(trace: Trace) -> str:
    times_s = trace.untraced_step_s
    parts = [
        f"median step {1e3 * median(times_s):.4g} ms of {len(times_s)} repeats",
        _spread(times_s),
    ]
    if trace.traced_ratio:
        parts.append(
            f"traced / untraced {trace.traced_ratio:.3f} ({len(trace.traced_step_s)} traced)"
        )
    if "hbm_floor_fraction" in trace.measured:
        fraction, rate = (
            trace.measured[key] for key in ("hbm_floor_fraction", "read_bandwidth_bytes_per_s")
        )
        parts.append(f"{fraction:.1%} of the HBM floor at {rate / 1e12:.3g} TB/s")
    return ", ".join(filter(None, parts))


def _spread(times_s: Sequence[float]) -> str:
    """The middle half of the repeats and their extremes, in ms."""
    if len(times_s) < 4:
        return ""
    low, _, high = (1e3 * each for each in quantiles(times_s, n=4))
    least, most = 1e3 * min(times_s), 1e3 * max(times_s)
    return f"half of them {low:.4g} to {high:.4g}, all {least:.4g} to {most:.4g}"


def _energy_line(trace: Trace) -> str:
    """Joules where they were measured, else why not; power and clocks beside."""
    found, parts = trace.measured, []
    if "energy_per_step_j" in found:
        parts.append(
            f"{found['energy_per_step_j']:.4g} J a step, "
            f"{found['energy_per_token_j']:.4g} J a token "
            f"(+-{found['energy_uncertainty']:.0%})"
        )
    else:
        reason = trace.environment.get("energy") or trace.environment.get("power")
        parts.append(f"energy: {reason}" if reason else "")
    if "mean_power_w" in found:
        parts.append(f"{found['mean_power_w']:.0f} W, at most {found['max_power_w']:.0f} W a GPU")
    if "mean_sm_clock_hz" in found:
        parts.append(
            f"SM clock {found['mean_sm_clock_hz'] / 1e6:.0f} MHz, at least "
            f"{found['min_sm_clock_hz'] / 1e6:.0f} MHz"
        )
        parts.append(f"{found['max_temperature_c']:.0f} C")
    return "; ".join(filter(None, parts))


def require_torch(needed_for: str = "measure") -> None:
    """Raise MissingPackageError, saying what works without it, when torch is not installed."""
    if find_spec("torch") is None:
        raise MissingPackageError(
            "torch",
            needed_for,
            "pip install '.[hw]'",
            "all that predicts (layerwise paper, predict, compare)",
        )


def _check_kernels(scenario: Scenario, device: DeviceType) -> None:
    """Raise SpecError for an attention kernel that the run would meet and the CPU does not have."""
    if device != "cpu":
        return
    kernels = scenario.kernels_on()
    work = scenario.workload
    keys = ["decode_attention"]
    if work.phase == "prefill":
        chunked = work.context_tokens > work.prefill_chunk_tokens
        keys = ["prefill_attention", *(["chunked_prefill_attention"] if chunked else [])]
    for key in keys:
        if getattr(kernels, key) == "cudnn":
            raise SpecError(
                f"kernels.{key}",
                "cudnn",
                "runs on GPUs alone, and --device is 'cpu'",
                "use 'math' or 'flash', or leave [kernels] out",
            )


def best_microbatches(scenario: Scenario, profile: Profile | None) -> int:
    """The number of microbatches that is predicted to give the most tokens a second."""
    from layerwise.sim.predict import predict

    return predict(scenario, profile).num_microbatches

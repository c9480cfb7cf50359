"""All figures in one process: each by itself, none stopped by another's failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.figures.attention import attention
from layerwise.hw.figures.bench import Bench, in_words, release
from layerwise.hw.figures.host_time import host_time
from layerwise.hw.figures.matmuls import matmuls
from layerwise.hw.figures.pointwise import pointwise
from layerwise.hw.figures.prefill import prefill
from layerwise.hw.figures.report import Outcome, Result
from layerwise.hw.figures.small_layer import small_layer
from layerwise.hw.figures.stages import stage_8, stage_128, traced
from layerwise.hw.figures.two_gpus import two_gpus
from layerwise.hw.host.environment import sample_clocks

Figure = Callable[[Bench], Result]

# What a tracer or a compiler leaves behind in the process comes after what it could disturb.
FIGURES: dict[str, Figure] = {
    "stage-8": stage_8,
    "stage-128": stage_128,
    "prefill": prefill,
    "host-time": host_time,
    "matmuls": matmuls,
    "attention": attention,
    "hidden-1024": small_layer,
    "traced": traced,
    "pointwise": pointwise,
}
TWO_GPU_FIGURES: dict[str, Figure] = {"two-gpus": two_gpus}


def chosen(only: Sequence[str], num_gpus: int, *, two_gpus_only: bool = False) -> dict[str, Figure]:
    """The figures to take: those named, or all that this machine has the GPUs for.

    Raises NotAvailableError for a name that no figure has.
    """
    known = FIGURES | TWO_GPU_FIGURES
    unknown = [name for name in only if name not in known]
    if unknown:
        raise NotAvailableError(f"--only {unknown[0]!r} is no figure; use some of {list(known)}")
    if only:
        return {name: known[name] for name in known if name in only}
    if two_gpus_only:
        return dict(TWO_GPU_FIGURES)
    return known if num_gpus > 1 else dict(FIGURES)


def take(
    figures: Mapping[str, Figure], bench: Bench, keep: Callable[[Sequence[Outcome]], None]
) -> list[Outcome]:
    """Take each figure in turn; `keep` is handed all there are after each, so none is lost.

    Clocks, power and throttling are read before and after each one.
    """
    outcomes: list[Outcome] = []
    started_s = time.monotonic()
    for name, figure in figures.items():
        bench.progress(f"figures: {time.monotonic() - started_s:.0f} s: {name}")
        outcomes.append(_take_one(name, figure, bench))
        keep(outcomes)
        for line in _said(outcomes[-1]):
            bench.progress(line)
    return outcomes


def _take_one(name: str, figure: Figure, bench: Bench) -> Outcome:
    begun_s = time.monotonic()
    before = sample_clocks(bench.device, "before")
    result, problem = _tried(figure, bench)
    after = sample_clocks(bench.device, "after")
    took_s = time.monotonic() - begun_s
    try:
        release(bench.device)
    except Exception as error:  # the device is lost: the figures after this one will say so too
        problem = problem or in_words(error)
    return Outcome(name=name, took_s=took_s, result=result, problem=problem, clocks=before | after)


def _tried(figure: Figure, bench: Bench) -> tuple[Result | None, str]:
    """What it found, or the problem. The error itself is let go: it would keep tensors alive."""
    try:
        return figure(bench), ""
    except Exception as error:
        return None, in_words(error)


def _said(outcome: Outcome) -> Sequence[str]:
    if outcome.result is None:
        return (f"  {outcome.name} failed after {outcome.took_s:.1f} s: {outcome.problem}",)
    return tuple(f"  {line}" for line in outcome.result.lines)

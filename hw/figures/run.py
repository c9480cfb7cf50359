"""Take figures in one process: each by itself, none stopped by another's failure.

They share the clocks, the heat and the libraries of the floors that they are held against.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.figures import report
from layerwise.hw.figures.attention import attention
from layerwise.hw.figures.bench import KERNELS, Bench, bench_on, in_words, release
from layerwise.hw.figures.host_time import host_time
from layerwise.hw.figures.matmuls import matmuls
from layerwise.hw.figures.pointwise import pointwise
from layerwise.hw.figures.prefill import prefill
from layerwise.hw.figures.report import Outcome, Result
from layerwise.hw.figures.small_layer import small_layer
from layerwise.hw.figures.stages import stage_8, stage_128, traced
from layerwise.hw.figures.two_gpus import two_gpus
from layerwise.hw.host.environment import environment_of, sample_clocks
from layerwise.hw.ranks.session import under_torchrun, usable_device
from layerwise.sim.plan.ops import AttentionKernel

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


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which figures to take where. `only` empty: all; `command`: how that was asked for."""

    out: Path
    only: Sequence[str] = ()
    device: str = "cuda"
    two_gpus: bool = False
    decode_attention: AttentionKernel = "cudnn"
    prefill_attention: AttentionKernel = "cudnn"
    command: str = ""


def take_figures(request: Request) -> list[Outcome]:
    """Take the figures and write them after each one. Raises NotAvailableError."""
    if under_torchrun():
        raise NotAvailableError(
            "the figures start their own ranks; start one process: `layerwise figures ...`"
        )
    figures = chosen(request.only, torch.cuda.device_count(), two_gpus_only=request.two_gpus)
    device = usable_device(request.device)
    if device.type != "cuda":
        raise NotAvailableError(f"--device {request.device}: the figures are a GPU's; use cuda")
    kernels = replace(
        KERNELS,
        decode_attention=request.decode_attention,
        prefill_attention=request.prefill_attention,
    )
    environment = environment_of(device)
    return take(
        figures,
        bench_on(device, kernels),
        lambda so_far: report.write(request.out, so_far, environment, request.command),
    )


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

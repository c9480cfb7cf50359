"""What runs under Nsight Compute: one rank's steps, or reads; all but the last of each unprofiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from layerwise.hw.engine.collectives import ReplacedPeers
from layerwise.hw.engine.execute import Engine
from layerwise.hw.engine.memory import allocate, model_fill, slots_of
from layerwise.hw.engine.schedule import actions_of
from layerwise.hw.engine.weights import RandomWeights
from layerwise.hw.host.bandwidth import read_sink
from layerwise.hw.instrument.observe import DOMAIN, Lane, NvtxRanges, Observer
from layerwise.hw.kernels import dispatch as kernels
from layerwise.hw.streams import plan_stream
from layerwise.sim.plan.errors import MissingPackageError, SpecError
from layerwise.sim.plan.program import PlacedOp
from layerwise.sim.plan.scenario import Scenario, compile_run, place


@dataclass(frozen=True)
class Window:
    """Between these two calls, ncu profiles what is launched."""

    start: Callable[[], object]
    stop: Callable[[], object]


def cuda_window() -> Window:
    """cudaProfilerStart and cudaProfilerStop, each once the device is idle."""

    def drained(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            torch.cuda.synchronize()
            call()

        return run

    return Window(drained(torch.cuda.profiler.start), drained(torch.cuda.profiler.stop))


def run_scenario(
    scenario: Scenario, device: torch.device, window: Window, *, warm_ups: int, only: Sequence[str]
) -> tuple[str, ...]:
    """Run the scenario's one rank eagerly, its last repeat under ranges and within the window.

    With `only`, the window opens for these ops alone (with or without their microbatch). Returns
    the names of the ops that were profiled. Raises SpecError, DoesNotFitError, ExecutionError.
    """
    check_scenario(scenario)
    rank = max(scenario.run.only_rank, 0)
    programs = plan_stream(compile_run(scenario), alone=True).body_programs(rank)
    names = tuple(dict.fromkeys(placed.name for program in programs for placed in program))
    chosen = choose_ops(names, only)
    weights = RandomWeights(scenario.model, device)
    memory = allocate(
        slots_of(programs),
        device,
        model_fill(scenario.model, weights, programs[0], device, rank),
        subject=f"rank {rank}",
    )
    engine = Engine(rank, memory, ReplacedPeers())
    steps = [actions_of(program) for program in programs]
    for actions in steps * warm_ups:
        engine.run(actions)
    engine.observers = (_ranges(), Opening(window, chosen)) if only else (_ranges(),)
    if not only:
        window.start()
    for actions in steps:
        engine.run(actions)
    if not only:
        window.stop()
    return chosen


def read_buffers(
    sizes_bytes: Mapping[str, int], device: torch.device, window: Window, *, warm_ups: int
) -> tuple[str, ...]:
    """Read each buffer over and over with one kernel; the last pass is under its range."""
    import nvtx

    sink = read_sink(device)
    for name, size in sizes_bytes.items():
        buffer = torch.empty(size // 2, dtype=torch.bfloat16, device=device).normal_()
        for _ in range(warm_ups):
            kernels.read_bandwidth_kernel(buffer, sink)
        window.start()
        with nvtx.annotate(name, domain=DOMAIN):
            kernels.read_bandwidth_kernel(buffer, sink)
        window.stop()
    return tuple(sizes_bytes)


def check_scenario(scenario: Scenario) -> None:
    """Refuse what cannot be profiled op by op, by the key that asks for it."""
    run, num_ranks = scenario.run, place(scenario).num_ranks
    if run.only_rank < 0 and num_ranks > 1:
        raise SpecError(
            "run.only_rank",
            run.only_rank,
            f"runs {num_ranks} ranks and ncu profiles one",
            f"use 0 to {num_ranks - 1}",
        )
    for key, allowed, why in (
        ("launch", "eager", "launches a step as one graph: its kernels have no ranges"),
        ("context_growth_tokens", 0, "makes each step another measurement"),
        ("persisting_weights", False, "puts windows on a graph's kernels, and there is no graph"),
    ):
        given = getattr(run, key)
        if given != allowed:
            raise SpecError(f"run.{key}", given, why, f"use {allowed!r}")


def choose_ops(names: Sequence[str], only: Sequence[str]) -> tuple[str, ...]:
    """All ops, or those asked for; `L00.attn.qkv` is that op of every microbatch."""
    for each in only:
        if not any(each in (name, name.partition("@")[0]) for name in names):
            raise SpecError(
                "--ops", each, "is no op of this scenario", f"its ops are {', '.join(names)}"
            )
    if not only:
        return tuple(names)
    return tuple(name for name in names if {name, name.partition("@")[0]} & set(only))


class Opening(Observer):
    """Opens the window around chosen ops alone."""

    def __init__(self, window: Window, chosen: Sequence[str]) -> None:
        self._window, self._chosen = window, frozenset(chosen)

    def begin(self, placed: PlacedOp, lane: Lane) -> None:
        if placed.name in self._chosen:
            self._window.start()

    def end(self, placed: PlacedOp, lane: Lane) -> None:
        if placed.name in self._chosen:
            self._window.stop()


def _ranges() -> Observer:
    try:
        return NvtxRanges()
    except ImportError as error:
        raise MissingPackageError(
            "nvtx", "name the op of each kernel", "pip install nvtx", "all that measures times"
        ) from error

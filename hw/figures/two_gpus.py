"""Layer-wise decode over two GPUs against what its slower stage, alone, allows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch

from layerwise.hw.figures.bench import Bench, release
from layerwise.hw.figures.report import Verdict
from layerwise.hw.instrument.timing import Spread, spread_of
from layerwise.hw.measure import measure
from layerwise.hw.ranks.local import LocalRanks, local_ranks
from layerwise.hw.ranks.session import Session
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import MODELS, ModelSpec
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario
from layerwise.sim.plan.workload import Workload
from layerwise.sim.trace import Trace

BAR = 0.95
NUM_GPUS = 2
CONTEXT_TOKENS = 2000
TIMEOUT_S = 120.0
# (layers, sequences, microbatches, steps in a graph)
CASES = ((2, 32, 4, 1), (2, 32, 4, 4), (2, 64, 8, 1), (2, 64, 8, 4), (4, 32, 4, 4), (4, 64, 8, 4))


@dataclass(frozen=True, kw_only=True)
class PipelineCase:
    """Seconds a step of the pipeline, and of each stage alone on its own GPU.

    `share`: the slowest stage's median step over the pipeline's, which is the share of the
    throughput that this stage allows.
    """

    what: str
    batch_size: int
    pipeline_s: Spread
    alone_s: tuple[Spread, ...]
    share: float

    @property
    def line(self) -> str:
        """Times, and tokens per second."""
        alone = ", ".join(f"{1e3 * each.median:.4f}" for each in self.alone_s)
        rate = self.batch_size / self.pipeline_s.median
        return (
            f"{self.what}: step {1e3 * self.pipeline_s.median:.4f} ms "
            f"({1e3 * self.pipeline_s.low:.4f} to {1e3 * self.pipeline_s.high:.4f}), stages alone "
            f"{alone} ms, {rate:.0f} tokens/s, {self.share:.1%} of what the slower one allows"
        )


@dataclass(frozen=True, kw_only=True)
class TwoGpus:
    """Several pipelines."""

    cases: tuple[PipelineCase, ...]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Each at least so much of what its slower stage allows."""
        return tuple(
            Verdict(
                what=f"two GPUs, {case.what}",
                sense="at least",
                bar=BAR,
                seen=case.share,
                unit="share",
            )
            for case in self.cases
        )

    @property
    def lines(self) -> tuple[str, ...]:
        """One per case."""
        return tuple(case.line for case in self.cases)


def two_gpus(bench: Bench) -> TwoGpus:
    """The paper's layers, one or two on each GPU."""
    scenarios = [pipeline(bench, MODELS["paper-16"], CONTEXT_TOKENS, *case) for case in CASES]
    return pipelines(bench, scenarios)


def pipeline(
    bench: Bench,
    model: ModelSpec,
    context_tokens: int,
    layers: int,
    batch_size: int,
    num_microbatches: int,
    steps_per_graph: int,
) -> Scenario:
    """Layer-wise decode over two GPUs."""
    return Scenario(
        name=f"{layers} layers, {num_microbatches} microbatches of "
        f"{batch_size // num_microbatches}, {steps_per_graph} steps a graph",
        model=replace(model, num_layers=layers),
        kernels=bench.kernels,
        cluster=dgx_cluster(GPUS["h200"], NUM_GPUS),
        placement=PlacementSpec(strategy="layer-wise", num_gpus=NUM_GPUS),
        workload=Workload(
            batch_size=batch_size,
            context_tokens=context_tokens,
            num_microbatches=num_microbatches,
        ),
        run=RunSpec(launch=bench.launch, steps_per_graph=steps_per_graph, repeats=40),
    )


def pipelines(bench: Bench, scenarios: Sequence[Scenario]) -> TwoGpus:
    """Each stage alone in this process, then all pipelines on ranks started once."""
    alone = [_alone(bench, scenario) for scenario in scenarios]
    release(bench.device)
    device_type = cast(Literal["cpu", "cuda"], bench.device.type)
    with local_ranks(NUM_GPUS, device_type) as ranks:
        together = [_together(bench, ranks, scenario) for scenario in scenarios]
    return TwoGpus(
        cases=tuple(
            PipelineCase(
                what=scenario.name,
                batch_size=scenario.workload.batch_size,
                pipeline_s=step_s,
                alone_s=stages,
                share=max(stage.median for stage in stages) / step_s.median,
            )
            for scenario, stages, step_s in zip(scenarios, alone, together, strict=True)
        )
    )


def measure_rank(session: Session, scenario: Scenario) -> Trace | None:
    """One rank's part, in a process of its own: untraced."""
    return measure(scenario, timing="none", session=session)


def _alone(bench: Bench, scenario: Scenario) -> tuple[Spread, ...]:
    """Each stage with its peers replaced, on the GPU where it will run."""
    found: list[Spread] = []
    for rank in range(NUM_GPUS):
        bench.progress(f"figures: {scenario.name}, stage {rank} alone")
        by_itself = replace(scenario, run=replace(scenario.run, only_rank=rank))
        device = bench.device if bench.device.type == "cpu" else torch.device("cuda", rank)
        with _on(device):
            trace = measure(by_itself, timing="none", device=str(device))
            assert trace is not None  # this process is the only rank
            found.append(spread_of(trace.untraced_step_s))
            del trace
            release(device)
    return tuple(found)


def _together(bench: Bench, ranks: LocalRanks, scenario: Scenario) -> Spread:
    bench.progress(f"figures: {scenario.name}, both stages")
    trace = ranks.call(measure_rank, scenario, timeout_s=TIMEOUT_S)[0]
    return spread_of(trace.untraced_step_s)


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

"""A layer-wise stage against the HBM floor, and what tracing a step does to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from layerwise.hw.errors import ExecutionError, NotAvailableError, UnmeasuredOpError
from layerwise.hw.figures.bench import Bench, decoder, one_layer, paper_stage, release
from layerwise.hw.figures.report import Verdict
from layerwise.hw.host.bandwidth import weight_and_kv_read_bytes
from layerwise.hw.instrument.timing import Spread, spread_of
from layerwise.hw.instrument.tracing import Timing
from layerwise.hw.measure import measure
from layerwise.hw.streams import plan_stream
from layerwise.sim.plan.errors import MissingPackageError
from layerwise.sim.plan.scenario import Scenario, compile_run
from layerwise.sim.plan.workload import Workload
from layerwise.sim.trace import Trace

STAGE_8_BAR, STAGE_128_BAR, TRACED_BAR = 0.93, 0.97, 1.03
BATCH, CONTEXT_TOKENS = 128, 10_000
WARM_STEPS_PER_GRAPH = 16
TRACED_REPEATS = 10


@dataclass(frozen=True, kw_only=True)
class FloorShare:
    """`share`: the time to read weights and KV at the best rate, over the median step.

    The rate is the better of two readings, taken before and after the steps.
    """

    what: str
    bar: float
    step_s: Spread
    read_bytes: int
    read_bytes_per_s: float
    share: float

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """At least so much of the floor."""
        what = f"{self.what}: share of the HBM floor"
        return (Verdict(what=what, sense="at least", bar=self.bar, seen=self.share, unit="share"),)

    @property
    def lines(self) -> tuple[str, ...]:
        """The step and the rate."""
        median_ms, low_ms, high_ms = (
            1e3 * each for each in (self.step_s.median, self.step_s.low, self.step_s.high)
        )
        step = f"step {median_ms:.4f} ms ({low_ms:.4f} to {high_ms:.4f})"
        rate = f"best read {self.read_bytes_per_s / 1e12:.4f} TB/s"
        return (f"{self.what}: {step}, {self.read_bytes / 1e9:.3f} GB read, {rate}",)


@dataclass(frozen=True, kw_only=True)
class TracedStep:
    """One scenario untraced and traced. `notes`: what could not be used instead of `timing`."""

    what: str
    timing: str
    untraced_s: Spread
    traced_s: Spread
    ratio: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Traced:
    """Traced against untraced in the same call, one scenario after another."""

    steps: tuple[TracedStep, ...]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Each at most so much slower, in graphs."""
        return tuple(
            Verdict(
                what=f"{step.what}: traced against untraced",
                sense="at most",
                bar=TRACED_BAR,
                seen=step.ratio,
                unit="ratio",
                note="" if step.timing == "cupti" else f"timed by {step.timing}",
            )
            for step in self.steps
        )

    @property
    def lines(self) -> tuple[str, ...]:
        """Why the first choice of tracer was not the one used."""
        return tuple(f"{step.what}: {note}" for step in self.steps for note in step.notes)


def stage_8(bench: Bench) -> FloorShare:
    """The paper's stage: 16 microbatches of 8 sequences."""
    return floor_share(bench, stage_scenario(bench, 16), STAGE_8_BAR)


def stage_128(bench: Bench) -> FloorShare:
    """The same with one microbatch of 128."""
    return floor_share(bench, stage_scenario(bench, 1), STAGE_128_BAR)


def traced(bench: Bench) -> Traced:
    """Both stages, and the small layer, whose ops are the shortest."""
    small = Workload(batch_size=8, context_tokens=128, num_microbatches=1)
    return traced_against_untraced(
        bench,
        [
            stage_scenario(bench, 16),
            stage_scenario(bench, 1),
            one_layer(bench, decoder(1024), small, steps_per_graph=WARM_STEPS_PER_GRAPH),
        ],
    )


def stage_scenario(bench: Bench, num_microbatches: int) -> Scenario:
    """One layer at the paper's batch and context, in so many microbatches."""
    workload = Workload(
        batch_size=BATCH, context_tokens=CONTEXT_TOKENS, num_microbatches=num_microbatches
    )
    return paper_stage(bench, f"stage-{BATCH // num_microbatches}", workload)


def floor_share(bench: Bench, scenario: Scenario, bar: float) -> FloorShare:
    """Measure a scenario on one rank with nothing attached, between two readings of HBM."""
    rate = bench.read_rate(bench.device)
    trace = _measure(bench, scenario, "none")
    rate = max(rate, bench.read_rate(bench.device))
    plan = plan_stream(compile_run(scenario), alone=True)
    read_bytes = weight_and_kv_read_bytes(plan.body_programs(max(scenario.run.only_rank, 0)))
    step_s = spread_of(trace.untraced_step_s)
    return FloorShare(
        what=scenario.name,
        bar=bar,
        step_s=step_s,
        read_bytes=read_bytes,
        read_bytes_per_s=rate,
        share=read_bytes / rate / step_s.median,
    )


def traced_against_untraced(bench: Bench, scenarios: Sequence[Scenario]) -> Traced:
    """Measure each twice, without and with a tracer: of the bench's, the first that works."""
    steps: list[TracedStep] = []
    for scenario in scenarios:
        steps.append(_traced_step(bench, scenario))
        release(bench.device)
    return Traced(steps=tuple(steps))


def _traced_step(bench: Bench, scenario: Scenario) -> TracedStep:
    notes: list[str] = []
    for timing in bench.timings:
        try:
            trace = _measure(bench, scenario, timing)
        except (MissingPackageError, NotAvailableError, UnmeasuredOpError, ExecutionError) as error:
            notes.append(f"timing {timing!r} failed: {error}")
            continue
        return TracedStep(
            what=scenario.name,
            timing=timing,
            untraced_s=spread_of(trace.untraced_step_s),
            traced_s=spread_of(trace.traced_step_s),
            ratio=median(trace.traced_step_s) / median(trace.untraced_step_s),
            notes=tuple(notes),
        )
    raise UnmeasuredOpError(f"{scenario.name}: {'; '.join(notes)}")


def _measure(bench: Bench, scenario: Scenario, timing: Timing) -> Trace:
    bench.progress(f"figures: {scenario.name}, timing {timing}")
    trace = measure(
        scenario, timing=timing, device=str(bench.device), traced_repeats=TRACED_REPEATS
    )
    assert trace is not None  # this process is the only rank
    return trace

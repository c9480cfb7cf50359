"""One rank of a measurement: it warms up, repeats its body untraced, then traced."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch

from layerwise.hw.engine.contexts import DeviceContexts, check_growth
from layerwise.hw.engine.cuda_runtime import CudaRuntime
from layerwise.hw.engine.execute import Engine
from layerwise.hw.engine.graphs import capture
from layerwise.hw.engine.memory import Slot, allocate, budget_of, model_fill, slots_of
from layerwise.hw.engine.residency import WeightWindows, weight_windows
from layerwise.hw.engine.schedule import Action, actions_of
from layerwise.hw.engine.steps import make_peers
from layerwise.hw.engine.weights import RESIDUAL_SCALE, RandomWeights, WeightSource
from layerwise.hw.host.environment import environment_of
from layerwise.hw.instrument import regimes
from layerwise.hw.instrument.observe import Observer, nvtx_ranges
from layerwise.hw.instrument.power import PowerMeter, repeats_for
from layerwise.hw.instrument.stopwatch import Stopwatch
from layerwise.hw.instrument.tracing import (
    Timing,
    Tracer,
    choose_tracer,
    default_timing,
    last_repeats,
)
from layerwise.hw.ranks.journal import Journal, StepTimes
from layerwise.hw.ranks.progress import noting
from layerwise.hw.ranks.session import Session
from layerwise.hw.rows import Spans, rows_of
from layerwise.hw.streams import StreamPlan, kernel_set_of, timed_ranks
from layerwise.sim.plan.program import StepPrograms
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.trace import Row, Trace, as_data

Replay = Callable[[int], None]
"""Issues one round of the body, by its index."""

EAGER_WARM_UPS = 3


class RankRun:
    """One rank of a measurement: its engine, and the body it repeats."""

    def __init__(
        self,
        scenario: Scenario,
        session: Session,
        run: Sequence[StepPrograms],
        plan: StreamPlan,
        weights: WeightSource | None,
        free_bytes: int | None,
        meter: PowerMeter,
        journal: Journal,
    ) -> None:
        self.session, self.plan, self.meter = session, plan, meter
        self.progress, self.journal, self._rounds_kept = session.progress, journal, 0
        self._kept_in = Journal()
        self.timing: Timing = default_timing(session.device.type)
        self.timing_notes: dict[str, str] = {}
        self.run, self.gpu = scenario.run, scenario.cluster.gpu
        self.in_graph = scenario.run.launch == "graph"
        self._windows: WeightWindows | None = None
        self.programs = plan.body_programs(session.rank)
        every = [c.programs[session.rank] for c in (*plan.prologue, *plan.epilogue)]
        source = weights or RandomWeights(
            scenario.model, session.device, residual_scale=RESIDUAL_SCALE
        )
        fill = model_fill(scenario.model, source, self.programs[0], session.device, session.rank)
        self.progress.enter("allocating", "setup")
        slots = slots_of([*self.programs, *every])
        self.progress.budget = budget_of(slots)
        memory = allocate(
            slots,
            session.device,
            noting(self.progress, _slot_name, fill),
            subject=f"rank {session.rank}",
            free_bytes=free_bytes,
        )
        self._counts: DeviceContexts | None = None
        if plan.grows:
            check_growth(self.programs, self.run.launch, self.run.steps_per_graph)
        if plan.grows and self.in_graph:
            first = (*plan.prologue, *(step for _, step in plan.body))[0].step.context_tokens
            growth_tokens = self.run.context_growth_tokens
            self._counts = DeviceContexts(self.programs[0], first, growth_tokens, session.device)
        self.progress.enter("connecting to the other ranks", "setup", waits=True)
        self.engine = Engine(
            session.rank,
            memory,
            make_peers(session, run),
            contexts=self._counts,
            progress=self.progress,
        )
        self.steps_per_graph = scenario.run.steps_per_graph if self.in_graph else 1
        self.rounds = [
            [actions_of(self.programs[place]) for place in places] * self.steps_per_graph
            for places in plan.rounds
        ]
        self.prologue = [actions_of(c.programs[session.rank]) for c in plan.prologue]
        self.epilogue = [actions_of(c.programs[session.rank]) for c in plan.epilogue]
        self.stopwatch = Stopwatch(session.device)
        self._warm_up()

    @contextmanager
    def windows(self) -> Iterator[WeightWindows | None]:
        """While it lasts, captured kernels carry windows over their weights, if the run asks."""
        if not self.run.persisting_weights:
            yield None
            return
        memory = self.engine.memory
        with weight_windows(CudaRuntime(), memory, self.gpu, self.programs) as self._windows:
            yield self._windows
        self._windows = None

    def begin_journal(
        self, scenario: Scenario, environment: dict[str, str], timing: Timing | None
    ) -> None:
        """What a trace of this run will say, should the run not come to its end."""
        if self.journal.path is None:
            return
        header = Trace(
            source="measured",
            name=scenario.name,
            scenario=as_data(scenario),
            kernel_set=kernel_set_of(self.plan, self.session),
            timing=timing or self.timing,
            environment=environment_of(self.session.device) | environment,
        )
        num_ranks = self.plan.body[0][1].placement.num_ranks
        timed = timed_ranks(self.plan, self.session)
        self.journal.begin(header, num_ranks=num_ranks, timed_ranks=timed)

    def untraced(self, repeats: int) -> tuple[float, ...]:
        """Seconds of each repeat with no tracer attached."""
        self.progress.enter("the untraced run")
        # A replay runs no host code: ranges at capture name its nodes for nsys, and cost nothing.
        ranges = nvtx_ranges() if self.in_graph and _under_nsys() else ()
        replay = self._replay_of(lambda step: ranges)
        if self.session.device.type == "cuda":
            repeats = self._enter_regime(replay, repeats)
        return self._stream(replay, repeats, None)

    def traced(self, timing: Timing | None, repeats: int) -> tuple[list[Row], tuple[float, ...]]:
        """Rows of each repeat, and its seconds with the tracer attached."""
        if timing == "none":
            self.timing = "none"
            return [], ()
        self.progress.enter("the traced run")
        chosen = choose_tracer(timing, len(self.rounds[0]), self.session, in_graph=self.in_graph)
        tracer, self.timing = chosen.tracer, chosen.timing
        if chosen.fallback:
            self.timing_notes = {"timing_fallback": chosen.fallback}
        replay = self._replay_of(tracer.observers)
        seconds = self._stream(replay, repeats, tracer)
        self.progress.enter("reading the tracer", "setup")
        spans = tracer.stop()
        rows = self._rows(last_repeats(spans, repeats * len(self.rounds)))
        if not self._rounds_kept:
            self.journal.rows(rows)
        return rows, seconds

    def close(self) -> None:
        """Leave the group; no graph is alive here."""
        self.engine.peers.close()

    def _warm_up(self) -> None:
        """Compile kernels, connect communicators; drained, so that a capture finds all idle."""
        self.progress.enter("warming up")
        first = self.rounds[0]
        for actions in (*self.prologue, *(first * EAGER_WARM_UPS), *self.epilogue):
            if self._counts:
                self._counts.restart()
            self.engine.run(actions)
        self._join()
        self._synchronize()

    def _replay_of(self, observers_of: Callable[[int], Sequence[Observer]]) -> Replay:
        """One round of the body: a graph's replay, or the steps issued one by one.

        One graph serves all rounds: where there are several, the device counts the context.
        """
        if self.in_graph:
            graph = capture(self.engine, self.rounds[0], self._with_windows(observers_of))
            return lambda index: graph.replay()
        watchers = [tuple(observers_of(step)) for step in range(len(self.rounds[0]))]

        def issue(index: int) -> None:
            for number, (actions, observers) in enumerate(
                zip(self.rounds[index], watchers, strict=True)
            ):
                self.progress.step = self.plan.body[self.plan.rounds[index][number]][0]
                self.engine.observers = observers
                self.engine.run(actions)
            self.engine.observers = ()

        return issue

    def _with_windows(
        self, observers_of: Callable[[int], Sequence[Observer]]
    ) -> Callable[[int], Sequence[Observer]]:
        windows = self._windows
        if windows is None:
            return observers_of
        windows.restart()
        return lambda step: (windows, *observers_of(step))

    def _stream(self, replay: Replay, repeats: int, tracer: Tracer | None) -> tuple[float, ...]:
        """Prime, warm up, time, drain. Returns the seconds of each round of each repeat, per step.

        A stream whose context grows is run through once untimed, and then from its start each time.
        """
        if self.plan.grows:
            self._one_stream(replay, 0, 1, None)
        with self.meter.sampling(traced=tracer is not None):
            self._kept_in = self.journal
            seconds = self._repeats(replay, repeats, tracer)
            self._kept_in = Journal()
            if tracer is None:
                self._go_on_for_energy(replay, sum(seconds) / repeats)
        return tuple(each / self.steps_per_graph for each in seconds)

    def _enter_regime(self, replay: Replay, repeats: int) -> int:
        """Bring the clock to where the run's regime has it; how many repeats are then timed.

        One repeat is a whole pass where the context grows.
        """
        lasted_s = sum(self._repeats(replay, 1, None))
        if self.run.regime == "burst":
            regimes.rest()
            return regimes.repeats_of_burst(self.session, lasted_s, repeats)
        settling = repeats_for(self.session, "settling", regimes.SETTLING_S, lasted_s)
        lasted_s = sum(self._repeats(replay, settling, None)) / settling
        scored = repeats_for(self.session, "scored", regimes.SCORED_S, lasted_s)
        return max(repeats, min(scored, regimes.MAX_REPEATS))

    def _go_on_for_energy(self, replay: Replay, repeat_s: float) -> None:
        """Repeat for as long as was asked for; nothing but the meter takes note."""
        lasted_s = 0.0
        while more := self.meter.extra_repeats(self.session, repeat_s, lasted_s):
            lasted_s = sum(self._repeats(replay, more, None))
            repeat_s = lasted_s / more

    def _repeats(self, replay: Replay, repeats: int, tracer: Tracer | None) -> tuple[float, ...]:
        if not self.plan.grows:
            return self._one_stream(replay, self._num_warm_ups, repeats, tracer)
        if tracer:
            tracer.start()
        passes = [self._one_stream(replay, 0, 1, tracer) for _ in range(repeats)]
        return tuple(chain.from_iterable(passes))

    def _one_stream(
        self, replay: Replay, warm_ups: int, repeats: int, tracer: Tracer | None
    ) -> tuple[float, ...]:
        if self._counts:
            self._counts.restart()
        self._issue(self.prologue)
        for _ in range(warm_ups):
            replay(0)
        if tracer and not self.plan.grows:
            tracer.start()
        seconds = self._timed(replay, repeats, tracer)
        self._issue(self.epilogue)
        self._synchronize()
        return seconds

    def _timed(self, replay: Replay, repeats: int, tracer: Tracer | None) -> tuple[float, ...]:
        # A stream is timed from end to end; a step by itself from its own start. A mark that is
        # not needed would be time on the device between two steps.
        end_to_end = self.plan.is_stream and tracer is None
        times = StepTimes(
            self._kept_in,
            "traced_step_s" if tracer else "untraced_step_s",
            self.stopwatch,
            end_to_end,
            self.steps_per_graph,
        )
        self.stopwatch.mark()
        with times.kept():
            for number, index in enumerate(list(range(len(self.rounds))) * repeats):
                self.progress.begin_repeat(number // len(self.rounds))
                if not self.plan.is_stream:
                    self.session.align()
                if not end_to_end:
                    self.stopwatch.mark()
                replay(index)
                self.stopwatch.mark()
                times.repeat_issued()
                if tracer and (spans := tracer.repeat_ended()):
                    self._keep_rows(spans)
            with self.session.waiting():
                seconds = tuple(times.rest(self.progress))
        ended_s = time.perf_counter()
        self.meter.window_ended(ended_s, sum(seconds), len(seconds) * self.steps_per_graph)
        return seconds

    def _issue(self, steps: Sequence[Sequence[Action]]) -> None:
        for actions in steps:
            self.engine.run(actions)
        self._join()

    def _join(self) -> None:
        with self.session.waiting():
            self.engine.peers.join()

    def _synchronize(self) -> None:
        if self.session.device.type == "cuda":
            with self.session.waiting():
                torch.cuda.synchronize(self.session.device)

    @property
    def _num_warm_ups(self) -> int:
        """Enough for the pipeline to fill and settle."""
        return max(5, 2 * self.plan.body[0][1].placement.num_stages)

    def _rows(self, spans: Sequence[Sequence[Spans]]) -> list[Row]:
        """Rows of the body; where a graph holds it several times, of the last time."""
        return list(chain.from_iterable(map(self._round_rows, range(len(spans)), spans)))

    def _keep_rows(self, spans: Sequence[Spans]) -> None:
        self.journal.rows(self._round_rows(self._rounds_kept, spans))
        self._rounds_kept += 1

    def _round_rows(self, index: int, steps: Sequence[Spans]) -> list[Row]:
        replaced, rounds = self.engine.peers.replaces_messages, self.plan.rounds
        repeat, places = index // len(rounds), rounds[index % len(rounds)]
        rows: list[Row] = []
        for place, found in zip(places, steps[-len(places) :], strict=True):
            step, program = self.plan.body[place][0], self.programs[place]
            rows += rows_of(program, found, repeat=repeat, step=step, replaced=replaced)
        return rows


def _slot_name(slot: Slot) -> str:
    return f"{slot.buffer.name} of layer {slot.layer}" if slot.layer >= 0 else slot.buffer.name


def _under_nsys() -> bool:
    """Nsight Systems names its session to the processes it profiles."""
    return "NSYS_PROFILING_SESSION_ID" in os.environ

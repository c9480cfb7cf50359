"""Who times each op: the host's clock, CUDA events, or CUPTI. One class each, one shape of answer.

A tracer gives observers for each step of the body, is told when a repeat begins and ends, and
returns, per repeat and step, the span of every op.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from layerwise.hw.errors import NotAvailableError, UnmeasuredOpError
from layerwise.hw.instrument.cupti import GraphNodeMap, KernelRecorder
from layerwise.hw.instrument.observe import (
    EventTimer,
    HostClock,
    Lane,
    NvtxRanges,
    Observer,
    nvtx_ranges,
)
from layerwise.hw.instrument.spans import (
    GraphNodeMismatchError,
    OpSpan,
    match_graph_nodes,
    spans_by_op_eager,
    spans_by_op_graph,
)
from layerwise.hw.options import Timing
from layerwise.hw.ranks.agreement import agree
from layerwise.hw.ranks.session import Session
from layerwise.hw.rows import Spans
from layerwise.sim.plan.errors import MissingPackageError
from layerwise.sim.plan.program import PlacedOp

NVTX_INJECTION = "NVTX_INJECTION64_PATH"


class Tracer(Protocol):
    """Times the ops of a repeated body of steps."""

    def observers(self, step: int) -> tuple[Observer, ...]: ...
    def start(self) -> None: ...
    def repeat_ended(self) -> list[Spans] | None: ...
    def stop(self) -> list[list[Spans]]: ...


class ClockTracer:
    """The host's clock, for the CPU, where a launch returns when its work is done."""

    def __init__(self, num_steps: int) -> None:
        self._clocks = [HostClock() for _ in range(num_steps)]
        self._ranges = nvtx_ranges()
        self._repeats: list[list[Spans]] = []

    def observers(self, step: int) -> tuple[Observer, ...]:
        return (*self._ranges, self._clocks[step])

    def start(self) -> None:
        for clock in self._clocks:
            clock.take()

    def repeat_ended(self) -> list[Spans]:
        self._repeats.append([clock.take() for clock in self._clocks])
        return self._repeats[-1]

    def stop(self) -> list[list[Spans]]:
        return self._repeats


class EventTracer:
    """CUDA events around each op. The device drains after each repeat, to read them."""

    def __init__(self, num_steps: int, *, in_graph: bool) -> None:
        self._timers = [EventTimer(external=in_graph) for _ in range(num_steps)]
        self._ranges = () if in_graph else nvtx_ranges()
        self._repeats: list[list[Spans]] = []

    def observers(self, step: int) -> tuple[Observer, ...]:
        return (*self._ranges, self._timers[step])

    def start(self) -> None:
        torch.cuda.synchronize()

    def repeat_ended(self) -> list[Spans]:
        torch.cuda.synchronize()
        self._repeats.append([timer.take() for timer in self._timers])
        return self._repeats[-1]

    def stop(self) -> list[list[Spans]]:
        return self._repeats


class CuptiTracer:
    """Kernel times from CUPTI: joined by graph node under replay, by NVTX range when eager.

    Construct it before the capture, and before the first nvtx call of the process. Raises
    MissingPackageError and NotAvailableError, and has given back by then what it took: another
    tool keeps CUPTI and its NVTX ranges.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        in_graph: bool,
        make_recorder: Callable[[], KernelRecorder] = KernelRecorder,
    ) -> None:
        self._num_steps, self._in_graph = num_steps, in_graph
        self._nodes = GraphNodeMap()
        self._recorder = make_recorder()
        self._injection = os.environ.get(NVTX_INJECTION)
        try:
            self._recorder.open()
        except Exception as error:
            self._leave_nvtx()
            raise _cupti_problem(error) from error
        try:
            self._ranges = () if in_graph else (NvtxRanges(),)
        except ImportError as error:
            self.abandon()
            raise _cupti_problem(error) from error

    def abandon(self) -> None:
        """Give CUPTI back before anything was recorded."""
        self._recorder.close()
        self._leave_nvtx()

    def _leave_nvtx(self) -> None:
        if self._injection is None:
            os.environ.pop(NVTX_INJECTION, None)
        else:
            os.environ[NVTX_INJECTION] = self._injection

    def observers(self, step: int) -> tuple[Observer, ...]:
        return (_NodeMarks(self._nodes, step),) if self._in_graph else self._ranges

    def start(self) -> None:
        self._recorder.start()

    def repeat_ended(self) -> None:
        pass

    def stop(self) -> list[list[Spans]]:
        self._recorder.stop()
        self._recorder.close()
        if self._recorder.errors:
            raise UnmeasuredOpError(f"CUPTI records were lost: {self._recorder.errors[:3]}")
        return self._from_graph() if self._in_graph else self._from_ranges()

    def _from_graph(self) -> list[list[Spans]]:
        kernels = [kernel for kernel in self._recorder.kernels if kernel.graph_node_id]
        observed = {kernel.graph_node_id for kernel in kernels}
        try:
            names = match_graph_nodes(self._nodes.nodes, observed, self._recorder.cloned_nodes)
        except GraphNodeMismatchError as error:
            raise UnmeasuredOpError(f"{error}; or measure with --timing events") from error
        launches = spans_by_op_graph(kernels, names)
        return [_split_steps(launch, self._num_steps) for launch in launches]

    def _from_ranges(self) -> list[list[Spans]]:
        recorder = self._recorder
        steps = spans_by_op_eager(recorder.kernels, recorder.api_calls, recorder.markers)
        spans = [_in_seconds(step) for step in steps]
        return [spans[i : i + self._num_steps] for i in range(0, len(spans), self._num_steps)]


class _NodeMarks(Observer):
    """Attributes the nodes that each op adds to the graph; names carry the step's index."""

    def __init__(self, nodes: GraphNodeMap, step: int) -> None:
        self._nodes, self._step = nodes, step

    def end(self, placed: PlacedOp, lane: Lane) -> None:
        self._nodes.mark(f"{self._step}|{placed.name}")


def _split_steps(launch: dict[str, OpSpan], num_steps: int) -> list[Spans]:
    steps: list[dict[str, OpSpan]] = [{} for _ in range(num_steps)]
    for key, span in launch.items():
        step, _, name = key.partition("|")
        steps[int(step)][name] = span
    return [_in_seconds(step) for step in steps]


def _in_seconds(spans: dict[str, OpSpan]) -> Spans:
    # Nanoseconds since the epoch have more digits than a float: subtract first.
    origin = min((span.start_ns for span in spans.values()), default=0)
    return {
        name: ((span.start_ns - origin) * 1e-9, (span.end_ns - origin) * 1e-9)
        for name, span in spans.items()
    }


def _cupti_problem(error: Exception) -> MissingPackageError | NotAvailableError:
    if isinstance(error, ImportError):
        return MissingPackageError(
            error.name or "cupti-python",
            "time each kernel (timing 'cupti')",
            "pip install cupti-python nvtx",
            "timing 'events'",
        )
    if isinstance(error, FileNotFoundError):
        return NotAvailableError(f"CUPTI is missing: {error}; use --timing events")
    # CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED under nsys, ncu or torch.profiler.
    return NotAvailableError(
        f"CUPTI refuses: {type(error).__name__}: {error}; another tool may hold it "
        "(nsys, ncu, torch.profiler): run without it, or use --timing events"
    )


@dataclass(frozen=True)
class ChosenTracer:
    """A tracer, what it times by, and (where that is not the default) why."""

    tracer: Tracer
    timing: Timing
    fallback: str = ""


def default_timing(device_type: str) -> Timing:
    """Who times where nobody was asked for: CUPTI on a GPU, the host's clock on the CPU."""
    return "cupti" if device_type == "cuda" else "clock"


def choose_tracer(
    asked: Timing | None,
    num_steps: int,
    session: Session,
    *,
    in_graph: bool,
    make_recorder: Callable[[], KernelRecorder] = KernelRecorder,
) -> ChosenTracer:
    """The tracer that was asked for, or the device's default (`asked` None).

    Where CUPTI is the default and one rank cannot have it, all ranks take CUDA events, and the
    first says so on stderr. Raises MissingPackageError and NotAvailableError where CUPTI was asked
    for by name.
    """
    timing = asked or default_timing(session.device.type)
    if asked or timing != "cupti":
        tracer = make_tracer(timing, num_steps, in_graph=in_graph, make_recorder=make_recorder)
        return ChosenTracer(tracer, timing)
    ours, problem = _try_cupti(num_steps, in_graph, make_recorder)
    fallback = agree(session, "cupti", problem, _first_problem)
    if not fallback:
        assert ours
        return ChosenTracer(ours, "cupti")
    if ours:
        ours.abandon()
    if session.rank == 0 or session.store is None:
        print(f"hw: op times are by CUDA events, not by CUPTI: {fallback}", file=sys.stderr)
    return ChosenTracer(EventTracer(num_steps, in_graph=in_graph), "events", fallback)


def _try_cupti(
    num_steps: int, in_graph: bool, make_recorder: Callable[[], KernelRecorder]
) -> tuple[CuptiTracer | None, str]:
    try:
        return CuptiTracer(num_steps, in_graph=in_graph, make_recorder=make_recorder), ""
    except (MissingPackageError, NotAvailableError) as error:
        return None, " ".join(str(error).split())


def _first_problem(problems: Sequence[str]) -> str:
    """The problem of the first rank that has one, with its rank where there are several."""
    found = [(rank, problem) for rank, problem in enumerate(problems) if problem]
    if not found:
        return ""
    rank, problem = found[0]
    return problem if len(problems) == 1 else f"rank {rank}: {problem}"


def make_tracer(
    timing: Timing,
    num_steps: int,
    *,
    in_graph: bool,
    make_recorder: Callable[[], KernelRecorder] = KernelRecorder,
) -> Tracer:
    """The tracer of a timing. Raises MissingPackageError or NotAvailableError without CUPTI."""
    match timing:
        case "clock":
            return ClockTracer(num_steps)
        case "events":
            return EventTracer(num_steps, in_graph=in_graph)
        case "cupti":
            return CuptiTracer(num_steps, in_graph=in_graph, make_recorder=make_recorder)
        case "none":
            raise ValueError("timing 'none' traces nothing")


def last_repeats(repeats: Sequence[list[Spans]], expected: int) -> Sequence[list[Spans]]:
    """The last `expected` repeats: what was under way when the tracer started is left out.

    Raises UnmeasuredOpError when the tracer saw fewer.
    """
    if len(repeats) < expected:
        raise UnmeasuredOpError(
            f"the tracer saw {len(repeats)} repeats where {expected} ran; "
            "measure with --timing events"
        )
    return repeats[len(repeats) - expected :]

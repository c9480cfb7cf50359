"""Measure many small programs: a calibration sweep, resumable, one JSON line per program.

Random data is made once, in one pool, and carved anew for each point: the time goes into
replays.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from layerwise.hw.engine.collectives import ReplacedPeers
from layerwise.hw.engine.execute import Engine
from layerwise.hw.engine.graphs import capture
from layerwise.hw.engine.memory import (
    DeviceMemory,
    Slot,
    TensorKey,
    budget_of,
    free_bytes_of,
    random_fill,
    slots_of,
)
from layerwise.hw.engine.schedule import Action, actions_of
from layerwise.hw.engine.weights import WEIGHT_STD
from layerwise.hw.errors import DoesNotFitError, ExecutionError
from layerwise.hw.instrument.power import nvml_gauge
from layerwise.hw.instrument.regimes import time_both
from layerwise.hw.instrument.timing import MAX_REPLAYS, MIN_REPLAYS, time_by_events
from layerwise.hw.ranks.session import usable_device
from layerwise.sim.plan import ops
from layerwise.sim.plan.errors import FileFormatError, ProgramError
from layerwise.sim.plan.program import Program

MIN_MEASURED_S = 0.015
ALIGNMENT_BYTES = 256
POOL_CHUNK_ELEMENTS = 2**28
# Graph pools, workspaces and attention results live outside the pool.
POOL_FRACTION = 0.6
# Memory of graphs that are gone stays reserved until the allocator is told to let go.
POINTS_PER_CLEANUP = 10

Progress = Callable[[str], None]


class RandomPool:
    """Device memory filled once with random bf16, carved into weights and KV that never overlap.

    As fp32 the same bits are random numbers of about the same size: the upper half decides. What
    ops write is fresh for each point: values fed from point to point would decay to zero.
    """

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        self.device, self.num_bytes = device, num_bytes // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        self._pool = torch.empty(self.num_bytes // 2, dtype=torch.bfloat16, device=device)
        for chunk in self._pool.split(POOL_CHUNK_ELEMENTS):
            chunk.normal_(0.0, WEIGHT_STD)

    def memory(self, slots: Mapping[TensorKey, Slot], vocab_size: int) -> DeviceMemory:
        """Tensors for all slots; what was carved before is given up.

        Raises DoesNotFitError with the budget.
        """
        carved = {key: slot for key, slot in slots.items() if slot.buffer.kind in ("weight", "kv")}
        if sum(map(_aligned_bytes, carved.values())) > self.num_bytes:
            device = f"the pool on {self.device}"
            raise DoesNotFitError("the point", device, self.num_bytes, budget_of(carved))
        fresh = random_fill(self.device, vocab_size=vocab_size)
        tensors: dict[TensorKey, Tensor] = {}
        offset = 0
        for key, slot in slots.items():
            if key not in carved:
                tensors[key] = fresh(slot)
                continue
            tensors[key] = self._carve(slot, offset)
            offset += _aligned_bytes(slot)
        return DeviceMemory(self.device, tensors)

    def _carve(self, slot: Slot, offset: int) -> Tensor:
        buffer = slot.buffer
        part = self._pool[offset // 2 : (offset + buffer.num_bytes) // 2]
        return part.view(getattr(torch, buffer.dtype)).view(buffer.shape)


def measure_programs(
    points: Iterable[tuple[str, Program]],
    *,
    device: str,
    out: Path,
    budget_s: float = math.inf,
    pool_bytes: int | None = None,
    both_regimes: bool = False,
    progress: Progress = print,
) -> int:
    """Time programs of local ops, each by itself; append one JSON line per point to `out`.

    A line has `name`, `step_s` (the median of `num_replays`), `best_s`, `num_ops`; or `name` and
    `does_not_fit`, or `failed` (a kernel that refuses the shape), each with the reason. Names
    already in the file are skipped, so an interrupted sweep goes on where it stopped; it stops by
    itself after `budget_s`. `both_regimes`: each point rests and then goes on for seconds; its line
    has the fields of `regimes.Both` (6 s a point, CUDA only). On the CPU steps are run eagerly by the host's clock. Returns the
    number of points left to do.
    """
    chosen = usable_device(device)
    todo = _without_done(points, out)
    if not todo:
        return 0
    started_s = time.monotonic()
    pool = RandomPool(chosen, pool_bytes or int(POOL_FRACTION * free_bytes_of(chosen)))
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        for done, (name, program) in enumerate(todo):
            elapsed_s = time.monotonic() - started_s
            if elapsed_s > budget_s:
                progress(f"sweep: {budget_s:.0f} s are used up, {len(todo) - done} points left")
                return len(todo) - done
            _write(file, {"name": name, **_measure_point(name, program, pool, both_regimes)})
            if done % POINTS_PER_CLEANUP == 0:
                let_go(chosen)
            _report(progress, done + 1, len(todo), time.monotonic() - started_s)
    return 0


def _without_done(points: Iterable[tuple[str, Program]], out: Path) -> list[tuple[str, Program]]:
    done = names_in(out)
    return [(name, program) for name, program in points if name not in done]


def names_in(out: Path) -> set[str]:
    """The points that a sweep's file already has. A line cut short at the end is removed.

    Raises FileFormatError for any other line that is not a point.
    """
    if not out.exists():
        return set()
    text = out.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    if rest:
        # An interrupted write: that point is measured again.
        out.write_text(whole + "\n" if whole else "", encoding="utf-8")
    try:
        return {json.loads(line)["name"] for line in whole.splitlines() if line}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise FileFormatError(f"{out}: is not a sweep's file of JSON lines: {error}") from error


def _measure_point(
    name: str, program: Program, pool: RandomPool, both_regimes: bool
) -> dict[str, object]:
    for placed in program:
        if placed.op.meets:
            raise ProgramError(f"{name}: {placed.name} needs another rank; sweep local ops only")
    try:
        memory = pool.memory(slots_of([program]), _vocab_size(program))
        engine = Engine(program.rank, memory, ReplacedPeers())
        if both_regimes:
            return {**_time_both(engine, actions_of(program)), "num_ops": len(program)}
        seconds = _time_steps(engine, actions_of(program))
    except (DoesNotFitError, torch.OutOfMemoryError) as error:
        return {"does_not_fit": str(error)}
    except ExecutionError as error:
        if pool.device.type == "cuda":
            # Raises when the device is lost: then no later point can be measured either.
            torch.cuda.synchronize(pool.device)
        out_of_memory = isinstance(error.__cause__, torch.OutOfMemoryError)
        return {"does_not_fit" if out_of_memory else "failed": str(error)}
    return {
        "step_s": statistics.median(seconds),
        "best_s": min(seconds),
        "num_replays": len(seconds),
        "num_ops": len(program),
    }


def _time_steps(engine: Engine, actions: tuple[Action, ...]) -> list[float]:
    """Seconds of each replay, at least MIN_REPLAYS and MIN_MEASURED_S in all."""
    engine.run(actions)
    if engine.memory.device.type == "cpu":
        return _time_by_clock(lambda: engine.run(actions))
    graph = capture(engine, [actions])
    (first_s,) = time_by_events(graph.replay, 1)
    count = math.ceil(MIN_MEASURED_S / max(first_s, 1e-6))
    seconds = time_by_events(graph.replay, min(MAX_REPLAYS, max(MIN_REPLAYS, count)))
    graph.reset()
    return seconds


def _time_both(engine: Engine, actions: tuple[Action, ...]) -> dict[str, object]:
    """The program in both regimes of the clock, with the power that it drew."""
    engine.run(actions)
    graph = capture(engine, [actions])
    step_s = min(time_by_events(graph.replay, 3))
    found = time_both(graph.replay, step_s, nvml_gauge(engine.memory.device))
    graph.reset()
    return asdict(found)


def _time_by_clock(step: Callable[[], None]) -> list[float]:
    seconds: list[float] = []
    while len(seconds) < MIN_REPLAYS or sum(seconds) < MIN_MEASURED_S:
        started_s = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started_s)
    return seconds


def _vocab_size(program: Program) -> int:
    """Token ids must name rows of the smallest table that they look up."""
    tables = [p.op.weight.shape[0] for p in program if isinstance(p.op, ops.Embed)]
    return min(tables, default=2)


def _aligned_bytes(slot: Slot) -> int:
    return math.ceil(slot.buffer.num_bytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def let_go(device: torch.device) -> None:
    """Give back what graphs of earlier points reserved: pools, and a cuBLAS workspace a stream."""
    if device.type == "cuda":
        torch._C._cuda_clearCublasWorkspaces()  # pyright: ignore[reportAttributeAccessIssue]
        torch.cuda.empty_cache()


def _write(file: TextIO, line: Mapping[str, object]) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()


def _report(progress: Progress, done: int, total: int, elapsed_s: float) -> None:
    if done == total or done % 25 == 0:
        left_s = elapsed_s / done * (total - done)
        progress(f"sweep: {done} of {total} points, {elapsed_s:.0f} s, about {left_s:.0f} s left")

"""Readings of the memory system itself, taken beside a measurement: what no op can beat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from statistics import median

import torch
from torch import Tensor

from layerwise.hw.instrument.timing import time_by_events
from layerwise.hw.kernels import dispatch as kernels
from layerwise.hw.kernels.device import num_sms_of
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.program import Program

BUFFER_BYTES = 512 * 2**20
NUM_BUFFERS = 4
PASSES = 6
PROGRAMS_PER_SM = 4


def read_bandwidth(device: torch.device) -> float:
    """The best rate at which one kernel reads HBM, in bytes/s.

    Rotates over 2 GiB, so that no byte is left in the L2 from the pass before.
    """
    sink = read_sink(device)
    buffers = [
        torch.empty(BUFFER_BYTES // 2, dtype=torch.bfloat16, device=device).normal_()
        for _ in range(NUM_BUFFERS)
    ]
    kernels.read_bandwidth_kernel(buffers[0], sink)
    turn = cycle(buffers)
    read_s = time_by_events(
        lambda: kernels.read_bandwidth_kernel(next(turn), sink), PASSES * NUM_BUFFERS
    )
    return BUFFER_BYTES / min(read_s)


def read_sink(device: torch.device) -> Tensor:
    """Where the read kernel leaves its sums: one int32 for each of its programs."""
    return torch.empty(PROGRAMS_PER_SM * num_sms_of(device), dtype=torch.int32, device=device)


def weight_and_kv_read_bytes(programs: Iterable[Program]) -> int:
    """Bytes of weights and KV that the programs read, each op by itself."""
    return sum(
        size
        for program in programs
        for placed in program
        for buffer, size in demand_of(placed.op).reads
        if buffer.kind in ("weight", "kv")
    )


CURVE_GRAPH_S = 400e-6
CURVE_REPLAYS = 9


def read_curve(device: torch.device, sizes_bytes: Sequence[int]) -> list[tuple[int, float]]:
    """(working set in bytes, seconds of one pass) of reads repeated over one buffer, in a graph.

    Small sets are served by the L2, large ones by HBM; the step between is the L2's edge. Each
    pass is one kernel, so its launch is in the time.
    """
    sink = read_sink(device)
    pool = torch.empty(max(sizes_bytes) // 2, dtype=torch.bfloat16, device=device).normal_()
    return [(size, _pass_seconds(pool[: size // 2], sink)) for size in sizes_bytes]


def _pass_seconds(buffer: torch.Tensor, sink: torch.Tensor) -> float:
    guess_s = 2e-6 + buffer.nbytes / 4e12
    passes = max(4, round(CURVE_GRAPH_S / guess_s))
    kernels.read_bandwidth_kernel(buffer, sink)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(passes):
            kernels.read_bandwidth_kernel(buffer, sink)
    graph.replay()
    return median(time_by_events(graph.replay, CURVE_REPLAYS)) / passes

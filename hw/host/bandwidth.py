"""Readings of the memory system itself, taken beside a measurement: what no op can beat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from hw.kernels import dispatch as kernels
from sim.plan.demand import demand_of
from sim.plan.program import Program

BUFFER_BYTES = 512 * 2**20
NUM_BUFFERS = 4
PASSES = 6
PROGRAMS_PER_SM = 4


def read_bandwidth(device: torch.device) -> float:
    """The best rate at which one kernel reads HBM, in bytes/s.

    Rotates over 2 GiB, so that no byte is left in the L2 from the pass before.
    """
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    sink = torch.empty(PROGRAMS_PER_SM * num_sms, dtype=torch.int32, device=device)
    buffers = [
        torch.empty(BUFFER_BYTES // 2, dtype=torch.bfloat16, device=device).normal_()
        for _ in range(NUM_BUFFERS)
    ]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(PASSES * NUM_BUFFERS + 1)]
    kernels.read_bandwidth_kernel(buffers[0], sink)
    marks[0].record()
    for index, mark in enumerate(marks[1:]):
        kernels.read_bandwidth_kernel(buffers[index % NUM_BUFFERS], sink)
        mark.record()
    torch.cuda.synchronize(device)
    times_ms = [a.elapsed_time(b) for a, b in zip(marks[:-1], marks[1:], strict=True)]
    return BUFFER_BYTES / (min(times_ms) / 1e3)


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
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    sink = torch.empty(PROGRAMS_PER_SM * num_sms, dtype=torch.int32, device=device)
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
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(CURVE_REPLAYS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) / 1e3 for a, b in zip(marks[:-1], marks[1:], strict=True))
    return times[len(times) // 2] / passes

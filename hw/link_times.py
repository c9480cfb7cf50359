"""Time messages and collectives between ranks against their payload, in CUDA graphs.

The sizes and the graph launch are those of decoding; eager launches would time the host.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from hw.session import Session

SIZES = tuple(2**power for power in range(10, 28))
OPS_PER_GRAPH = 20
REPLAYS = 7

Timings = dict[str, list[tuple[int, float]]]


def time_links(session: Session, sizes: tuple[int, ...] = SIZES) -> Timings:
    """(payload bytes, seconds) of `send`, `all_reduce` and `all_gather` over all ranks.

    Each is the median over replays of a graph of OPS_PER_GRAPH of them in a row, on this rank: a
    rank whose host was early waits for the others, so the shortest time over ranks is the transfer.
    A message goes from rank 0 to rank 1; the other ranks' time for it is nothing. The payload of
    an all-gather is its whole output. Every rank returns its own timings.
    """
    pool = torch.empty(max(sizes), dtype=torch.bfloat16, device=session.device).normal_()
    gathered = torch.empty(max(sizes) // 2, dtype=torch.bfloat16, device=session.device)
    group = dist.new_group([0, 1])
    edge = group if isinstance(group, ProcessGroup) else None
    found: Timings = {"send": [], "all_reduce": [], "all_gather": []}
    for size in sizes:
        tensor, output = pool[: size // 2], gathered[: size // 2]
        shard = pool[: size // 2 // session.world_size]

        def message(tensor: torch.Tensor = tensor) -> None:
            if session.rank == 0:
                dist.send(tensor, group=edge, group_dst=1)
            elif session.rank == 1:
                dist.recv(tensor, group=edge, group_src=0)

        def reduce(tensor: torch.Tensor = tensor) -> None:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)

        def gather(output: torch.Tensor = output, shard: torch.Tensor = shard) -> None:
            dist.all_gather_into_tensor(output, shard)

        for name, op in (("send", message), ("all_reduce", reduce), ("all_gather", gather)):
            found[name].append((size, _seconds_per_op(session, op)))
    return found


def _seconds_per_op(session: Session, op: Callable[[], None]) -> float:
    for _ in range(3):
        op()
    session.align()
    torch.cuda.synchronize(session.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(OPS_PER_GRAPH):
            op()
    times = []
    for _ in range(REPLAYS):
        session.align()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize(session.device)
        times.append(start.elapsed_time(end) / 1e3 / OPS_PER_GRAPH)
    # A communicator cannot be destroyed while a graph holds its kernels.
    graph.reset()
    return median(times)

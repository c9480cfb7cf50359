"""How an engine reaches other ranks: for real, or with every message replaced.

Each tensor-parallel group and each directed edge and channel has a communicator of its own, so
that no send waits behind a receive: rank 0 -> 1 `act` and rank 1 -> 0 `token` never share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from layerwise.hw.engine.memory import TensorKey, one_shot_reduces, tensor_key
from layerwise.hw.engine.peer_memory import PeerMemory, ReducePairs, require_gpu
from layerwise.hw.instrument.observe import Lane
from layerwise.hw.ranks.gathering import all_gather
from layerwise.sim.plan import ops
from layerwise.sim.plan.program import Program

# A posted receive spins on its SMs until the message comes: on 8 of them by NCCL's own choice, which
# took 92 to 94 % of the steps of two-GPU pipelines to 95 to 98 % when it was 2 (two H200s, messages of
# 64 KiB). Larger messages need the blocks.
FEW_BLOCKS = 2
SMALL_BYTES = 128 * 2**10

Edge = tuple[int, int, str]
Group = tuple[int, ...]


class Peers(Protocol):
    """The other ranks, as an engine sees them.

    `receive` posts; whoever reads the buffer calls `wait` first, whoever overwrites a buffer that
    was sent calls `before_write`. `on(lane)` is the stream to launch on, ordered after what the
    compute stream holds. `join` orders the compute stream after everything. `all_reduce` returns
    the tensor that holds the sum: the one it was given, or another to put behind the buffer.
    """

    replaces_messages: bool

    def on(self, lane: Lane) -> AbstractContextManager[object]: ...
    def send(self, op: ops.Send, tensor: Tensor) -> None: ...
    def receive(self, op: ops.Recv, tensor: Tensor) -> None: ...
    def wait(self, tensor: Tensor) -> None: ...
    def before_write(self, tensor: Tensor) -> None: ...
    def all_reduce(self, op: ops.AllReduce, tensor: Tensor) -> Tensor: ...
    def all_gather(self, op: ops.AllGather, source: Tensor, output: Tensor) -> None: ...
    def join(self) -> None: ...
    def close(self) -> None: ...


class ReplacedPeers:
    """One rank alone: every message is the local buffer as it stands, and no device work."""

    replaces_messages = True

    def on(self, lane: Lane) -> AbstractContextManager[object]:
        return nullcontext()

    def send(self, op: ops.Send, tensor: Tensor) -> None:
        pass

    def receive(self, op: ops.Recv, tensor: Tensor) -> None:
        pass

    def wait(self, tensor: Tensor) -> None:
        pass

    def before_write(self, tensor: Tensor) -> None:
        pass

    def all_reduce(self, op: ops.AllReduce, tensor: Tensor) -> Tensor:
        return tensor

    def all_gather(self, op: ops.AllGather, source: Tensor, output: Tensor) -> None:
        pass

    def join(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Routes:
    """The communicators that a run's programs need, in one order on every rank.

    `edges`: the largest message of each. `peer_bytes`: the peer memory that a group's one-shot
    all-reduces take on each of its ranks.
    """

    groups: tuple[Group, ...]
    edges: Mapping[Edge, int]
    peer_bytes: Mapping[Group, int] = field(default_factory=dict[Group, int])


def routes_of(programs: Iterable[Program]) -> Routes:
    """Collect groups, edges and peer memory over the programs of all ranks and steps."""
    every = tuple(programs)
    groups: set[Group] = set()
    edges: dict[Edge, int] = {}
    # Layers share segments: each needs to be looked at once per rank.
    segments = {(p.rank, id(part.segment)): part.segment for p in every for part in p.parts}
    for (rank, _), segment in segments.items():
        for op in segment.ops:
            match op:
                case ops.AllReduce() | ops.AllGather():
                    groups.add(op.group)
                case ops.Send() | ops.Recv():
                    ends = (rank, op.peer) if isinstance(op, ops.Send) else (op.peer, rank)
                    edge = (*ends, op.channel)
                    edges[edge] = max(op.payload_bytes, edges.get(edge, 0))
                case _:
                    pass
    return Routes(tuple(sorted(groups)), dict(sorted(edges.items())), _peer_bytes(every))


def _peer_bytes(programs: Sequence[Program]) -> dict[Group, int]:
    """Group -> bytes for all tensors that its ranks sum in one shot, in the order of groups."""
    parts = [(program.rank, part) for program in programs for part in program.parts]
    segments = {id(part.segment): part.segment for _, part in parts}
    reduces = {key: one_shot_reduces(segment) for key, segment in segments.items()}
    sizes: dict[Group, dict[int, dict[TensorKey, int]]] = {}
    for rank, part in parts:
        for op in reduces[id(part.segment)]:
            key = tensor_key(op.buffer, part.layer, part.microbatch)
            sizes.setdefault(op.group, {}).setdefault(rank, {})[key] = op.buffer.num_bytes
    return {
        group: max(ReducePairs.num_bytes(tuple(own.values())) for own in by_rank.values())
        for group, by_rank in sorted(sizes.items())
    }


@dataclass(frozen=True, slots=True)
class _Pending:
    """A message under way: `handle.wait()` orders the current stream (the CPU: the host) after."""

    handle: dist.Work | torch.cuda.Event
    tensor: Tensor = field(repr=False)

    def wait(self) -> None:
        self.handle.wait()


class DistributedPeers:
    """Ranks in processes of their own, over torch.distributed: NCCL on CUDA, gloo on the CPU.

    Every rank constructs it with the same routes: creating a communicator is a collective act, and
    so is sharing memory. Raises NotAvailableError where one-shot all-reduces cannot run.
    """

    replaces_messages = False

    def __init__(self, routes: Routes, rank: int, device: torch.device) -> None:
        self.rank, self.device = rank, device
        if routes.peer_bytes:
            require_gpu(device)
        self._groups = {ranks: _new_group(ranks) for ranks in routes.groups}
        self._edges = {
            edge: _new_group(edge[:2], edge_options(size, device))
            for edge, size in routes.edges.items()
        }
        self._pairs = {
            ranks: ReducePairs(PeerMemory(group, num_bytes, device))
            for ranks, num_bytes in routes.peer_bytes.items()
            if (group := self._groups[ranks]) is not None
        }
        self._lanes: dict[Lane, torch.cuda.Stream] = {}
        if device.type == "cuda":
            self._lanes = {"send": torch.cuda.Stream(device), "recv": torch.cuda.Stream(device)}
        self._used_lanes: set[Lane] = set()
        self._sending: dict[int, _Pending] = {}
        self._receiving: dict[int, _Pending] = {}

    def on(self, lane: Lane) -> AbstractContextManager[object]:
        stream = self._lanes.get(lane)
        if stream is None:
            return nullcontext()
        self._used_lanes.add(lane)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(stream)

    def send(self, op: ops.Send, tensor: Tensor) -> None:
        group = self._edges[self.rank, op.peer, op.channel]
        work = dist.isend(tensor, op.peer, group=group)
        self._sending[tensor.data_ptr()] = self._pending(work, tensor)

    def receive(self, op: ops.Recv, tensor: Tensor) -> None:
        group = self._edges[op.peer, self.rank, op.channel]
        work = dist.irecv(tensor, op.peer, group=group)
        self._receiving[tensor.data_ptr()] = self._pending(work, tensor)

    def wait(self, tensor: Tensor) -> None:
        self._receiving.pop(tensor.data_ptr()).wait()

    def before_write(self, tensor: Tensor) -> None:
        pending = self._sending.pop(tensor.data_ptr(), None)
        if pending is not None:
            pending.wait()

    def all_reduce(self, op: ops.AllReduce, tensor: Tensor) -> Tensor:
        if op.algorithm == "one_shot":
            return self._pairs[op.group].all_reduce(tensor)
        dist.all_reduce(tensor, group=self._groups[op.group])
        return tensor

    def all_gather(self, op: ops.AllGather, source: Tensor, output: Tensor) -> None:
        """Shards arrive one after the other; their columns are then laid side by side."""
        shards = source.new_empty((len(op.group) * source.shape[0], source.shape[1]))
        all_gather(shards, source, group=self._groups[op.group])
        stacked = shards.view(len(op.group), *source.shape).transpose(0, 1)
        output.view(stacked.shape).copy_(stacked)

    def join(self) -> None:
        for pending in (*self._sending.values(), *self._receiving.values()):
            pending.wait()
        self._sending.clear()
        self._receiving.clear()
        # A lane that did not fork from a capture must not be joined to it.
        for lane in self._used_lanes:
            torch.cuda.current_stream(self.device).wait_stream(self._lanes[lane])
        self._used_lanes.clear()

    def close(self) -> None:
        self.join()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._pairs.clear()
        for group in (*self._groups.values(), *self._edges.values()):
            if group is not None:
                dist.destroy_process_group(group)

    def _pending(self, work: dist.Work | None, tensor: Tensor) -> _Pending:
        if work is None:
            raise RuntimeError(f"rank {self.rank} is not a member of the edge it uses")
        if not self._lanes:
            return _Pending(work, tensor)
        # The library has a stream inside; the lane waits for it, and others wait for the lane.
        work.wait()
        event = torch.cuda.Event()
        event.record()
        return _Pending(event, tensor)


def edge_options(largest_bytes: int, device: torch.device) -> dist.Backend.Options | None:
    """How an edge's communicator is made: where all messages are small, NCCL leaves SMs to others."""
    if device.type != "cuda" or largest_bytes > SMALL_BYTES:
        return None
    options = dist.ProcessGroupNCCL.Options()
    options.config.max_ctas = FEW_BLOCKS
    return options


def _new_group(
    ranks: Sequence[int], options: dist.Backend.Options | None = None
) -> ProcessGroup | None:
    """A communicator; None on ranks outside it."""
    group = dist.new_group(list(ranks), pg_options=options)
    return group if isinstance(group, ProcessGroup) else None

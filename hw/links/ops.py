"""Issue messages and collectives between ranks, n times in a row, as their links are timed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from layerwise.hw.engine.collectives import edge_options
from layerwise.hw.engine.peer_memory import PeerMemory, require_gpu
from layerwise.hw.errors import NotAvailableError
from layerwise.hw.ranks.gathering import all_gather, reduce_scatter

MESSAGES = ("send", "bidirectional")
# A communicator for small messages.
FEW = ", few blocks"
COLLECTIVES = ("all_reduce", "one_shot", "two_shot", "all_gather", "reduce_scatter")
# Every rank sends to the next and receives from the one before: all links at once.
RING = "ring"
OPS = (*MESSAGES, *COLLECTIVES, RING)
PEER_MEMORY_OPS = ("one_shot", "two_shot")

Issue = Callable[[int], None]
"""Issues an operation so many times in a row, on the current stream or joined to it."""


@dataclass
class Links:
    """One rank's communicators and the tensors that travel. Communicators are made by all ranks.

    `pool`, `output`: as many bytes as the largest payload. An edge has a communicator for each
    direction, as in the engine.
    """

    rank: int
    device: torch.device
    max_bytes: int
    dtype: torch.dtype = torch.bfloat16
    pool: Tensor = field(init=False)
    output: Tensor = field(init=False)
    _groups: dict[tuple[str, tuple[int, ...]], ProcessGroup | None] = field(
        default_factory=dict[tuple[str, tuple[int, ...]], ProcessGroup | None]
    )
    _lanes: tuple[torch.cuda.Stream, ...] = ()
    _peers: dict[tuple[int, ...], tuple[PeerMemory, Tensor]] = field(
        default_factory=dict[tuple[int, ...], tuple[PeerMemory, Tensor]]
    )

    def __post_init__(self) -> None:
        count = self.max_bytes // self.dtype.itemsize
        self.pool = torch.empty(count, dtype=self.dtype, device=self.device).normal_()
        self.output = torch.empty_like(self.pool)
        if self.device.type == "cuda":
            self._lanes = tuple(torch.cuda.Stream(self.device) for _ in range(2))

    def connect(self, op: str, ranks: tuple[int, ...]) -> ProcessGroup | None:
        """Make what an op needs; its group, None on ranks outside. A collective act of all ranks.

        Raises NotAvailableError, on all members, where memory cannot be shared.
        """
        group = self._group("there", ranks)
        if op in MESSAGES:
            for way in ("there", "back")[: 1 + (op == "bidirectional")]:
                self._group(way, ranks)
                if few := edge_options(0, self.device):
                    self._group(way + FEW, ranks, few)
        if op in PEER_MEMORY_OPS and group is not None and ranks not in self._peers:
            memory = PeerMemory(group, self.max_bytes, self.device)
            self._peers[ranks] = memory, memory.take((self.pool.numel(),), self.dtype)
        return group

    def issue(self, op: str, ranks: tuple[int, ...], payload_bytes: int) -> Issue:
        """An op on a payload, for a member of its group. A gather's payload is its output."""
        group = self.connect(op, ranks)
        assert group is not None
        count = payload_bytes // self.dtype.itemsize
        whole, output = self.pool[:count], self.output[:count]
        shard = whole[: count // len(ranks)]
        match op:
            case "send":
                return _again(self._message("there", ranks, whole))
            case "bidirectional":
                ways = self._message("there", ranks, whole), self._message("back", ranks, output)
                return self._side_by_side(ways)
            case "all_reduce":
                return _again(lambda: dist.all_reduce(whole, group=group))
            case "all_gather":
                return _again(lambda: all_gather(output, shard, group=group))
            case "reduce_scatter":
                part = output[: shard.numel()]
                return _again(lambda: reduce_scatter(part, whole, group=group))
            case "ring":
                return _again(self._neighbours(group, ranks, whole, output))
            case "one_shot":
                memory, pool = self._peers[ranks]
                return _again(lambda: memory.one_shot(pool[:count], output))
            case "two_shot":
                memory, pool = self._peers[ranks]
                return _again(lambda: memory.two_shot(pool[:count]))
            case _:
                raise NotAvailableError(f"--ops {op} is unknown; use some of {list(OPS)}")

    def refresh(self, payload_bytes: int) -> None:
        """New values, alike on no two ranks: sums in a row run out of range, and zeros are cheap."""
        count = payload_bytes // self.dtype.itemsize
        self.pool[:count].normal_()
        for _, pool in self._peers.values():
            pool[:count].normal_()

    def disconnect(self, ranks: tuple[int, ...]) -> None:
        """Let a group's shared memory go, on each of its members."""
        self._peers.pop(ranks, None)

    def close(self) -> None:
        """Leave all groups. No graph may be alive."""
        self._peers.clear()
        for group in self._groups.values():
            if group is not None:
                dist.destroy_process_group(group)
        self._groups.clear()

    def _group(
        self, way: str, ranks: tuple[int, ...], options: dist.Backend.Options | None = None
    ) -> ProcessGroup | None:
        if (way, ranks) not in self._groups:
            made = dist.new_group(list(ranks), pg_options=options)
            self._groups[way, ranks] = made if isinstance(made, ProcessGroup) else None
        return self._groups[way, ranks]

    def _message(self, way: str, ranks: tuple[int, ...], tensor: Tensor) -> Callable[[], object]:
        """This rank's half of a message between two ranks, `there` from the first to the second."""
        # As an engine's edges are made, of which each knows its largest message.
        few = edge_options(tensor.numel() * tensor.element_size(), tensor.device)
        group, (first, second) = self._groups[way + FEW if few else way, ranks], ranks
        sender, receiver = (first, second) if way == "there" else (second, first)
        if self.rank == sender:
            return lambda: dist.isend(tensor, receiver, group=group)
        return lambda: dist.irecv(tensor, sender, group=group)

    def _neighbours(
        self, group: ProcessGroup, ranks: tuple[int, ...], sent: Tensor, arrived: Tensor
    ) -> Callable[[], object]:
        """Send to the next rank of the ring and receive from the one before, in one call."""
        place, number = ranks.index(self.rank), len(ranks)
        after, before = ranks[(place + 1) % number], ranks[place - 1]

        def pass_on() -> None:
            _wait_all(
                dist.batch_isend_irecv(
                    [
                        dist.P2POp(dist.isend, sent, after, group),
                        dist.P2POp(dist.irecv, arrived, before, group),
                    ]
                )
            )

        return pass_on

    def _side_by_side(self, ways: Sequence[Callable[[], object]]) -> Issue:
        """Each way's messages one after the other, the ways on lanes of their own."""
        if not self._lanes:
            return lambda count: _wait_all([way() for _ in range(count) for way in ways])

        def issue(count: int) -> None:
            here = torch.cuda.current_stream(self.device)
            for lane in self._lanes:
                lane.wait_stream(here)
            for _ in range(count):
                for way, lane in zip(ways, self._lanes, strict=True):
                    with torch.cuda.stream(lane):
                        _wait_all([way()])
            for lane in self._lanes:
                here.wait_stream(lane)

        return issue


def check_ops(ops: Sequence[str], modes: Sequence[str], device: torch.device) -> None:
    """Raises NotAvailableError for what this device cannot do."""
    unknown = [op for op in ops if op not in OPS]
    if unknown:
        raise NotAvailableError(f"--ops {','.join(unknown)} is unknown; use some of {list(OPS)}")
    if any(op in PEER_MEMORY_OPS for op in ops):
        require_gpu(device)
    if "graph" in modes and device.type != "cuda":
        raise NotAvailableError("--modes graph needs CUDA; use --modes eager on the CPU")


def communication_variables() -> dict[str, str]:
    """What steers torch's shared memory; NCCL's own are in `layerwise.hw.host.affinity`."""
    return {
        key: os.environ[key]
        for key in sorted(os.environ)
        if key.startswith(("TORCH_SYMM_MEM", "TORCH_SYMMMEM"))
    }


def _again(op: Callable[[], object]) -> Issue:
    def issue(count: int) -> None:
        for _ in range(count):
            _wait_all([op()])

    return issue


def _wait_all(handles: Sequence[object]) -> None:
    """Wait for what is a handle: on CUDA the stream waits, on the CPU the host."""
    for handle in handles:
        if isinstance(handle, dist.Work):
            handle.wait()

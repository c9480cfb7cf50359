"""All-reduce over peer memory: every rank reads its peers' tensors itself, through NVLink.

The kernels are torch's (`torch.ops.symm_mem`); the ones that need NVLink multicast are not used.
Each of them waits for all ranks at its start and at its end, so that a rank may write its tensor
again as soon as its own kernel has ended. They run on one stream per rank, in one order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from layerwise.hw.errors import NotAvailableError
from layerwise.sim.plan.ops import ONE_SHOT_MAX_BYTES

# Vector loads of 16 bytes need it; a cache line and a TMA descriptor are content with it too.
ALIGNMENT_BYTES = 256


def padded_bytes(num_bytes: int) -> int:
    """What a tensor takes among others in peer memory."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class PeerMemory:
    """Memory that all ranks of a group see, at one offset on every rank, and sums over it.

    Constructing it is a collective act of the group. Raises NotAvailableError, on every rank of
    the group, when one of them cannot share its memory or reads wrong sums.
    """

    def __init__(self, group: ProcessGroup, num_bytes: int, device: torch.device) -> None:
        require_gpu(device)
        self.device, self._group, self._used_bytes = device, str(group.group_name), 0
        # An object for multicast is made for each region where the driver offers it; none is used.
        os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
        # From a pool, a region may start inside another, which torch 2.11's kernels overlook.
        os.environ["TORCH_SYMMMEM_IMPLICIT_POOL"] = "0"
        reason = ""
        try:
            self._region = _share(group, max(padded_bytes(num_bytes), ALIGNMENT_BYTES), device)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        # Every rank must know before one starts a kernel in which it waits for the others.
        _agree(group, device, ok=not reason, reason=reason)
        _agree(group, device, ok=self._sums_right(group), reason="it reads wrong sums")

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor in this memory that nobody has. Ranks take the same ones in the same order."""
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        start, self._used_bytes = self._used_bytes, self._used_bytes + padded_bytes(num_bytes)
        if self._used_bytes > self._region.nbytes:
            raise RuntimeError(
                f"peer memory of {self._region.nbytes} bytes has no room for {num_bytes} more"
            )
        return self._region[start : start + num_bytes].view(dtype).view(tuple(shape))

    def one_shot(self, source: Tensor, output: Tensor) -> None:
        """`output` = the sum of all ranks' `source`; `output` may lie anywhere else."""
        torch.ops.symm_mem.one_shot_all_reduce_out(source, "sum", self._group, output)

    def two_shot(self, tensor: Tensor) -> None:
        """`tensor` = the sum of all ranks' `tensor`: each sums a part and writes it to all."""
        torch.ops.symm_mem.two_shot_all_reduce_(tensor, "sum", self._group)

    def _sums_right(self, group: ProcessGroup) -> bool:
        """Do sums over the region's first and last bytes come out as they must?"""
        ranks, count = group.size(), ALIGNMENT_BYTES // 4
        output = torch.zeros(count, device=self.device)
        found: list[bool] = []
        for part in (self._region[:ALIGNMENT_BYTES], self._region[-ALIGNMENT_BYTES:]):
            source = part.view(torch.float32)
            source.fill_(group.rank() + 1)
            self.one_shot(source, output)
            self.two_shot(source)
            expected = torch.full_like(output, ranks * (ranks + 1) / 2)
            found += [torch.equal(expected, output), torch.equal(expected, source)]
        return all(found)


class ReducePairs:
    """All-reduces of an engine's tensors without a copy: each has a twin, and both are shared.

    A sum of up to ONE_SHOT_MAX_BYTES is written to the twin, in one shot; a larger one in place,
    in two. Whoever reads or writes the buffer next uses the tensor that was returned.
    """

    def __init__(self, memory: PeerMemory) -> None:
        self._memory = memory
        self._twins: dict[int, Tensor] = {}

    @staticmethod
    def num_bytes(sizes_bytes: Sequence[int]) -> int:
        """What tensors of these sizes take, each with its twin."""
        return sum(2 * padded_bytes(size) for size in sizes_bytes)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The tensor that holds the sum. One seen for the first time is copied, and let go."""
        source = tensor if tensor.data_ptr() in self._twins else self._adopt(tensor)
        if source.nbytes > ONE_SHOT_MAX_BYTES:
            self._memory.two_shot(source)
            return source
        twin = self._twins[source.data_ptr()]
        self._memory.one_shot(source, twin)
        return twin

    def _adopt(self, tensor: Tensor) -> Tensor:
        if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
            # The graph would keep the address of a tensor that is freed.
            raise RuntimeError("an all-reduce over peer memory must run once before its capture")
        first, second = (self._memory.take(tensor.shape, tensor.dtype) for _ in range(2))
        self._twins |= {first.data_ptr(): second, second.data_ptr(): first}
        return first.copy_(tensor)


def require_gpu(device: torch.device) -> None:
    """Raises NotAvailableError where there is no peer memory."""
    if device.type != "cuda":
        raise NotAvailableError(
            f"kernels.all_reduce='one_shot' is not available on the {device.type}; use 'nccl'"
        )


def _share(group: ProcessGroup, num_bytes: int, device: torch.device) -> Tensor:
    from torch.distributed import _symmetric_memory as symmetric_memory

    region = symmetric_memory.empty(num_bytes, dtype=torch.uint8, device=device)
    symmetric_memory.rendezvous(region, group)
    torch.cuda.synchronize(device)
    return region


def _agree(group: ProcessGroup, device: torch.device, *, ok: bool, reason: str) -> None:
    """Raises NotAvailableError on all ranks of the group when one is not ok."""
    good = torch.tensor([int(ok)], device=device)
    dist.all_reduce(good, op=dist.ReduceOp.MIN, group=group)
    if not int(good.item()):
        why = reason if not ok else "another rank cannot share its memory"
        raise NotAvailableError(
            f"kernels.all_reduce='one_shot' is not available on this machine: {why}; use 'nccl'"
        )

"""Who this process is among the ranks: rank, device, and a store that all ranks share."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.ranks.progress import Progress
from layerwise.hw.ranks.watchdog import JOIN_S, STALL_S, Fault, Watchdog
from layerwise.sim.plan.errors import PlacementError

# To reach the store that the ranks share.
JOIN_TIMEOUT = timedelta(seconds=JOIN_S)
# Of a message or a collective: the watchdog, which knows who waits for whom, ends a run before.
TIMEOUT = timedelta(seconds=600)
OnFault = Callable[[Fault], None]


@dataclass(frozen=True)
class Session:
    """One rank's view of a run. `store` and `watchdog` are None when the process is alone."""

    rank: int
    world_size: int
    device: torch.device
    store: dist.Store | None = None
    progress: Progress = field(default_factory=Progress)
    watchdog: Watchdog | None = None

    def gather(self, name: str, value: Any) -> list[Any]:
        """The values of all ranks, in rank order, on rank 0; an empty list elsewhere.

        Every rank calls it the same number of times. Values travel pickled, through the host.
        """
        if self.store is None:
            return [value]
        call = self.store.add(f"gather/{name}/calls/{self.rank}", 1)
        # torch's stub says str; bytes are stored as they are.
        self.store.set(f"gather/{name}/{call}/{self.rank}", pickle.dumps(value))  # pyright: ignore[reportArgumentType]
        if self.rank:
            return []
        keys = [f"gather/{name}/{call}/{rank}" for rank in range(self.world_size)]
        with self.waiting():
            return [pickle.loads(self.store.get(key)) for key in keys]

    def align(self) -> None:
        """Let all ranks leave together: on CUDA within microseconds, on the compute stream."""
        if self.store is not None:
            with self.waiting():
                dist.all_reduce(torch.zeros(1, device=self.device))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While it lasts this rank waits for all others: its standing still is not its fault."""
        before = self.progress.waits
        self.progress.waits = True
        yield
        # Left as it is by an error: the place of the fault is told from it.
        self.progress.waits = before

    def require_world_size(self, num_ranks: int) -> None:
        """Raises PlacementError when the placement has another number of ranks."""
        if num_ranks != self.world_size:
            raise PlacementError(
                "placement",
                f"{num_ranks} ranks",
                f"was started with WORLD_SIZE={self.world_size}",
                f"start {num_ranks} processes, or set run.only_rank to measure one rank alone",
            )


def alone(device: str | torch.device, rank: int = 0) -> Session:
    """A process with no peers."""
    return Session(rank=rank, world_size=1, device=usable_device(device))


def usable_device(device: str | torch.device, num_gpus: int = 1) -> torch.device:
    """Raises NotAvailableError when CUDA is asked for and too few GPUs are there."""
    chosen = torch.device(device)
    if chosen.type == "cuda" and torch.cuda.device_count() < num_gpus:
        found = torch.cuda.device_count()
        one_rank = "set run.only_rank to measure one rank alone, its peers replaced; or "
        raise NotAvailableError(
            f"{num_gpus} CUDA GPUs are needed here and torch {torch.__version__} sees "
            f"{found}; {one_rank if found else ''}use --device cpu, or a machine with more GPUs"
        )
    return chosen


def join_group(
    rank: int,
    world_size: int,
    local_rank: int,
    device_type: Literal["cpu", "cuda"],
    address: tuple[str, int],
    *,
    on_fault: OnFault | None = None,
    stall_s: float = STALL_S,
    store: dist.Store | None = None,
) -> Session:
    """Become one rank of a process group: NCCL on CUDA, gloo on the CPU.

    `address` is that of the ranks' TCPStore. With `on_fault` a watchdog looks after the peers.
    """
    store = store or connect(address, world_size)
    progress = Progress()
    watchdog = None
    if on_fault is not None:
        # A client of its own: one that waits for a key lets nobody else through.
        own = dist.PrefixStore("watchdog", connect(address, world_size))
        watchdog = Watchdog(own, rank, world_size, progress, on_fault, stall_s)
        watchdog.start()
    progress.enter("joining the other ranks", "setup", waits=True)
    device = torch.device("cpu")
    if device_type == "cuda":
        usable_device("cuda", local_rank + 1)
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    # Each edge has a communicator of its own: what torch warns of cannot happen here.
    os.environ.setdefault("TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING", "false")
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=world_size,
        timeout=TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    progress.enter("idle", "idle")
    session_store = dist.PrefixStore("session", store)
    return Session(rank, world_size, device, session_store, progress, watchdog)


def connect(address: tuple[str, int], world_size: int) -> dist.Store:
    """A client of the ranks' store."""
    store = dist.TCPStore(*address, world_size, False, timeout=JOIN_TIMEOUT)
    store.set_timeout(TIMEOUT)
    return store


def session_from_torchrun(
    device_type: Literal["cpu", "cuda"],
    *,
    on_fault: OnFault | None = None,
    stall_s: float = STALL_S,
) -> Session:
    """The rank that torchrun's environment names."""
    store, rank, world_size = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))
    store.set_timeout(TIMEOUT)
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return join_group(
        rank,
        world_size,
        int(os.environ["LOCAL_RANK"]),
        device_type,
        address,
        on_fault=on_fault,
        stall_s=stall_s,
        store=store,
    )


def under_torchrun() -> bool:
    """Has a launcher set this process's rank?"""
    return all(key in os.environ for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"))

"""Time what messages and kernels cost each other, on two GPUs.

A kernel is repeated on one stream while large messages follow one another on another stream, and
each of them alone. `layerwise.calibration.overlap` fits it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.host.affinity import communication_settings
from layerwise.hw.host.bandwidth import read_sink
from layerwise.hw.host.environment import environment_of, sample_clocks
from layerwise.hw.kernels import dispatch as kernels
from layerwise.hw.ranks.agreement import agree
from layerwise.hw.ranks.local import run_on_ranks
from layerwise.hw.ranks.session import Session
from layerwise.sim.trace import write_atomically

FORMAT, VERSION = "layerwise-overlap", 1
KIB, MIB = 2**10, 2**20
GRID_KIB = (8, 64, 256, 1024, 4096, 16384, 65536, 131072)
MESSAGE_BYTES = 128 * MIB
NUM_MESSAGES = 12
REPEATS = 3
# So much more than what it runs beside that it is there from the first to the last.
COVER = 1.6

Action = Callable[[], object]
Found = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """A kernel to run beside messages: so often that it takes a few milliseconds."""

    name: str
    run: Action
    repeats: int


def time_overlap(out: Path, timeout_s: float) -> int | None:
    """Time it on two ranks started here, or as one of torchrun's two; see `measure_overlap`.

    Raises NotAvailableError, RankFailedError.
    """
    return run_on_ranks(measure_overlap, out, num_ranks=2, device_type="cuda", timeout_s=timeout_s)


def measure_overlap(session: Session, out: Path) -> int | None:
    """Time it on this rank; the first rank writes what both saw, after each part.

    Returns on the first rank how many pairs of a message and a kernel were timed.
    """
    if session.device.type != "cuda" or session.world_size != 2:
        raise NotAvailableError("overlap is measured on two GPUs; start two ranks with CUDA")
    before = sample_clocks(session.device, "before")
    found: Found = {}
    _begin(session, "reading the grids of NCCL's kernels")
    message = torch.randn(MESSAGE_BYTES // 2, device=session.device, dtype=torch.bfloat16)
    transfers: dict[str, Callable[[torch.Tensor], object]] = {
        "send": lambda tensor: dist.send(tensor, 1) if session.rank == 0 else dist.recv(tensor, 0),
        "all_reduce": dist.all_reduce,
    }
    for name, transfer in transfers.items():
        found |= _grids("sendrecv" if name == "send" else name, transfer, message)
    _write(session, out, found, before)
    beside = _Beside(session)
    works = _works(session.device)
    for name, transfer in transfers.items():
        found |= _pairs(session, beside, works, name, lambda t=transfer: t(message))
        _write(session, out, found, before)
    _write(session, out, found, before | sample_clocks(session.device, "after"))
    return None if session.rank else len(transfers) * len(works)


def _begin(session: Session, what: str) -> None:
    session.progress.enter(what)
    if session.rank == 0:
        print(f"overlap: {what}", file=sys.stderr, flush=True)


def _grids(name: str, transfer: Callable[[torch.Tensor], object], pool: torch.Tensor) -> Found:
    """NAME.SIZE -> [kernel, grid, block, us] of NCCL's kernels: a CTA takes an SM."""
    return {
        f"{name}.{kib}KiB": _kernels_of(lambda t=pool[: kib * KIB // 2]: transfer(t))
        for kib in GRID_KIB
    }


def _kernels_of(action: Action) -> list[tuple[str, Any, Any, float]]:
    from torch.profiler import ProfilerActivity, profile

    for _ in range(2):
        action()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        action()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return [
        (event["name"][:40], event["args"].get("grid"), event["args"].get("block"), event["dur"])
        for event in events
        if event.get("cat") == "kernel" and "nccl" in event["name"].lower()
    ]


def _works(device: torch.device) -> tuple[Work, ...]:
    """Kernels that HBM bounds, and two that SMs bound. Source of shapes: `layerwise.calibration.overlap`."""

    def values(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16) * scale

    sink = read_sink(device)
    read, copied = values(512 * MIB), values(512 * MIB)
    square, other, product = (values(8192, 8192, scale=0.02) for _ in range(3))
    rows, weight, result = values(2048, 4096), values(4096, 4096, scale=0.02), values(2048, 4096)
    few, wide, thin = values(8, 8192), values(32768, 8192, scale=0.02), values(8, 32768)
    return (
        Work("matmul8192", lambda: torch.mm(square, other, out=product), 12),
        Work("matmul2048x4096x4096", lambda: torch.mm(rows, weight, out=result), 120),
        Work("read1GiB", lambda: kernels.read_bandwidth_kernel(read, sink), 24),
        Work("copy1GiB", lambda: copied.copy_(read), 12),
        Work("gemv", lambda: torch.mm(few, wide.t(), out=thin), 40),
    )


def _pairs(
    session: Session, beside: _Beside, works: Sequence[Work], name: str, transfer: Action
) -> Found:
    """Seconds of a message and of each kernel, alone and together."""
    _begin(session, f"timing {name} beside kernels")
    message_s = [beside.seconds(None, 0, transfer, 16)[1] for _ in range(2)][-1]
    found: Found = {f"alone.{name}128MiB": message_s}
    for work in works:
        session.progress.at = work.name
        alone_s = [beside.seconds(work.run, work.repeats, transfer, 0)[0] for _ in range(2)][-1]
        # Enough messages to cover the kernels, then enough kernels to cover the messages.
        messages, repeats = agree(
            session,
            "counts",
            (
                _covering(alone_s * work.repeats, message_s),
                _covering(message_s * NUM_MESSAGES, alone_s),
            ),
            lambda said: said[0],
        )
        of_work = [
            beside.seconds(work.run, work.repeats, transfer, messages)[0] for _ in range(REPEATS)
        ]
        of_message = [
            beside.seconds(work.run, repeats, transfer, NUM_MESSAGES)[1] for _ in range(REPEATS)
        ]
        found[f"overlap.{name}.{work.name}"] = {
            "alone_s": alone_s,
            "with_messages_s": median(of_work),
            "message_alone_s": message_s,
            "message_with_work_s": median(of_message),
        }
    return found


def _covering(whole_s: float, one_s: float) -> int:
    """How often something that takes `one_s` must run to outlast `whole_s`."""
    return int(whole_s / one_s * COVER) + 2


class _Beside:
    """Two streams, and the time that each needs for what is issued on both at once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._compute, self._messages = (torch.cuda.Stream(session.device) for _ in range(2))

    def seconds(
        self, work: Action | None, num_works: int, transfer: Action, num_messages: int
    ) -> tuple[float, float]:
        """Seconds of one kernel and of one message."""
        self._session.align()
        torch.cuda.synchronize(self._session.device)
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        marks[0].record(self._compute)
        marks[2].record(self._messages)
        # Issued in turn, so that the host is late on neither stream.
        for index in range(max(num_works, num_messages)):
            if index < num_messages:
                with torch.cuda.stream(self._messages):
                    transfer()
            if work is not None and index < num_works:
                with torch.cuda.stream(self._compute):
                    work()
        marks[1].record(self._compute)
        marks[3].record(self._messages)
        torch.cuda.synchronize(self._session.device)
        return (
            marks[0].elapsed_time(marks[1]) / 1e3 / max(num_works, 1),
            marks[2].elapsed_time(marks[3]) / 1e3 / max(num_messages, 1),
        )


def _write(session: Session, out: Path, found: Found, clocks: dict[str, str]) -> None:
    gathered = session.gather("overlap", found)
    if not gathered:
        return
    environment = environment_of(session.device) | communication_settings() | clocks
    data = {"format": FORMAT, "version": VERSION, "environment": environment}
    data |= {f"rank{rank}": measured for rank, measured in enumerate(gathered)}
    write_atomically(out, json.dumps(data, indent=1) + "\n")

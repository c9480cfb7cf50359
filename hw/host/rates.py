"""Two rates that a pre-flight check takes in a moment: of each GPU's HBM, and between GPUs.

torch is handed in, so that this imports without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COPY_BYTES = 256 * 2**20
NUM_COPIES = 5
CHECKED_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class PeerCopy:
    """Copies between two GPUs, each direction alone; `intact`: what arrived is what was sent."""

    first: int
    second: int
    there_bytes_per_s: float = 0.0
    back_bytes_per_s: float = 0.0
    intact: bool = True
    problem: str = ""


def peer_copies(torch: Any, num_gpus: int) -> tuple[PeerCopy, ...]:
    """Copy between every two GPUs, both ways, one at a time."""
    return tuple(
        _peer_copy(torch, first, second)
        for first in range(num_gpus)
        for second in range(first + 1, num_gpus)
    )


def _peer_copy(torch: Any, first: int, second: int) -> PeerCopy:
    try:
        there, there_intact = _copy_rate(torch, first, second)
        back, back_intact = _copy_rate(torch, second, first)
    except Exception as error:
        return PeerCopy(first=first, second=second, problem=in_short(error))
    return PeerCopy(
        first=first,
        second=second,
        there_bytes_per_s=there,
        back_bytes_per_s=back,
        intact=there_intact and back_intact,
    )


def _copy_rate(torch: Any, source: int, target: int) -> tuple[float, bool]:
    """(the best copy's bytes/s, whether what arrived is what was sent)."""
    # torch copies on the source's stream: the events belong there.
    with torch.cuda.device(source):
        sent = torch.randint(256, (COPY_BYTES,), dtype=torch.uint8, device=f"cuda:{source}")
        arrived = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=f"cuda:{target}")
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(NUM_COPIES + 1)]
        arrived.copy_(sent)
        marks[0].record()
        for mark in marks[1:]:
            arrived.copy_(sent, non_blocking=True)
            mark.record()
        torch.cuda.synchronize(source)
        best_ms = min(a.elapsed_time(b) for a, b in zip(marks[:-1], marks[1:], strict=True))
    # By way of the host, so that a broken way between the GPUs cannot hide itself.
    intact = torch.equal(sent[-CHECKED_BYTES:].cpu(), arrived[-CHECKED_BYTES:].cpu())
    return COPY_BYTES / (best_ms / 1e3), bool(intact)


def read_rate(torch: Any, index: int) -> float | str:
    """HBM's read rate in bytes/s, or why there is none."""
    try:
        from layerwise.hw.host.bandwidth import read_bandwidth

        with torch.cuda.device(index):
            rate = read_bandwidth(torch.device("cuda", index))
            torch.cuda.empty_cache()
    except Exception as error:
        return in_short(error)
    return rate


def in_short(error: Exception) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

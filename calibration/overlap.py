"""What messages and ops cost each other on one GPU, from pairs timed alone and together.

Measured on two GPUs (traces/two-h200/overlap.json): a kernel repeated on the compute stream while
128 MiB messages follow one another on another stream, and the other way round. A message's kernel
gets its SMs when the running kernel ends: on average it waits for half of one.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.reading import read_json
from layerwise.sim.profile import Constant

# Kernels of the measurement that HBM bounds.
HBM_BOUND = ("read1GiB", "copy1GiB", "gemv")


def fit_overlap(path: Path, source: str) -> dict[str, Constant]:
    """`op_speed_beside_message`, `message_speed_beside_hbm`, `message_num_sms`.

    Medians over the kernels that HBM bounds. Raises FileFormatError when the file lacks them.
    """
    found = _read(path)
    try:
        pairs = [found[f"overlap.send.{name}"] for name in HBM_BOUND]
        op_speeds = [pair["alone_s"] / pair["with_messages_s"] for pair in pairs]
        message_speeds = [_message_speed(pair) for pair in pairs]
        # Grid of NCCL's kernel: one CTA an SM.
        num_sms = max(grid[0] for _, grid, _, _ in found["sendrecv.131072KiB"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise FileFormatError(f"{path}: is no overlap measurement: {error!r}") from error
    return {
        "op_speed_beside_message": _constant(median(op_speeds), op_speeds, source),
        "message_speed_beside_hbm": _constant(median(message_speeds), message_speeds, source),
        "message_num_sms": Constant(
            value=float(num_sms),
            standard_error=0.0,
            unit="SMs",
            source=f"{source}: grid of ncclDevKernel_SendRecv from 256 KiB on",
        ),
    }


def _message_speed(pair: dict[str, float]) -> float:
    """Its time alone over its time beside the kernel, what it waited for SMs taken off."""
    moving_s = pair["message_with_work_s"] - pair["alone_s"] / 2
    return pair["message_alone_s"] / moving_s


def _constant(value: float, spread: list[float], source: str) -> Constant:
    """A median and half the range it was taken from."""
    return Constant(
        value=round(value, 4),
        standard_error=round((max(spread) - min(spread)) / 2, 4),
        unit="of its speed alone",
        source=f"{source}: median of {', '.join(HBM_BOUND)}",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_json(path)["rank0"]
    except (KeyError, TypeError) as error:
        raise FileFormatError(f"{path}: is no overlap measurement: {error}") from error
    if not isinstance(data, dict):
        raise FileFormatError(f"{path}: rank0 is not a table of measurements")
    return data

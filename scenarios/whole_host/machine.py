"""`python -m layerwise.scenarios.whole_host.machine OUT DEVICE`: the host's check, in a process of its own.

A driver that hangs takes this process with it and no more; nor do its contexts stay on the GPUs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

from layerwise.hw.errors import NotAvailableError
from layerwise.sim.trace import write_atomically

# Each GPU reads its HBM and copies to every other: four or five seconds on two H200s.
PER_GPU_S, PER_PAIR_S, STARTING_S = 2.0, 0.6, 6.0
# Of a link's best rate: below it a pair is told apart.
SLOW_SHARE = 0.9


def expected_s(num_gpus: int) -> float:
    """How long the check is expected to take."""
    return STARTING_S + PER_GPU_S * num_gpus + PER_PAIR_S * num_gpus * (num_gpus - 1) / 2


def check_machine(out: Path, device: Literal["cuda", "cpu"], timeout_s: float) -> None:
    """Write what the host has to `out`. Raises NotAvailableError when it does not end in time."""
    command = [sys.executable, "-m", "layerwise.scenarios.whole_host.machine", str(out), device]
    try:
        said = subprocess.run(  # noqa: S603 - this program itself
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NotAvailableError(f"the check of the machine took over {timeout_s:.0f} s") from error
    if said.returncode:
        last = (said.stderr.strip().splitlines() or ["no word"])[-1]
        raise NotAvailableError(f"the check of the machine failed: {last}")


def machine_lines(found: Mapping[str, Any]) -> list[str]:
    """What to know of the host, a line each: GPUs, clocks, links, copies; what stands out last."""
    machine = cast("dict[str, Any]", found["machine"])
    gpus: list[dict[str, Any]] = machine["gpus"]
    nccl, torch = machine["nccl"] or "?", machine["versions"].get("torch") or "?"
    driver, cuda = machine["driver"] or "?", machine["cuda"] or "?"
    lines = [f"driver {driver}, CUDA {cuda}, NCCL {nccl}, torch {torch}"]
    lines += [
        f"GPU {gpu['index']}: {gpu['name']}, HBM {gpu['read_bytes_per_s'] / 1e12:.2f} TB/s, SM "
        f"{gpu['sm_clock_hz'] / 1e6:.0f} of {gpu['max_sm_clock_hz'] / 1e6:.0f} MHz, power limit "
        f"{gpu['power_limit_w']:.0f} W, throttled: {', '.join(gpu['throttled']) or 'no'}"
        for gpu in gpus
    ]
    return [*lines, *_link_lines(machine)]


def _link_lines(machine: Mapping[str, Any]) -> list[str]:
    pairs: list[dict[str, Any]] = machine["pairs"]
    classes = sorted({f"{pair['nvlinks']} NVLinks {pair['nvlink_version']}" for pair in pairs})
    copies: list[dict[str, Any]] = machine["copies"]
    rates = [min(copy["there_bytes_per_s"], copy["back_bytes_per_s"]) for copy in copies]
    lines = [f"pairs: {len(pairs)}, joined by {', '.join(classes) or 'nothing known'}"]
    if rates:
        lines.append(f"copies between GPUs: {min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f} GB/s")
    for copy, rate in zip(copies, rates, strict=True):
        if copy["problem"] or not copy["intact"] or rate < SLOW_SHARE * max(rates):
            told = copy["problem"] or ("slow" if copy["intact"] else "what arrived is not intact")
            lines.append(f"  GPUs {copy['first']} and {copy['second']}: {told}")
    return lines


def _main(out: str, device: Literal["cuda", "cpu"]) -> None:
    import torch

    from layerwise.hw.host.doctor import examine, probes_here
    from layerwise.hw.host.environment import environment_of

    chosen = torch.device(device)
    data = {
        "machine": asdict(examine(probes_here(), device)),
        "environment": environment_of(chosen),
    }
    write_atomically(Path(out), json.dumps(data, indent=1, default=str) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1], "cuda" if sys.argv[2] == "cuda" else "cpu")

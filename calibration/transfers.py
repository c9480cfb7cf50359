"""Messages and collectives: a few latency-bandwidth regimes fitted to public or own timings.

NCCL and custom all-reduces change protocol with size; one straight line misses them by 13 % on
average, four by 2.7 %. Only the regimes are shipped (`transfers.json`), not the timings, so that a
profile can be fitted on a machine that has neither several GPUs nor the tables.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from layerwise.calibration.least_squares import FitError, significant
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.reading import read_json
from layerwise.sim.profile import Regime, TransferFit
from layerwise.sim.trace import write_atomically

FORMAT = "layerwise-transfers"
VERSION = 1

KIB, MIB = 2**10, 2**20
LARGE_BYTES = MIB
BREAKS = (0, 64 * KIB, MIB, 16 * MIB)
ONE_SHOT_BREAKS = (0, 64 * KIB, 256 * KIB, 4 * MIB)
INTERNODE_BREAKS = (0, MIB, 8 * MIB)
NCCL_SOURCE = (
    "nccl-tests 2.29.2 on one 8x H100 SXM NVSwitch node (in-switch reduction on), as published by "
    "ai-dynamo/aiconfigurator at 095f58a (Apache-2.0); fitted here"
)
ONE_SHOT_SOURCE = (
    "custom one-shot/two-shot all-reduce of SGLang in a CUDA graph on H100 SXM, as published by "
    "ai-dynamo/aiconfigurator at 095f58a (Apache-2.0); fitted here"
)
# Regimes of an NCCL that reduces in the GPUs alone: (latency_s, bytes_per_s) from SIMPLE_BYTES up.
# Source: PHYSICS.md section 3, fitted to microsoft/vidur at 7d47513 (MIT), H100 DGX, from 1 MiB up;
# its fit of two GPUs (20.9 us, 303 GB/s) is within 6 % of two H200s measured here from 2 MiB up.
SIMPLE_BYTES = 2 * MIB
WITHOUT_SWITCH = {4: (26.0e-6, 237e9), 8: (32.3e-6, 202e9)}
SHORT_BYTES = 4 * KIB
# Of a table moved to other groups. Source: PHYSICS.md, group of 4 from those of 2 and 8: 6 to 20 %.
GUESSED_ERROR = 0.08
INTERNODE_SOURCE = (
    "NCCL send/recv between two DGX H100 nodes over one NIC pair, eager, as published by "
    "microsoft/vidur at 7d47513 (MIT); fitted here"
)


def fit_transfer(
    timings: Iterable[tuple[int, float]], source: str, breaks: Sequence[int] = BREAKS
) -> TransferFit:
    """Fit `latency + payload / rate` in each regime to (payload_bytes, seconds), by relative error.

    A regime with fewer than two sizes joins the one below. Raises FitError without any data.
    """
    data = np.array(sorted(timings), dtype=np.float64)
    if not len(data):
        raise FitError("no timings to fit a transfer to")
    edges = [*breaks, np.inf]
    regimes: list[Regime] = []
    for low, high in zip(edges, edges[1:], strict=False):
        # The regime's first size is shared with the one below, so that lines meet where they can.
        inside = data[(data[:, 0] >= low) & (data[:, 0] <= high)]
        if len(inside) >= 2:
            regimes.append(_regime(int(low), inside))
    if not regimes:
        regimes = [_regime(0, data)]
    fit = TransferFit(regimes=tuple(regimes), source=source)
    errors = [abs(fit.seconds(int(size)) / seconds - 1) for size, seconds in data]
    return TransferFit(
        regimes=fit.regimes, source=source, median_error=round(float(np.median(errors)), 4)
    )


def read_nccl_table(path: Path) -> dict[tuple[str, int], list[tuple[int, float]]]:
    """(op, num_gpus) -> [(payload_bytes, seconds)] from the public nccl-tests table.

    The table pools two series, one of them with its sizes doubled: rows of the first and the last
    size come from one series alone, and medians of large sizes lie half-way between neighbours
    (16 MiB over two GPUs: 65.9 us where the true series has 81.4). So lone rows are left out, and
    from LARGE_BYTES up the slower of the pooled times is taken. Checked against two H200s here:
    128 MiB in 472 us, the table's median 366, its maximum 466.
    """
    found: dict[tuple[str, int], list[tuple[int, float]]] = {}
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pooled = max((int(row["runs"]) for row in rows), default=0)
    for row in rows:
        if int(row["runs"]) == pooled:
            size = int(row["payload_bytes"])
            time_us = row["max_us"] if size >= LARGE_BYTES else row["median_us"]
            timing = (size, float(time_us) * 1e-6)
            found.setdefault((row["op"], int(row["num_gpus"])), []).append(timing)
    return found


def read_internode_table(path: Path) -> list[tuple[int, float]]:
    """[(payload_bytes, seconds)] of the public inter-node send/recv table."""
    with path.open(encoding="utf-8") as file:
        return [
            (int(row["payload_bytes"]), float(row["median_us"]) * 1e-6)
            for row in csv.DictReader(file)
        ]


def public_transfers(
    data: Path, one_shot: Mapping[int, Iterable[tuple[int, float]]]
) -> dict[str, TransferFit]:
    """All transfers that one GPU cannot measure, from the public tables in the folder `data`.

    `one_shot`: group size -> (payload_bytes, seconds) of a one-shot all-reduce.
    """
    transfers = {
        f"{op}.nccl.{gpus}": fit_transfer(timings, NCCL_SOURCE)
        for (op, gpus), timings in read_nccl_table(data / "nccl-h100-sxm-nvlink.csv").items()
        if op in ("all_reduce", "all_gather")
    }
    internode = read_internode_table(data / "nccl-p2p-h100-internode.csv")
    transfers["send.ndr400"] = fit_transfer(internode, INTERNODE_SOURCE, INTERNODE_BREAKS)
    return transfers | {
        f"all_reduce.one_shot.{gpus}": fit_transfer(timings, ONE_SHOT_SOURCE, ONE_SHOT_BREAKS)
        for gpus, timings in one_shot.items()
    }


def without_in_switch_reduction(
    own: Mapping[str, TransferFit], public: Mapping[str, TransferFit]
) -> dict[str, TransferFit]:
    """Collectives of 4 and 8 GPUs as this engine would meet them with NVLink multicast off.

    `own`: measured here on two GPUs, `public`: the public tables. What a short payload costs more
    here than there on two GPUs (launches, flags), it is taken to cost more on 4 and 8. Large NCCL
    all-reduces take WITHOUT_SWITCH. Those of two GPUs are `own`. A guess to be scored, no fit.
    """
    found = {name: fit for name, fit in own.items() if name.endswith(".2")}
    for stem in sorted({name.removesuffix(".2") for name in found}):
        more_s = own[f"{stem}.2"].seconds(SHORT_BYTES) - public[f"{stem}.2"].seconds(SHORT_BYTES)
        for num_gpus, (latency_s, rate) in WITHOUT_SWITCH.items():
            table = public[f"{stem}.{num_gpus}"]
            regimes = [
                Regime(
                    from_bytes=one.from_bytes,
                    bytes_per_s=one.bytes_per_s,
                    latency_s=significant(one.latency_s + max(more_s, 0.0)),
                )
                for one in table.regimes
            ]
            if stem == "all_reduce.nccl":
                regimes = [one for one in regimes if one.from_bytes < SIMPLE_BYTES]
                simple = Regime(from_bytes=SIMPLE_BYTES, latency_s=latency_s, bytes_per_s=rate)
                regimes.append(simple)
            found[f"{stem}.{num_gpus}"] = TransferFit(
                regimes=tuple(regimes),
                median_error=max(table.median_error, GUESSED_ERROR),
                source=f"{table.source}; moved by {1e6 * more_s:+.1f} us, large ones without switch",
            )
    return found


def write_transfers(transfers: Mapping[str, TransferFit], path: Path) -> None:
    """Write fitted transfers, one a line."""
    lines = [
        f"  {json.dumps(name)}: {json.dumps(asdict(fit))}"
        for name, fit in sorted(transfers.items())
    ]
    head = f'{{\n "format": "{FORMAT}",\n "version": {VERSION},\n "transfers": {{\n'
    write_atomically(path, head + ",\n".join(lines) + "\n }\n}\n")


def read_transfers(path: Path) -> dict[str, TransferFit]:
    """Fitted transfers by name. Raises FileFormatError, or SpecError for a wrong record."""
    from layerwise.sim.plan.files import validate  # pydantic is needed only where files are read

    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
        raise FileFormatError(f"{path}: does not say format={FORMAT!r}, version={VERSION}")
    if not isinstance(data.get("transfers", {}), dict):
        raise FileFormatError(f"{path}: its transfers are no table of names")
    return {
        name: validate(TransferFit, record, f"{path}: {name}")
        for name, record in data.get("transfers", {}).items()
    }


def _regime(low: int, data: np.ndarray) -> Regime:
    """Non-negative least squares on relative errors: latency and seconds per byte."""
    # Only fitting needs scipy: reading what was fitted does not.
    from scipy.optimize import nnls

    sizes, seconds = data.T
    design = np.column_stack([1 / seconds, sizes / seconds])
    scale = np.array([1.0, 1e-9])
    (latency, per_gigabyte), _ = nnls(design * scale, np.ones(len(sizes)))
    per_byte = max(per_gigabyte * 1e-9, 1e-15)
    return Regime(
        from_bytes=low, latency_s=significant(latency), bytes_per_s=significant(1 / per_byte)
    )

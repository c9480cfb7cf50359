"""`python -m layerwise.hw.links --out links.json`: messages and collectives timed by payload.

Starts a rank on every GPU of this machine, or is one of torchrun's. Pairs of ranks are classed by
how they are joined; one pair of each class is timed at every payload, all pairs at a few. Groups
are the first 2, 4, 8, ... ranks and all of them. What was measured is on disk after each series.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.links.measuring import measure_links
from layerwise.hw.links.ops import OPS, PEER_MEMORY_OPS, check_ops
from layerwise.hw.links.series import (
    MODES,
    Request,
    parse_sizes,
    score_sizes_between,
    sizes_between,
)
from layerwise.hw.ranks.local import local_ranks
from layerwise.hw.ranks.session import session_from_torchrun, under_torchrun
from layerwise.sim.plan.errors import LayerwiseError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one line that says what to change."""
    options = _parser().parse_args(arguments)
    try:
        num_timings = _launch(_request(options), options.ranks)
    except LayerwiseError as error:
        print(f"link_times: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if under_torchrun():
            # A broken communicator can hold up a normal exit.
            os._exit(2)
        return 2
    if num_timings is not None:
        print(f"{options.out}: {num_timings} timings")
    return 0


def _launch(request: Request, ranks: int) -> int | None:
    if under_torchrun():
        session = session_from_torchrun(request.device)
        num_timings = measure_links(session, request)
        dist.destroy_process_group()
        return num_timings
    num_ranks = ranks or (torch.cuda.device_count() if request.device == "cuda" else 2)
    if num_ranks < 2:
        raise NotAvailableError(f"{num_ranks} ranks have no link between them; use two or more")
    check_ops(request.ops, request.modes, torch.device(request.device))
    with local_ranks(num_ranks, request.device) as started:
        # One series may run over the budget.
        timeout_s = request.budget_s + 180.0
        return started.call(measure_links, request, timeout_s=timeout_s)[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m layerwise.hw.links", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the file to write (.json)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--ranks", type=int, default=0, help="default: all GPUs; 2 on the CPU")
    parser.add_argument("--sizes", default="", help="LOW..HIGH by powers of two, as 512..512MiB")
    parser.add_argument("--modes", default="", help="graph,eager")
    parser.add_argument("--ops", default="", help=",".join(OPS))
    parser.add_argument(
        "--budget-s", type=float, default=300.0, help="after it, no other series is begun"
    )
    return parser


def _request(options: argparse.Namespace) -> Request:
    on_gpus = options.device == "cuda"
    low, high = parse_sizes(options.sizes or ("512..512MiB" if on_gpus else "512..64KiB"))
    every = [op for op in OPS if on_gpus or op not in PEER_MEMORY_OPS]
    asked = (options.modes or ("graph,eager" if on_gpus else "eager")).split(",")
    if set(asked) - set(MODES):
        raise NotAvailableError(f"--modes {options.modes} is unknown; use some of {list(MODES)}")
    return Request(
        out=options.out,
        device=options.device,
        ops=tuple(options.ops.split(",")) if options.ops else tuple(every),
        modes=tuple(mode for mode in MODES if mode in asked),
        sizes_bytes=sizes_between(low, high),
        score_bytes=score_sizes_between(low, high),
        budget_s=options.budget_s,
    )


if __name__ == "__main__":
    sys.exit(main())

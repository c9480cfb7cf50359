"""`python -m hw SCENARIO.toml --out trace.jsonl`: measure a scenario and write its trace.

Alone, it starts one process per rank when the placement has several; under torchrun it is one of
the ranks.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sim.plan.errors import LayerwiseError, MissingPackageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one line that says what to change."""
    options = _parser().parse_args(arguments)
    try:
        _measure(options)
    except LayerwiseError as error:
        print(f"hw: {_rank()}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if "RANK" in os.environ:
            # A torchrun rank: leave at once. A broken communicator can hold up a normal exit.
            os._exit(2)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hw", description=__doc__)
    parser.add_argument("scenario", type=Path, help="a scenario file (TOML)")
    parser.add_argument("--out", type=Path, required=True, help="the trace to write (.jsonl[.gz])")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--timing", choices=("cupti", "events", "clock", "none"),
        help="who times each op (default: cupti on cuda, the host's clock on cpu)",
    )  # fmt: skip
    parser.add_argument("--traced-repeats", type=int, default=5, help="repeats that become rows")
    parser.add_argument("--bandwidth", action="store_true", help="measure HBM's read rate as well")
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="bound of a whole run")
    return parser


def _measure(options: argparse.Namespace) -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "torch", "measure", "pip install torch", "the simulator (`import sim`)"
        ) from error
    try:
        from sim.plan.files import load_scenario
    except ImportError as error:
        raise MissingPackageError(
            error.name or "pydantic", "read scenario files", "pip install pydantic",
            "`hw.measure.measure` with a Scenario made in Python",
        ) from error  # fmt: skip
    from hw.launch import Options, launch
    from sim.trace import write_trace

    timing = options.timing or ("cupti" if options.device == "cuda" else "clock")
    trace = launch(
        load_scenario(options.scenario),
        Options(
            timing=timing, device=options.device, traced_repeats=options.traced_repeats,
            with_bandwidth=options.bandwidth, timeout_s=options.timeout_s,
        ),
    )  # fmt: skip
    if trace is not None:
        write_trace(trace, options.out)
        print(f"{options.out}: {len(trace.rows)} rows, timing {timing}")


def _rank() -> str:
    return f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""


if __name__ == "__main__":
    sys.exit(main())

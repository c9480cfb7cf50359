"""`python -m layerwise.hw SCENARIO.toml --out trace.jsonl`: measure a scenario and write its trace.

Alone, it starts one process per rank when the placement has several; under torchrun it is one of
the ranks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from layerwise.sim.plan.errors import LayerwiseError, MissingPackageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 with one line that says what to change; 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        _measure(options)
    except LayerwiseError as error:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        print(f"hw: {type(error).__name__}: {error}{notes}", file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:  # before anything was begun
        print("hw: interrupted", file=sys.stderr, flush=True)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m layerwise.hw", description=__doc__)
    parser.add_argument("scenario", type=Path, help="a scenario file (TOML)")
    parser.add_argument("--out", type=Path, required=True, help="the trace to write (.jsonl[.gz])")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--timing", choices=("cupti", "events", "clock", "none"),
        help="who times each op (default: cupti on cuda, or events where CUPTI cannot be had; "
        "the host's clock on cpu)",
    )  # fmt: skip
    parser.add_argument("--traced-repeats", type=int, default=5, help="repeats that become rows")
    parser.add_argument("--bandwidth", action="store_true", help="measure HBM's read rate as well")
    parser.add_argument("--no-power", action="store_true", help="do not sample power and clocks")
    parser.add_argument(
        "--energy-s", type=float, default=0.0,
        help="repeat the untraced body this long afterwards, for its energy alone (0.5 or more)",
    )  # fmt: skip
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="bound of a whole run")
    parser.add_argument(
        "--stall-s", type=float, default=30.0,
        help="how long a rank may stand still while others wait for it",
    )  # fmt: skip
    return parser


def _measure(options: argparse.Namespace) -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "torch", "measure", "pip install torch", "the simulator (`import sim`)"
        ) from error
    try:
        from layerwise.sim.plan.files import load_scenario
    except ImportError as error:
        raise MissingPackageError(
            error.name or "pydantic", "read scenario files", "pip install pydantic",
            "`layerwise.hw.measure.measure` with a Scenario made in Python",
        ) from error  # fmt: skip
    from layerwise.hw.instrument.power import PowerOptions
    from layerwise.hw.ranks.launch import Options, launch

    trace = launch(
        load_scenario(options.scenario),
        Options(
            timing=options.timing, device=options.device, traced_repeats=options.traced_repeats,
            with_bandwidth=options.bandwidth, timeout_s=options.timeout_s,
            out=options.out, stall_s=options.stall_s, announce=True,
            power=PowerOptions(sample=not options.no_power, energy_s=options.energy_s),
        ),
    )  # fmt: skip
    if trace is not None:
        print(f"{options.out}: {len(trace.rows)} rows, timing {trace.timing}")
        for caution in trace.cautions():
            print(f"caution: {caution}")


if __name__ == "__main__":
    sys.exit(main())

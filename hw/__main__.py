"""`python -m layerwise.hw SCENARIO.toml --out trace.jsonl`: measure a scenario and write its trace.

Made for `torchrun --nproc-per-node N -m layerwise.hw ...`, of whose ranks it is one; alone it starts
a process per rank, as `layerwise measure` does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

from layerwise.hw.options import Options, option_name
from layerwise.sim.plan.errors import LayerwiseError, MissingPackageError
from layerwise.sim.plan.units import parse_real


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure. Exit code 0; 2 with one line that says what to change; 130 after Ctrl-C."""
    try:
        options = vars(_parser().parse_args(arguments))
        _measure(options.pop("scenario"), Options(**options, announce=True))
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
    for each in fields(Options):
        if each.metadata:
            parser.add_argument(option_name(each), **_described(each))
    return parser


def _described(option: Field[Any]) -> dict[str, Any]:
    """Describe an option to argparse, by its field of `Options`."""
    described = {"default": option.default, "help": option.metadata["help"]}
    if choices := get_args(option.metadata["choices"]):
        return described | {"choices": choices}
    match option.default:
        case bool():
            return described | {"action": argparse.BooleanOptionalAction}
        case int():
            return described | {"type": int}
        case _:
            return described | {"type": _seconds, "metavar": "TIME"}


def _seconds(text: str) -> float:
    try:
        return parse_real("time_s", text)
    except LayerwiseError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _measure(scenario: Path, options: Options) -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "torch", "measure", "pip install torch", "the simulator (`import layerwise`)"
        ) from error
    try:
        from layerwise.sim.plan.files import load_scenario
    except ImportError as error:
        raise MissingPackageError(
            error.name or "pydantic",
            "read scenario files",
            "pip install pydantic",
            "`layerwise.hw.measure.measure` with a Scenario made in Python",
        ) from error
    from layerwise.hw.ranks.launch import launch

    trace = launch(load_scenario(scenario), options)
    if trace is not None:
        print(f"{options.out}: {len(trace.rows)} rows, timing {trace.timing}")
        for caution in trace.cautions():
            print(f"caution: {caution}")


if __name__ == "__main__":
    sys.exit(main())

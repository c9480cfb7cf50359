"""`python -m layerwise.scenarios.whole_host --gpus N --out DIR`: one call for a whole host.

Predicts (or takes what is committed), checks the machine, times its links, measures every placement
and compares. Run again with the same DIR it goes on. `--predict-only` writes the file to commit
ahead of the run; `--report-only` reads a folder that was brought from elsewhere.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from layerwise.sim.plan.errors import LayerwiseError, SpecError

if TYPE_CHECKING:
    from layerwise.scenarios.compare.scores import Level
    from layerwise.scenarios.whole_host.driving import HostRequest


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where runs are left to measure; 2 with one line that says what to change."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not (options.out or options.predict_only):
        parser.error("give --out DIR, or --predict-only FILE")
    try:
        return _run(options)
    except LayerwiseError as error:
        print(f"whole_host: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2


def _run(options: argparse.Namespace) -> int:
    from layerwise.scenarios.whole_host.driving import HostRequest, run_host
    from layerwise.scenarios.whole_host.reporting import write_report
    from layerwise.scenarios.whole_host.settling import settle

    # In-switch reduction is not what is predicted, and a shared host may not have it tried.
    for name, value in (("NCCL_NVLS_ENABLE", "0"), ("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")):
        os.environ.setdefault(name, value)
    settled = settle(
        options.out, options.device, options.gpu, options.gpus,
        measures=not (options.report_only or options.predict_only),
    )  # fmt: skip
    if settled.said:
        print(settled.said, flush=True)
    request = HostRequest(
        out=options.out or Path(), num_gpus=settled.num_gpus, gpu=settled.gpu,
        device=settled.device, budget_s=options.budget_s,
        prediction=options.prediction,
    )  # fmt: skip
    if options.predict_only:
        return _predict(request, options.predict_only)
    left = 0 if options.report_only else run_host(request, lambda line: print(line, flush=True))
    print(write_report(request), flush=True)
    if options.level:
        print(_compared(request, options.level), flush=True)
    return 1 if left else 0


def _predict(request: HostRequest, path: Path) -> int:
    from layerwise.scenarios.whole_host.driving import runs_of
    from layerwise.scenarios.whole_host.predictions import (
        host_profile,
        predict_host,
        write_prediction,
    )

    profile = host_profile(request.gpu) if request.scale == "full" else None
    made = predict_host(runs_of(request, profile), profile)
    write_prediction(made, path)
    print(f"{path}: {len(made.runs)} runs predicted with profile {made.profile_digest or '-'}")
    return 0


def _compared(request: HostRequest, level: Level) -> str:
    from layerwise.scenarios.whole_host.comparing import compare_folder
    from layerwise.scenarios.whole_host.driving import runs_of
    from layerwise.scenarios.whole_host.predictions import host_profile, read_prediction

    prediction = read_prediction(request.out / "predictions.json")
    if request.scale == "quick" or prediction is None:
        raise SpecError("--level", level, "needs traces of GPUs", "leave it out with --device cpu")
    profile = host_profile(request.gpu)
    return compare_folder(request.out, prediction, runs_of(request, profile), profile, level)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m layerwise.scenarios.whole_host", description=__doc__
    )
    parser.add_argument(
        "--gpus", type=int, default=0, help="2, 4 or 8: all of the host's (default: DIR's)"
    )
    parser.add_argument("--out", type=Path, help="the folder to write, or to go on with")
    parser.add_argument(
        "--gpu", default="", help="whose profile predicts (default: DIR's, or this machine's GPU)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"),
                        help="cpu: tiny models over gloo, to see every stage in a minute "
                        "(default: DIR's, or cuda)")  # fmt: skip
    parser.add_argument("--budget-s", type=float, default=540.0, help="of this call, in seconds")
    parser.add_argument(
        "--prediction", type=Path, help="take this file (default: the committed one)"
    )
    parser.add_argument(
        "--predict-only", type=Path, metavar="FILE", help="write predictions, no more"
    )
    parser.add_argument("--report-only", action="store_true", help="measure nothing, report on DIR")
    parser.add_argument("--level", choices=("op", "layer", "stage", "run"),
                        help="also every trace as `layerwise compare` shows it, in compare.txt")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())

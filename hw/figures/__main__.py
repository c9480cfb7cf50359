"""`python -m layerwise.hw.figures --out figures.json`: what the engine reaches on this GPU, and the bars.

Every figure is taken in this one process, so that floors and what is held against them share the
clocks, the heat and the libraries.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from layerwise.sim.plan.errors import LayerwiseError, MissingPackageError
from layerwise.sim.plan.ops import AttentionKernel


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when every bar is met, 1 when not, 2 with one line that says what to change."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        return _run(options, shlex.join(["python", "-m", "layerwise.hw.figures", *given]))
    except LayerwiseError as error:
        print(f"layerwise.hw.figures: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m layerwise.hw.figures", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--only", default="", help="figures to take, by name, with commas between")
    parser.add_argument("--device", default="cuda", help="the GPU, such as cuda:0")
    parser.add_argument(
        "--two-gpus", action="store_true", help="only what needs two; starts its own ranks"
    )
    kernels = get_args(AttentionKernel)
    parser.add_argument("--decode-attention", choices=kernels, default="cudnn")
    parser.add_argument("--prefill-attention", choices=kernels, default="cudnn")
    return parser


def _run(options: argparse.Namespace, command: str) -> int:
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "torch", "take figures", "pip install torch", "the simulator (`import sim`)"
        ) from error
    from layerwise.hw.errors import NotAvailableError
    from layerwise.hw.figures import report
    from layerwise.hw.figures.bench import KERNELS, bench_on
    from layerwise.hw.figures.run import chosen, take
    from layerwise.hw.host.environment import environment_of
    from layerwise.hw.ranks.session import under_torchrun, usable_device

    if under_torchrun():
        raise NotAvailableError(
            "the figures start their own ranks; start one process: `python -m layerwise.hw.figures ...`"
        )
    only = [name for name in options.only.split(",") if name]
    figures = chosen(only, torch.cuda.device_count(), two_gpus_only=options.two_gpus)
    device = usable_device(options.device)
    if device.type != "cuda":
        raise NotAvailableError(f"--device {options.device}: the figures are a GPU's; use cuda")
    kernels = replace(
        KERNELS, decode_attention=options.decode_attention,
        prefill_attention=options.prefill_attention,
    )  # fmt: skip
    environment = environment_of(device)
    outcomes = take(
        figures, bench_on(device, kernels),
        lambda so_far: report.write(options.out, so_far, environment, command),
    )  # fmt: skip
    print("\n".join(["", *report.table(outcomes)]), flush=True)
    print(f"{options.out}: {len(outcomes)} figures on {environment['gpu']}")
    return 0 if all(outcome.passes for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

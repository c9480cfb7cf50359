"""Collect what a fit needs from one GPU: the sweep, the L2 curve, and a few whole stages.

`python -m scenarios.collect OUT [--budget-s N]`, or `layerwise calibrate --collect OUT`. Interrupted,
it goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from calibration.sweeps import sweep
from sim.plan.compile import KernelChoice
from sim.plan.files import load_scenario
from sim.trace import write_atomically, write_trace

# Fastest of the candidates timed on H100 and H200: cuDNN for whole prompts and decode; its causal
# mask is top-left aligned, so later chunks of a prompt need the flash kernel.
GPU_KERNELS = KernelChoice(
    decode_attention="cudnn", prefill_attention="cudnn", chunked_prefill_attention="flash"
)
FIT_SCENARIOS = Path(__file__).parent / "fit"


def collect(out: Path, budget_s: float, progress: Callable[[str], None] = print) -> int:
    """Measure into the folder `out`; returns how many sweep points are still missing."""
    import torch

    from hw.bandwidth import read_curve
    from hw.environment import environment_of
    from hw.measure import measure
    from hw.sweep import measure_programs

    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda")
    write_atomically(out / "environment.json", json.dumps(environment_of(device), indent=1) + "\n")
    write_atomically(out / "read_curve.json", json.dumps(read_curve(device), indent=1) + "\n")
    for path in sorted(FIT_SCENARIOS.glob("*.toml")):
        target = out / f"{path.stem}.jsonl"
        if not target.exists():
            scenario = load_scenario(path).with_kernels(GPU_KERNELS)
            trace = measure(scenario, timing="cupti", with_bandwidth=True)
            assert trace is not None, "a rank alone returns its own trace"
            write_trace(replace(trace, purpose="fit"), target)
            progress(f"{target.name}: median step {median(trace.untraced_step_s):.6f} s")
    points = [(point.name, point.program) for point in sweep(GPU_KERNELS)]
    return measure_programs(
        points, device="cuda", out=out / "sweep.jsonl", budget_s=budget_s, progress=progress
    )


if __name__ == "__main__":
    import sys

    sys.exit(collect(Path(sys.argv[1]), float(sys.argv[2])))

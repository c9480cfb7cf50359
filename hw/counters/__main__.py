"""Run one target under Nsight Compute; `layerwise counters` starts this process through ncu."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from layerwise.hw.counters.counting import Target
from layerwise.hw.counters.profiled import cuda_window, read_buffers, run_scenario
from layerwise.hw.host.environment import environment_of, sample_clocks
from layerwise.hw.ranks.session import usable_device
from layerwise.sim.plan.errors import LayerwiseError
from layerwise.sim.plan.files import load_scenario
from layerwise.sim.trace import write_atomically


def run_target(target: Target) -> None:
    """Run what is to be profiled, and leave the names of its ops and the environment."""
    device, window = usable_device("cuda"), cuda_window()
    if target.scenario:
        names = run_scenario(
            load_scenario(Path(target.scenario)),
            device,
            window,
            warm_ups=target.warm_ups,
            only=target.ops,
        )
    else:
        names = read_buffers(target.working_sets_bytes, device, window, warm_ups=target.warm_ups)
    environment = environment_of(device) | sample_clocks(device, "after")
    said = {"ops": names, "environment": environment}
    write_atomically(Path(target.report), json.dumps(said))


if __name__ == "__main__":
    try:
        run_target(Target(**json.loads(sys.argv[1])))
    except LayerwiseError as error:
        print(f"hw.counters: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)

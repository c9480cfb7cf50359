"""Faults on purpose: weights that, on one rank, make an op of a repeat go wrong.

Run as `python -m tests.hw.faults SCENARIO ...` it is `python -m layerwise.hw` with the fault that the
variable LAYERWISE_TEST_FAULT describes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist

from layerwise.hw.__main__ import main
from layerwise.hw.engine import execute
from layerwise.hw.engine.schedule import Action
from layerwise.hw.engine.weights import RandomWeights
from layerwise.hw.ranks import launch
from layerwise.sim.plan.model import ModelSpec

VARIABLE = "LAYERWISE_TEST_FAULT"
Kind = Literal["none", "kill", "stop", "sleep", "raise", "oom", "oom while allocating"]
# The shortest step of the faulty rank: each step is then written down at once.
STEP_S = 2e-3


@dataclass(frozen=True)
class Fault:
    """What goes wrong on `rank` at `op` of a repeat."""

    kind: Kind
    rank: int = 1
    op: str = "L02.mlp.down@m1"
    phase: str = "the untraced run"
    repeat: int = 3

    def to_environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}


@dataclass(frozen=True)
class FaultyWeights:
    """Random weights; asking for the first one on the faulty rank sets the trap."""

    model: ModelSpec
    fault: Fault

    def __call__(self, name: str, layer: int) -> torch.Tensor:
        rank = dist.get_rank() if dist.is_initialized() else 0
        if rank == self.fault.rank:
            if self.fault.kind == "oom while allocating" and name == "mlp.down.weight":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            set_trap(self.fault)
        cuda = dist.is_initialized() and dist.get_backend() == "nccl"
        device = torch.device("cuda" if cuda else "cpu")
        return RandomWeights(self.model, device)(name, layer)


def set_trap(fault: Fault) -> None:
    perform = execute.Engine._perform

    def faulty(engine: execute.Engine, action: Action) -> None:
        perform(engine, action)
        if action.placed.name == fault.op:
            time.sleep(STEP_S)
            if (engine.progress.phase, engine.progress.repeat) == (fault.phase, fault.repeat):
                spring(fault.kind)

    if execute.Engine._perform.__name__ != "faulty":
        execute.Engine._perform = faulty


def spring(kind: Kind) -> None:
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sleep":
            time.sleep(600)
        case "raise":
            raise ValueError("out of ideas")
        case "oom":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1")
        case "none" | "oom while allocating":
            pass


if __name__ == "__main__":
    # A rank unpickles the weights by the name of this module, not as __main__'s.
    from tests.hw import faults  # noqa: PLW0406

    given = faults.Fault(**json.loads(os.environ[VARIABLE]))
    real = launch.launch
    launch.launch = lambda asked, options: real(
        asked, replace(options, weights=faults.FaultyWeights(asked.model, given))
    )
    sys.exit(main(sys.argv[1:]))

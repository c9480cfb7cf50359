"""Start a measurement where it belongs: alone, under torchrun, or on ranks started here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist

from hw.local import local_ranks
from hw.measure import check_request, measure
from hw.session import Session, session_from_torchrun, under_torchrun, usable_device
from hw.tracing import Timing
from sim.plan.errors import PlacementError
from sim.plan.scenario import Scenario, place
from sim.trace import Trace

DeviceType = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to measure. `timeout_s` bounds a whole run of several ranks."""

    timing: Timing
    device: DeviceType
    traced_repeats: int = 5
    with_bandwidth: bool = False
    timeout_s: float = 1800.0


def launch(scenario: Scenario, options: Options) -> Trace | None:
    """Measure a scenario; None on every process of a torchrun but the first.

    Raises RankFailedError, with rank, op and cause, when a rank of several fails.
    """
    num_ranks = 1 if scenario.run.only_rank >= 0 else place(scenario).num_ranks
    usable_device(options.device)
    if num_ranks == 1:
        _require_one_process()
        return _measure_on(None, scenario, options)
    if under_torchrun():
        session = session_from_torchrun(options.device)
        trace = _measure_on(session, scenario, options)
        dist.destroy_process_group()
        return trace
    check_request(scenario, options.timing, usable_device(options.device, num_ranks))
    with local_ranks(num_ranks, options.device) as ranks:
        return ranks.call(_measure_on, scenario, options, timeout_s=options.timeout_s)[0]


def _require_one_process() -> None:
    world_size = os.environ.get("WORLD_SIZE", "1") if under_torchrun() else "1"
    if world_size != "1":
        raise PlacementError(
            "placement", "1 rank", f"was started with WORLD_SIZE={world_size}",
            "start one process: `python -m hw ...`",
        )  # fmt: skip


def _measure_on(session: Session | None, scenario: Scenario, options: Options) -> Trace | None:
    return measure(
        scenario, timing=options.timing, device=options.device, session=session,
        traced_repeats=options.traced_repeats, with_bandwidth=options.with_bandwidth,
    )  # fmt: skip

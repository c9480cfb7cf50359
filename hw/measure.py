"""Measure a scenario: step times with nothing attached, then the time of every op."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain

import torch

from layerwise.hw.beginning import beginning_of
from layerwise.hw.engine.memory import reserve_block
from layerwise.hw.engine.residency import check_windows
from layerwise.hw.engine.weights import WeightSource
from layerwise.hw.errors import NotAvailableError
from layerwise.hw.host.bandwidth import read_bandwidth, weight_and_kv_read_bytes
from layerwise.hw.host.environment import binding_of, environment_of, places_as_text, sample_clocks
from layerwise.hw.instrument.energy import combined
from layerwise.hw.instrument.power import PowerMeter, PowerOptions
from layerwise.hw.instrument.tracing import Timing
from layerwise.hw.options import Options
from layerwise.hw.rank_run import RankRun
from layerwise.hw.ranks.journal import Journal
from layerwise.hw.ranks.progress import naming_out_of_memory
from layerwise.hw.ranks.session import Session, alone
from layerwise.hw.streams import StreamPlan, kernel_set_of, plan_stream, slowest, tokens_per_step
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.scenario import Scenario, compile_run
from layerwise.sim.plan.validate import validate_run, validate_work
from layerwise.sim.trace import Trace, as_data

TRACED_REPEATS = Options.traced_repeats
SAMPLED = PowerOptions()


def measure(
    scenario: Scenario,
    *,
    timing: Timing | None = None,
    device: str = "cuda",
    session: Session | None = None,
    weights: WeightSource | None = None,
    traced_repeats: int = TRACED_REPEATS,
    with_bandwidth: bool = False,
    read_bytes_per_s: float | None = None,
    free_bytes: int | None = None,
    journal: Journal | None = None,
    power: PowerOptions = SAMPLED,
    announce: bool = False,
) -> Trace | None:
    """Measure a scenario on this process's rank; the trace is returned on the first rank only.

    `session` names the rank among several processes; without one the process is alone, and runs
    `run.only_rank` or a placement of one rank. `weights` defaults to seeded random values.
    `timing` None is the device's default, with CUDA events where CUPTI cannot be had.
    `with_bandwidth` reads HBM's rate; `read_bytes_per_s` is a reading that was taken before. What
    is measured goes into this rank's `journal` as it comes. `announce`: say on stderr what begins.
    Raises SpecError, NotAvailableError, DoesNotFitError, ExecutionError.
    """
    only_rank = scenario.run.only_rank
    if session is not None and only_rank >= 0:
        raise SpecError(
            "run.only_rank", only_rank, "measures one rank by itself", "start a single process"
        )
    session = session or alone(device, max(only_rank, 0))
    # What runs is what the trace says: a reader may not take another profile's kernels for these.
    scenario = scenario.with_kernels(KernelChoice())
    check_request(scenario, timing, session.device)
    check_windows(scenario, session.device)
    run = compile_run(scenario)
    validate_run(run)
    validate_work(scenario.model, run)
    if only_rank < 0:
        session.require_world_size(run[0].placement.num_ranks)
    plan = plan_stream(run, alone=session.store is None)
    if announce:
        lines = beginning_of(scenario, session, plan, 0 if timing == "none" else traced_repeats)
        for line in lines:
            print(line, file=sys.stderr, flush=True)
    reserve_block(session.device)
    before = sample_clocks(session.device, "before")
    meter = PowerMeter(power, session.device)
    journal, progress = journal or Journal(), session.progress
    with naming_out_of_memory(session.rank, progress):
        rank = RankRun(scenario, session, run, plan, weights, free_bytes, meter, journal)
        rank.begin_journal(scenario, before, timing)
        with rank.windows() as windows:
            untraced_s = rank.untraced(scenario.run.repeats)
            rows, traced_s = rank.traced(timing, traced_repeats)
            reported = windows.report() if windows else {}
        progress.enter("leaving the other ranks", waits=True)
        rank.close()
    progress.enter("gathering what was measured")
    after = sample_clocks(session.device, "after")
    if with_bandwidth:
        read_bytes_per_s = _read_rate(session)
    measured = _hbm_floor(session, plan, untraced_s, read_bytes_per_s) if read_bytes_per_s else {}
    binding = binding_of(session.rank, session.device, session.world_size)
    bindings = session.gather("binding", binding)
    gathered = session.gather("measured", (untraced_s, traced_s, rows))
    powers = session.gather("power", meter.report())
    if not gathered:
        return None
    power_measured, power_notes = combined(powers, tokens_per_step(plan, session))
    return Trace(
        source="measured",
        name=scenario.name,
        scenario=as_data(scenario),
        kernel_set=kernel_set_of(plan, session),
        rows=tuple(chain.from_iterable(part[2] for part in gathered)),
        untraced_step_s=slowest(plan, session, [part[0] for part in gathered]),
        traced_step_s=slowest(plan, session, [part[1] for part in gathered]),
        timing=rank.timing,
        measured=measured | power_measured,
        environment=(
            environment_of(session.device)
            | places_as_text(bindings)
            | before
            | after
            | reported
            | power_notes
            | rank.timing_notes
        ),
    )


def check_request(scenario: Scenario, timing: Timing | None, device: torch.device) -> None:
    """Refuse what this device cannot do, by the key that asks for it."""
    if device.type == "cpu" and scenario.run.launch == "graph":
        raise SpecError(
            "run.launch", "graph", "needs a CUDA GPU and the device is the CPU", "use 'eager'"
        )
    for key in ("weight_dtype", "kv_dtype"):
        stored = getattr(scenario.model, key)
        if stored not in ("", scenario.model.dtype):
            raise SpecError(
                f"model.{key}",
                stored,
                "is predicted only: no kernel here computes with it",
                "leave it out",
            )
    if device.type == "cuda" and scenario.model.dtype != "bfloat16":
        raise SpecError(
            "model.dtype",
            scenario.model.dtype,
            "is not what the GPU's fused kernels take: a plain one would be timed in their place",
            "use 'bfloat16', or measure with --device cpu",
        )
    allowed = ("clock", "none") if device.type == "cpu" else ("cupti", "events", "none")
    if timing and timing not in allowed:
        raise NotAvailableError(
            f"--timing {timing} cannot be used on {device.type}; use one of {list(allowed)}"
        )


def _read_rate(session: Session) -> float:
    if session.device.type != "cuda":
        raise NotAvailableError("read bandwidth is measured on CUDA; leave --bandwidth out here")
    return read_bandwidth(session.device)


def _hbm_floor(
    session: Session, plan: StreamPlan, untraced_s: Sequence[float], read_bytes_per_s: float
) -> dict[str, float]:
    """HBM's read rate, and the time that reading weights and KV takes at that rate at least."""
    read_bytes = weight_and_kv_read_bytes(plan.body_programs(session.rank)) / len(plan.rounds)
    floor_s = read_bytes / read_bytes_per_s
    median_s = sorted(untraced_s)[len(untraced_s) // 2]
    return {
        "read_bandwidth_bytes_per_s": read_bytes_per_s,
        "hbm_floor_s": floor_s,
        "hbm_floor_fraction": floor_s / median_s,
    }

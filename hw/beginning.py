"""What a measurement is about to do, in a line or two: it may then be silent for minutes."""

from __future__ import annotations

from layerwise.hw.engine.memory import budget_of, free_bytes_of, slots_of
from layerwise.hw.ranks.session import Session
from layerwise.hw.streams import StreamPlan
from layerwise.sim.plan.errors import visible
from layerwise.sim.plan.scenario import Scenario

# Random values a second and core. Source: torch 2.13's normal_ in float32, on the build machine.
FILL_BYTES_PER_S = 0.6e9
MUCH_ON_A_CPU_BYTES = 4 * 10**9


def beginning_of(
    scenario: Scenario, session: Session, plan: StreamPlan, traced_repeats: int
) -> list[str]:
    """Lines for stderr, on the first rank; none elsewhere, or where it will be refused."""
    if session.store is not None and session.rank:
        return []
    every = [c.programs[session.rank] for c in (*plan.prologue, *plan.epilogue)]
    size = sum(budget_of(slots_of([*plan.body_programs(session.rank), *every])).values())
    if size > free_bytes_of(session.device):
        return []
    num_ranks = 1 if session.store is None else session.world_size
    ranks = "" if num_ranks == 1 else f", one of {num_ranks}"
    steps = len(plan.body)
    first = (
        f"hw: {visible(scenario.name)}: {size / 1e9:.3g} GB on rank {session.rank}{ranks} "
        f"({session.device.type}); then {scenario.run.repeats} repeats untraced and "
        f"{traced_repeats} traced, of {steps} step{'' if steps == 1 else 's'} each"
    )
    total = num_ranks * size
    if session.device.type != "cpu" or total <= MUCH_ON_A_CPU_BYTES:
        return [first]
    warning = (
        f"hw: warning: about {total / 1e9:.0f} GB on the CPU: filling alone takes some "
        f"{total / FILL_BYTES_PER_S:.0f} s, and each step reads it; use fewer model.num_layers, a "
        "smaller workload.batch_size or workload.context_tokens"
    )
    return [first, warning]

"""The clock that power limits hold in sustained work, and what it draws.

Each GPU's mean power over a step follows from the joules of its ops and the step's time, and both
from its clock; the clock is found at which the power is the limit's. GPUs that wait for a slower
one draw less and keep theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layerwise.sim.cost.model import Calibrated, CostModel
from layerwise.sim.cost.power import MIN_CLOCK_SHARE, share_within, watts
from layerwise.sim.plan.hardware import FULL_SPEED, ClusterSpec, HeldCluster
from layerwise.sim.profile import PowerFit

if TYPE_CHECKING:
    from layerwise.sim.simulate import Simulation

MAX_ROUNDS = 6
# Power this near to the limit is at it; clocks are told to a five-hundredth, so that GPUs of
# scenarios alike share their ops' times.
NEAR, GRAIN = 0.003, 500
# How a clock answers power where nothing else is known yet: joules and time both follow it.
FIRST_EXPONENT = 1.7


@dataclass(frozen=True, kw_only=True)
class Power:
    """What all GPUs draw in a step, and the clocks at which they do.

    `clock_share` is of the GPU whose clock is lowest, 1 where no limit acts; `watts` the mean of a
    GPU, `max_watts` of the one that draws most. Half-widths are of 90 % intervals, as ln: of the
    clock (0 where nothing holds it), and of energy and power.
    """

    clock_share: float
    watts: float
    max_watts: float
    energy_per_step_j: float
    clock_half_width: float
    energy_half_width: float
    clock_share_by_rank: Mapping[int, float] = field(default_factory=dict[int, float])

    @property
    def is_held(self) -> bool:
        """Does a power limit hold a GPU below full clock?"""
        return self.clock_share < 1


def power_fit_of(cost: CostModel) -> PowerFit | None:
    """Return what a belief knows of power; only calibrated ones with a measured GPU do."""
    return cost.profile.power if isinstance(cost, Calibrated) else None


def at_held_clocks(
    simulate: Callable[[ClusterSpec], Simulation], cluster: ClusterSpec, power: PowerFit
) -> Simulation:
    """Simulate sustained work: at full clock, and again at the clocks that the limit leaves."""
    limit_w = power.values["slow_limit_w"]
    shares = dict[int, float]()
    tried = dict[int, list[tuple[float, float]]]()
    found = simulate(cluster)
    for _ in range(MAX_ROUNDS):
        drawn = _drawn(found, power, shares)
        over = {
            rank: one.watts
            for rank, one in drawn.items()
            if one.watts > limit_w * (1 + NEAR)
            or (shares.get(rank, 1.0) < 1 and one.watts < limit_w * (1 - NEAR))
        }
        wanted = dict(shares)
        for rank, watts_now in over.items():
            tried.setdefault(rank, []).append((shares.get(rank, 1.0), watts_now))
            wanted[rank] = _next_share(tried[rank], limit_w, drawn[rank], power)
        if wanted == shares:
            return found
        shares = wanted
        found = simulate(_held(found, cluster, shares))
    return found


def power_of(simulation: Simulation, steps: Sequence[int], step_s: float) -> Power | None:
    """Return what these steps draw, which take `step_s` in all; None where nobody measured power."""
    power = power_fit_of(simulation.machine.cost)
    if power is None:
        return None
    cluster = simulation.machine.cluster
    shares = {rank: cluster.speed_of(rank).clock_share for rank in simulation.ranks}
    found = {
        rank: _watts(simulation, rank, steps, step_s, power, shares[rank])
        for rank in simulation.ranks
    }
    alike = {rank: simulation.num_alike(rank) for rank in simulation.ranks}
    total_w = sum(found[rank].watts * alike[rank] for rank in found)
    lowest = min(shares.values())
    is_held = isinstance(cluster, HeldCluster) and lowest < 1
    return Power(
        clock_share=lowest,
        watts=total_w / sum(alike.values()),
        max_watts=max(one.watts for one in found.values()),
        energy_per_step_j=total_w * step_s,
        clock_half_width=power.clock_half_width if is_held else 0.0,
        energy_half_width=power.energy_half_width,
        clock_share_by_rank=shares,
    )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Mean watts of one GPU, and what made them."""

    watts: float
    seconds: float
    sm_j: float
    hbm_j: float


def _drawn(
    simulation: Simulation, power: PowerFit, shares: Mapping[int, float]
) -> dict[int, _Drawn]:
    """What each simulated rank draws in a steady step, or where steps are chunks, in all of them."""
    run = simulation.machine.run
    if run[0].step.query_tokens == 1:
        steps, step_s = [max(0, len(run) - 2)], simulation.steady_step_s
    else:
        steps, step_s = list(range(len(run))), simulation.step_end_s[-1]
    return {
        rank: _watts(simulation, rank, steps, step_s, power, shares.get(rank, 1.0))
        for rank in simulation.ranks
    }


def _watts(
    simulation: Simulation,
    rank: int,
    steps: Sequence[int],
    step_s: float,
    power: PowerFit,
    share: float,
) -> _Drawn:
    parts = [simulation.account(rank, step).energy_j for step in steps]
    sm_j, hbm_j = (sum(each) for each in zip(*parts, strict=True))
    return _Drawn(watts(power, share, step_s, sm_j, hbm_j), step_s, sm_j, hbm_j)


def _next_share(
    tried: Sequence[tuple[float, float]], limit_w: float, now: _Drawn, power: PowerFit
) -> float:
    """The clock at which power should be the limit's: by a secant in logarithms, then nearer."""
    share, watts_now = tried[-1]
    if len(tried) == 1:
        alike = share_within(power, limit_w, now.seconds, now.sm_j, now.hbm_j)
        guess = share * alike ** (power.values["exponent"] / FIRST_EXPONENT)
    else:
        (before, watts_before), (share, watts_now) = tried[-2:]
        slope = 1.0
        if share != before and watts_now != watts_before:
            slope = math.log(watts_now / watts_before) / math.log(share / before)
        guess = share * (limit_w / watts_now) ** (1 / max(0.2, slope))
    return min(1.0, max(MIN_CLOCK_SHARE, round(guess * GRAIN) / GRAIN))


def _held(simulation: Simulation, cluster: ClusterSpec, shares: Mapping[int, float]) -> ClusterSpec:
    """The cluster with these clocks of the simulated ranks, and of those that they stand for."""
    by_rank = [1.0] * cluster.num_gpus
    for rank, share in shares.items():
        for each in (rank, *simulation.machine.twins[rank]):
            by_rank[each] = share
    if all(share == FULL_SPEED.clock_share for share in by_rank):
        return cluster
    return HeldCluster.of(cluster, tuple(by_rank))

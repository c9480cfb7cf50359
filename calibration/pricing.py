"""What a profile says of a point: one op repeated in a row of its own kind, as a sweep measures it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from layerwise.calibration.points import SweepPoint
from layerwise.sim.cost.model import Calibrated
from layerwise.sim.cost.power import watts
from layerwise.sim.machine.blocks import TimedOp, Walked, time_ops, walk
from layerwise.sim.machine.l2 import L2State
from layerwise.sim.plan.errors import ProfileMismatchError
from layerwise.sim.plan.hardware import GPUS, Speed, dgx_cluster
from layerwise.sim.profile import PowerFit, Profile
from layerwise.sim.uncertainty import BETWEEN_GPUS_HALF_WIDTH

# Clocks of a GPU are told to a thousandth of the highest.
GRAIN = 1000


@dataclass(frozen=True, kw_only=True)
class Sustained:
    """One replay of a point's graph in sustained work: its seconds, clock and power.

    `half_width`: as ln, with what is not known of another GPU of the kind, and of a held clock.
    """

    seconds: float
    half_width: float
    clock_share: float
    watts: float

    @property
    def energy_j(self) -> float:
        """Joules of one replay."""
        return self.watts * self.seconds


def point_seconds(profile: Profile, point: SweepPoint) -> float:
    """One replay of a point's graph in a burst, once it has run before."""
    return price_point(profile, point)[0]


def price_point(profile: Profile, point: SweepPoint) -> tuple[float, float]:
    """Its seconds and half-width in a burst: every repeat is the same shape, so widths add up."""
    cost = cost_of_points(profile)
    return _priced(cost, time_ops(cost, walked_ops(cost, point)))


def price_sustained(profile: Profile, point: SweepPoint) -> Sustained:
    """The same at the clock that the power limit holds; raises ProfileMismatchError without power."""
    if profile.power is None:
        raise ProfileMismatchError(
            f"profile {profile.name!r} says nothing of power; fit it (calibrate --what power)"
        )
    cost = cost_of_points(profile)
    limit_w = profile.power.values["slow_limit_w"]
    low, high = 0, GRAIN
    found = _at(cost, point, 1.0, profile.power)
    if found.watts <= limit_w:
        return found
    while high - low > 1:
        middle = (low + high) // 2
        found = _at(cost, point, middle / GRAIN, profile.power)
        low, high = (middle, high) if found.watts <= limit_w else (low, middle)
    return found


def cost_of_points(profile: Profile) -> Calibrated:
    """The belief about one GPU whose ops run in a row of their own kind."""
    return Calibrated.about(dgx_cluster(GPUS[profile.gpu], 1), profile.in_a_row)


def walked_ops(cost: Calibrated, point: SweepPoint) -> tuple[Walked, ...]:
    """The ops of one replay of a point's graph, once it has run before, and what they move."""
    state = L2State(cost)
    walk(point.program.parts, state)
    return walk(point.program.parts, state)


def _at(cost: Calibrated, point: SweepPoint, share: float, power: PowerFit) -> Sustained:
    held = cost.at_speed(Speed(clock_share=share))
    timed = time_ops(held, walked_ops(held, point))
    seconds, half_width = _priced(held, timed)
    sm_j, hbm_j = (sum(getattr(one.cost, key) for one in timed) for key in ("sm_j", "hbm_j"))
    drawn = watts(power, share, seconds, sm_j, hbm_j)
    of_the_clock = power.slowdown_half_width if share < 1 else 0.0
    return Sustained(
        seconds=seconds,
        half_width=math.hypot(half_width, of_the_clock, BETWEEN_GPUS_HALF_WIDTH),
        clock_share=share,
        watts=drawn,
    )


def _priced(cost: Calibrated, timed: tuple[TimedOp, ...]) -> tuple[float, float]:
    seconds = cost.graph_launch_s + timed[-1].end_ps * 1e-12
    widths = sum(one.cost.half_width * (one.cost.launch_s + one.cost.kernel_s) for one in timed)
    return seconds, widths / seconds

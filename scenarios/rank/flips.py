"""What would flip a ranking: one figure of the hardware at a time, by how much, found by bisection.

Pure over a lead, ln(winner's rate / rival's), as a function of the figure's factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.scenario import Launch

Lead = Callable[[float], float]
LOW, HIGH = 0.1, 10.0
# An L2 of tens of GB is the question that this project started from.
HIGH_L2 = 1000.0
STEP = 2.0
PRECISION = 1.01


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One figure of the hardware; `key` as `--set` takes it, "" where no field holds it."""

    name: str
    kind: Literal["field", "latency", "launch"] = "field"
    key: str = ""
    low: float = LOW
    high: float = HIGH

    def value(self, cluster: ClusterSpec) -> float:
        """What it is now, in SI units; 1 for what is only a factor."""
        if self.kind != "field":
            return 1.0
        found: Any = cluster
        for part in self.key.split(".")[1:]:
            found = getattr(found, part)
        return float(found)

    def values(self, cluster: ClusterSpec, factor: float) -> dict[str, object]:
        """The fields to change for a factor: an L2 takes what may be set aside of it along.

        A peak takes float32's along, where it is known: one clock drives both.
        """
        value = self.value(cluster) * factor
        wide = cluster.gpu.peak_float32_flops_per_s * factor
        if self.key == "cluster.gpu.peak_flops_per_s" and wide:
            return {self.key: value, "cluster.gpu.peak_float32_flops_per_s": wide}
        if self.key != "cluster.gpu.l2_bytes":
            return {self.key: value}
        size = max(1, round(value))
        persisting = min(cluster.gpu.persisting_l2_bytes, size)
        return {self.key: size, "cluster.gpu.persisting_l2_bytes": persisting}


KNOBS = (
    Knob(name="HBM bandwidth", key="cluster.gpu.hbm_bytes_per_s"),
    Knob(name="L2 size", key="cluster.gpu.l2_bytes", high=HIGH_L2),
    Knob(name="L2 bandwidth", key="cluster.gpu.l2_bytes_per_s"),
    Knob(name="peak FLOP rate", key="cluster.gpu.peak_flops_per_s"),
)
NVLINK = Knob(name="NVLink bandwidth", key="cluster.nvlink.bytes_per_s")
NIC = Knob(name="NIC bandwidth", key="cluster.nic.bytes_per_s")
LATENCY = Knob(name="link latency", kind="latency")
EAGER = Knob(name="eager launches", kind="launch")


@dataclass(frozen=True, kw_only=True)
class Flip:
    """What a knob does to the winner's lead.

    `below` and `above`: the factors nearest to 1 at which the rival draws level; None: not within
    the knob's range. `lead_at_half`, `lead_at_double`: ln(winner / rival) there. A switch has
    neither: `lead_switched` is the lead on its other side.
    """

    knob: Knob
    value: float
    below: float | None = None
    above: float | None = None
    lead_at_half: float | None = None
    lead_at_double: float | None = None
    lead_switched: float | None = None

    @property
    def nearest(self) -> float | None:
        """The factor that takes the smaller change; 1 for a switch that flips; None: none does."""
        if self.lead_switched is not None:
            return 1.0 if self.lead_switched <= 0 else None
        found = [factor for factor in (self.below, self.above) if factor is not None]
        return min(found, key=lambda factor: abs(math.log(factor)), default=None)


def knobs_of(cluster: ClusterSpec, launch: Launch) -> tuple[Knob, ...]:
    """The knobs that a cluster has: no NIC in a single node, no switch to what is already so."""
    found = KNOBS
    if cluster.gpus_per_node > 1:
        found += (NVLINK,)
    if cluster.num_nodes > 1:
        found += (NIC,)
    if cluster.num_gpus > 1:
        found += (LATENCY,)
    return found if launch == "eager" else (*found, EAGER)


def find_flip(knob: Knob, lead: Lead, cluster: ClusterSpec) -> Flip:
    """Search a knob's range on both sides of 1; a switch has one other side."""
    if knob.kind == "launch":
        return Flip(knob=knob, value=1.0, lead_switched=lead(1.0))
    known: dict[float, float] = {}

    def remembered(factor: float) -> float:
        if factor not in known:
            known[factor] = lead(factor)
        return known[factor]

    return Flip(
        knob=knob,
        value=knob.value(cluster),
        below=crossing(remembered, knob.low),
        above=crossing(remembered, knob.high),
        lead_at_half=remembered(1 / STEP),
        lead_at_double=remembered(STEP),
    )


def crossing(lead: Lead, bound: float) -> float | None:
    """The factor nearest to 1, on the way to `bound`, at which the lead is gone; None if nowhere.

    Steps of two find the stretch, bisection the factor, to one percent and on the flipped side. A
    lead that is lost and won back within one step is not seen.
    """
    before = 1.0
    for factor in _steps(bound):
        if lead(factor) <= 0:
            return _bisect(lead, before, factor)
        before = factor
    return None


def _steps(bound: float) -> Iterator[float]:
    step = STEP if bound > 1 else 1 / STEP
    factor = step
    while abs(math.log(factor)) < abs(math.log(bound)):
        yield factor
        factor *= step
    yield bound


def _bisect(lead: Lead, holding: float, flipped: float) -> float:
    while max(holding / flipped, flipped / holding) > PRECISION:
        middle = math.sqrt(holding * flipped)
        if lead(middle) <= 0:
            flipped = middle
        else:
            holding = middle
    return flipped

"""What a GPU draws, op by op, and the clock that its power limits leave it.

Form, at a share s of full clock, of work that takes a time t:

    watts(s) = idle + ((FLOPs * energy(kind) + bytes * energy(L2)) * s**k + HBM bytes * energy(HBM)) / t

Every byte that an op reads or writes passes the L2, and some of them HBM too. Energy of SMs and L2
falls with the clock, for the voltage does. A GPU has two limits: a fast one that a single long
kernel can meet within a burst, and its power cap, over the mean of tens of milliseconds, which
holds the clock of sustained work. Messages and waiting kernels are not counted. Source: this
project's runs, calibration/traces/fit-h200; a power that SMs draw whatever they do was tried
instead of the L2's bytes, and put whole decode steps 20 to 50 % too high.
"""

from __future__ import annotations

from layerwise.sim.cost.kinds import FlopEnergy
from layerwise.sim.profile import PowerFit

# Where NVML lets an H100's or H200's clock go down to, over its highest: 345 of 1,980 MHz.
MIN_CLOCK_SHARE = 0.17


def flop_constant(energy: FlopEnergy) -> str:
    """Return the name of the constant of joules per FLOP."""
    return f"flop_j.{energy}"


def energies_of(
    power: PowerFit, energy: FlopEnergy | None, flops: float, l2_bytes: float, hbm_bytes: float
) -> tuple[float, float]:
    """Return joules of an op in SMs and L2 at full clock, and of its traffic with HBM.

    `l2_bytes`: all that it reads and writes; `hbm_bytes`: what of it crosses to and from HBM.
    """
    values = power.values
    per_flop = values[flop_constant(energy)] if energy else 0.0
    return flops * per_flop + l2_bytes * values["l2_byte_j"], hbm_bytes * values["hbm_byte_j"]


def watts(power: PowerFit, clock_share: float, seconds: float, sm_j: float, hbm_j: float) -> float:
    """Return the mean power of work of these joules (see `energies_of`) over these seconds."""
    values = power.values
    return values["idle_w"] + (sm_j * clock_share ** values["exponent"] + hbm_j) / seconds


def share_within(
    power: PowerFit, limit_w: float, seconds: float, sm_j: float, hbm_j: float
) -> float:
    """Return the highest clock share at which such work, in this time at any clock, is within a limit."""
    values = power.values
    free_w = limit_w - values["idle_w"] - hbm_j / seconds
    asked_w = sm_j / seconds
    if free_w >= asked_w:
        return 1.0
    share = (max(free_w, 0.0) / asked_w) ** (1 / values["exponent"])
    return max(MIN_CLOCK_SHARE, share)

"""A GPU below the speed of its kind: its datasheet rates and a profile's constants, scaled.

The clock drives the SMs and the L2: their rates go with it, and what a block, a tile or a merge
takes goes against it. HBM has a clock of its own. What does not move: launches and the gaps between
kernels, the latency of a miss, the host, and the residuals around a form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from layerwise.sim.cost.transfer import HOLDS_FOR, values_text
from layerwise.sim.plan.hardware import ClusterSpec, GpuSpec, Speed
from layerwise.sim.profile import Constant, Profile

HBM_RATES = ("hbm_bytes_per_s", "read_hbm_bytes_per_s")
CLOCK_RATES = (
    "l2_bytes_per_s", "read_l2_bytes_per_s", "reduction_bytes_per_s", "sm_bytes_per_s",
    "epilogue_bytes_per_s",
)  # fmt: skip
# Spent on SMs inside a kernel, see `layerwise.sim.cost.forms`; FLOP/s move with the GPU's peak.
CLOCK_TIMES = ("prologue_s", "split_s", "tile_s", "step_s", "block_s", "seconds_per_logit")


def slowed_gpu(gpu: GpuSpec, speed: Speed) -> GpuSpec:
    """The datasheet of a GPU that reaches these shares of it."""
    return replace(
        gpu,
        peak_flops_per_s=gpu.peak_flops_per_s * speed.clock_share,
        l2_bytes_per_s=gpu.l2_bytes_per_s * speed.clock_share,
        hbm_bytes_per_s=gpu.hbm_bytes_per_s * speed.hbm_share,
        source=f"{gpu.source}; slowed: {_text(speed)}",
    )


def slowed_profile(profile: Profile, slowed: ClusterSpec, speed: Speed) -> Profile:
    """A profile that holds for a cluster, for its GPU at these shares: the one in `slowed`."""
    factors: dict[str, float] = {}
    factors |= dict.fromkeys(HBM_RATES, speed.hbm_share)
    factors |= dict.fromkeys(CLOCK_RATES, speed.clock_share)
    factors |= dict.fromkeys(CLOCK_TIMES, 1 / speed.clock_share)
    return replace(
        profile,
        name=f"{profile.name}, slowed: {_text(speed)}",
        fits={
            kind: replace(fit, constants=_scaled(fit.constants, factors))
            for kind, fit in profile.fits.items()
        },
        machine=_scaled(profile.machine, factors),
        provenance=profile.provenance
        | {HOLDS_FOR: values_text(slowed.gpu, (slowed.nvlink, slowed.nic))},
    )


def _scaled(constants: Mapping[str, Constant], factors: Mapping[str, float]) -> dict[str, Constant]:
    return {name: _times(found, factors.get(name, 1.0)) for name, found in constants.items()}


def _times(constant: Constant, factor: float) -> Constant:
    if factor == 1.0:
        return constant
    return replace(
        constant, value=constant.value * factor, standard_error=constant.standard_error * factor,
        source=f"{constant.source}; slowed x {factor:.4g}",
    )  # fmt: skip


def _text(speed: Speed) -> str:
    return f"clock_share={speed.clock_share:g}, hbm_share={speed.hbm_share:g}"

"""A GPU below the speed of its kind: its datasheet rates and a profile's constants, scaled.

The clock drives the SMs and the L2: their rates go with it, and what a block, a tile or a merge
takes goes against it. HBM has a clock of its own. What does not move: launches and the gaps between
kernels, the latency of a miss, the host, and the residuals around a form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from layerwise.sim.cost.following import Follows, followed_by
from layerwise.sim.cost.transfer import HOLDS_FOR, values_text
from layerwise.sim.plan.hardware import ClusterSpec, GpuSpec, Speed
from layerwise.sim.profile import Constant, Profile


def slowed_gpu(gpu: GpuSpec, speed: Speed) -> GpuSpec:
    """The datasheet of a GPU that reaches these shares of it."""
    return replace(
        gpu,
        peak_flops_per_s=gpu.peak_flops_per_s * speed.clock_share,
        peak_float32_flops_per_s=gpu.peak_float32_flops_per_s * speed.clock_share,
        l2_bytes_per_s=gpu.l2_bytes_per_s * speed.clock_share,
        hbm_bytes_per_s=gpu.hbm_bytes_per_s * speed.hbm_share,
        source=f"{gpu.source}; slowed: {_text(speed)}",
    )


def slowed_profile(profile: Profile, slowed: ClusterSpec, speed: Speed) -> Profile:
    """A profile that holds for a cluster, for its GPU at these shares: the one in `slowed`."""
    clock = speed.clock_share
    factors: dict[Follows, float] = {
        "hbm rate": speed.hbm_share,
        "l2 rate": clock,
        "sm rate": clock,
        "sm time": 1 / clock,
        "nothing": 1.0,
    }
    return replace(
        profile,
        name=f"{profile.name}, slowed: {_text(speed)}",
        fits={
            kind: fit.with_constants(_scaled(fit.constants, factors))
            for kind, fit in profile.fits.items()
        },
        machine=_scaled(profile.machine, factors),
        provenance=profile.provenance
        | {HOLDS_FOR: values_text(slowed.gpu, (slowed.nvlink, slowed.nic))},
    )


def _scaled(
    constants: Mapping[str, Constant], factors: Mapping[Follows, float]
) -> dict[str, Constant]:
    return {name: _times(found, factors[followed_by(name)]) for name, found in constants.items()}


def _times(constant: Constant, factor: float) -> Constant:
    if factor == 1.0:
        return constant
    return replace(
        constant,
        value=constant.value * factor,
        standard_error=constant.standard_error * factor,
        source=f"{constant.source}; slowed x {factor:.4g}",
    )


def _text(speed: Speed) -> str:
    return f"clock_share={speed.clock_share:g}, hbm_share={speed.hbm_share:g}"

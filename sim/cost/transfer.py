"""A profile moved to hardware that nobody measured, by the ratios of datasheet values.

Rates move with the datasheet's rate of what they are a rate of. Ratios of a peak, times (launches,
latencies, what one block takes) and the residual points stay as they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from layerwise.sim.cost.following import Follows, followed_by
from layerwise.sim.plan.errors import ProfileMismatchError
from layerwise.sim.plan.hardware import GPUS, ClusterSpec, GpuSpec, LinkSpec, usual_wires
from layerwise.sim.profile import Constant, OpFit, Profile, TransferFit

Wires = tuple[LinkSpec, LinkSpec]
"""The wire inside a node and the wire between nodes."""

HOLDS_FOR = "holds_for"
"""The key of a profile's provenance that says for which datasheet values it was derived."""


@dataclass(frozen=True)
class _Ratio:
    """What a constant is multiplied by, and why."""

    factor: float
    reason: str


def profile_for(cluster: ClusterSpec, profile: Profile, *, moved: bool = False) -> Profile:
    """The profile as it holds for a cluster.

    A cluster of the profile's GPU with other datasheet values or other wires is a what-if: rates
    follow the values. For a GPU of another name that happens only when asked for by `moved`.
    Raises ProfileMismatchError otherwise, and for a profile derived for something else.
    """
    to_links = (cluster.nvlink, cluster.nic)
    derived_for = profile.provenance.get(HOLDS_FOR)
    if derived_for is not None:
        if derived_for != values_text(cluster.gpu, to_links):
            raise ProfileMismatchError(
                f"profile {profile.name!r} was derived for {derived_for} and cluster is "
                f"{values_text(cluster.gpu, to_links)}; give the measured profile"
            )
        return profile
    base = GPUS.get(profile.gpu)
    if not moved or base is None:
        profile.check_gpu(cluster)
    if base is None:
        return profile
    return moved_profile(profile, base, cluster.gpu, usual_wires(base.name), to_links)


def moved_profile(
    profile: Profile, base: GpuSpec, to: GpuSpec, base_links: Wires, to_links: Wires
) -> Profile:
    """The profile of `base` for the datasheet values of `to`; itself where no value differs.

    HBM and L2 rates scale with the datasheet's. An SM's rates of tile loads and stores scale with
    its peak FLOP/s: within a generation both follow the clock. A wire's table is kept under the new
    wire's name, unless that wire was measured itself.
    """
    rates = _gpu_ratios(base, to)
    wires = tuple(
        _ratio(f"{old.name} -> {new.name}", old.bytes_per_s, new.bytes_per_s)
        for old, new in zip(base_links, to_links, strict=True)
    )
    same_wires = all(o.name == n.name for o, n in zip(base_links, to_links, strict=True))
    changed = [ratio.reason for ratio in (*rates.values(), *wires) if ratio.factor != 1.0]
    if base.name == to.name and same_wires and not changed:
        return profile
    what_if = ", other datasheet values" if base.name == to.name else ""
    return replace(
        profile,
        name=f"{to.name}{what_if}, moved from {profile.name}",
        gpu=to.name,
        fits={kind: _moved_fit(fit, rates) for kind, fit in profile.fits.items()},
        transfers=_moved_transfers(profile.transfers, base_links, to_links, wires),
        machine=_moved_constants(profile.machine, rates),
        provenance=profile.provenance
        | {
            "moved_from": profile.gpu,
            "moved_by": "; ".join(dict.fromkeys(changed)) or "no ratio",
            HOLDS_FOR: values_text(to, to_links),
        },
    )


def _ratio(name: str, old: float, new: float) -> _Ratio:
    return _Ratio(new / old, f"{name}: {old:.4g} -> {new:.4g}")


def _gpu_ratios(base: GpuSpec, to: GpuSpec) -> dict[Follows, _Ratio]:
    """By what a constant that moves is a rate of."""
    hbm = _ratio("hbm_bytes_per_s", base.hbm_bytes_per_s, to.hbm_bytes_per_s)
    l2 = _ratio("l2_bytes_per_s", base.l2_bytes_per_s, to.l2_bytes_per_s)
    sm = _ratio(
        "peak_flops_per_s of one SM",
        base.peak_flops_per_s / base.num_sms,
        to.peak_flops_per_s / to.num_sms,
    )
    return {"hbm rate": hbm, "l2 rate": l2, "sm rate": sm}


def _moved_fit(fit: OpFit, rates: Mapping[Follows, _Ratio]) -> OpFit:
    return fit.with_constants(_moved_constants(fit.constants, rates))


def _moved_constants(
    constants: Mapping[str, Constant], rates: Mapping[Follows, _Ratio]
) -> dict[str, Constant]:
    return {
        name: _moved_constant(constant, rates.get(followed_by(name)))
        for name, constant in constants.items()
    }


def _moved_constant(constant: Constant, ratio: _Ratio | None) -> Constant:
    """Times and shares have no datasheet value to follow: no ratio."""
    if ratio is None or ratio.factor == 1.0:
        return constant
    return replace(
        constant,
        value=constant.value * ratio.factor,
        standard_error=constant.standard_error * ratio.factor,
        source=_moved_source(constant.source, ratio),
    )


def _moved_transfers(
    transfers: Mapping[str, TransferFit],
    base_links: Wires,
    to_links: Wires,
    ratios: tuple[_Ratio, ...],
) -> dict[str, TransferFit]:
    """Collectives are those of a node; `send.WIRE` tables go with their wire."""
    sends = {f"send.{link.name}" for link in base_links}
    moved = {
        name: fit if name.startswith("send.") else _moved_transfer(fit, ratios[0])
        for name, fit in transfers.items()
        if name not in sends
    }
    for old, new, ratio in zip(base_links, to_links, ratios, strict=True):
        fit = transfers.get(f"send.{old.name}")
        if fit is not None:
            moved.setdefault(f"send.{new.name}", _moved_transfer(fit, ratio))
    return moved


def _moved_transfer(fit: TransferFit, ratio: _Ratio) -> TransferFit:
    if ratio.factor == 1.0:
        return fit
    regimes = tuple(
        replace(regime, bytes_per_s=regime.bytes_per_s * ratio.factor) for regime in fit.regimes
    )
    return replace(fit, regimes=regimes, source=_moved_source(fit.source, ratio))


def _moved_source(source: str, ratio: _Ratio) -> str:
    return f"{source}; moved x {ratio.factor:.4g} ({ratio.reason})"


def values_text(gpu: GpuSpec, links: Wires) -> str:
    """The datasheet values that constants follow, for HOLDS_FOR."""
    values = {
        "num_sms": gpu.num_sms,
        "peak_flops_per_s": gpu.peak_flops_per_s,
        "hbm_bytes_per_s": gpu.hbm_bytes_per_s,
        "l2_bytes_per_s": gpu.l2_bytes_per_s,
    } | {link.name: link.bytes_per_s for link in links}
    return f"{gpu.name} ({', '.join(f'{key}={value:.9g}' for key, value in values.items())})"

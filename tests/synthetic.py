"""A profile with round, made-up constants: truth that fits must recover and tests can compute."""

from __future__ import annotations

from layerwise.sim.cost.kinds import KINDS
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.profile import Constant, OpFit, Profile, Regime, TransferFit

ANY = (0.0, 1e12)
MEMORY = {"hbm_bytes_per_s": 3.0e12, "l2_bytes_per_s": 5.5e12}
FORMS: dict[str, dict[str, float]] = {
    "matmul": {
        "launch_s": 2.2e-6,
        "efficiency": 0.8,
        "sm_bytes_per_s": 90e9,
        "prologue_s": 0.6e-6,
        "epilogue_bytes_per_s": 60e9,
        "miss_s": 0.7e-6,
        "split_s": 1.0e-6,
        "reduction_bytes_per_s": 2e12,
        "power": 3.5,
        **MEMORY,
    },
    "decode_attention": {
        "launch_s": 3.0e-6,
        "tile_s": 0.6e-6,
        "miss_s": 0.7e-6,
        "split_s": 2.0e-6,
        **MEMORY,
    },
    "sample": {"launch_s": 2.0e-6, "seconds_per_logit": 2.0e-10},
    "prefill_attention": {
        "launch_s": 5.0e-6,
        "efficiency": 0.62,
        "block_s": 2.0e-6,
        "tail": 1.0,
    },
    "chunked_prefill_attention": {
        "launch_s": 5.0e-6,
        "efficiency": 0.33,
        "block_s": 3.0e-6,
        "tail": 1.0,
        "solo": 0.6,
        "split_efficiency": 0.9,
        "split_s": 5.0e-6,
    },
}
FORMS["matmul.skinny"] = {
    "launch_s": 2.0e-6,
    "miss_s": 0.7e-6,
    "step_s": 0.1e-6,
    "split_s": 1e-6,
    "power": 3.0,
    **MEMORY,
}
FORMS["decode_attention.split_kv"] = FORMS["decode_attention"]
FORMS["decode_attention.flash"] = FORMS["decode_attention"]
FORMS["prefill_attention.flash"] = FORMS["chunked_prefill_attention"]
POINTWISE = {"launch_s": 1.5e-6, "hbm_bytes_per_s": 2.4e12, "l2_bytes_per_s": 5.0e12}
FORMS["embed.few"] = {"launch_s": 1.5e-6, "row_s": 4e-7}
FORMS["sample.spread"] = POINTWISE
# Attention in heads of other sizes has the constants of the kind that else prices it.
FORMS.update(
    {kind.name: FORMS[kind.else_priced_as] for kind in KINDS.values() if ".heads_" in kind.name}
)


def constant(value: float, unit: str = "") -> Constant:
    """A constant with no error."""
    return Constant(value=value, standard_error=0.0, unit=unit, source="synthetic")


def synthetic_profile(gpu: str = "h100-sxm") -> Profile:
    """A complete profile without residuals, and without the kinds that others can price."""
    fits = {
        name: OpFit(
            constants={n: constant(v) for n, v in FORMS.get(name, POINTWISE).items()},
            features=kind.features,
            valid=(ANY,) * len(kind.features),
        )
        for name, kind in KINDS.items()
        if not kind.else_priced_as
    }
    machine = {
        "hbm_bytes_per_s": 3.1e12,
        "eager_issue_s": 8e-6,
        "graph_gap_s": 1.0e-6,
        "graph_launch_s": 3.0e-6,
        "interleaved_s": 0.0,
        "interleaved_code_s": 0.0,
        "interleaved_hbm_s": 0.0,
        "set_aside_hbm_slowdown": 0.06,
        "op_speed_beside_message": 0.8,
        "message_speed_beside_hbm": 0.5,
        "message_num_sms": 16.0,
        "interleaved_full_hit": 0.75,
        "interleaved_no_hit": 0.95,
        "l2_full_hit": 0.75,
        "l2_no_hit": 0.95,
    }
    transfers = {
        f"{kind}.{n}": _transfer(latency * n**0.5, rate)
        for kind, latency, rate in (
            ("all_reduce.nccl", 5e-6, 150e9),
            ("all_reduce.one_shot", 2e-6, 100e9),
            ("all_gather.nccl", 4e-6, 200e9),
        )
        for n in (2, 4, 8)
    }
    transfers["send.nvlink4"] = _transfer(9e-6, 360e9)
    transfers["send.ndr400"] = _transfer(18e-6, 36e9)
    return Profile(
        name="synthetic",
        gpu=gpu,
        kernels=KernelChoice(),
        provenance={"source": "made up for tests"},
        fits=fits,
        transfers=transfers,
        machine={name: constant(value) for name, value in machine.items()},
        reserved_bytes=2 * 10**9,
    )


def _transfer(latency_s: float, bytes_per_s: float) -> TransferFit:
    regime = Regime(from_bytes=0, latency_s=latency_s, bytes_per_s=bytes_per_s)
    return TransferFit(regimes=(regime,), source="synthetic")

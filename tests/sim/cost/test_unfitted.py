"""What no fit has seen: told op by op, by width, and by sentence; and tables that list every kind."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from layerwise.sim.cost.following import followed_by
from layerwise.sim.cost.model import Calibrated, SpeedOfLight, Traffic
from layerwise.sim.cost.uncalibrated import published_profile
from layerwise.sim.cost.unfitted import (
    WIDTHS,
    Change,
    changes_of,
    half_width_of,
    peak_flops_per_s,
    sentences,
)
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.errors import LayerwiseError, UnknownKindError
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.ops import AttentionKernel, Buffer
from tests.synthetic import constant, synthetic_profile

H100 = GPUS["h100-sxm"]
CLUSTER = dgx_cluster(H100, 1)
PROFILE = replace(
    synthetic_profile(),
    kernels=KernelChoice(
        decode_attention="cudnn", prefill_attention="cudnn", chunked_prefill_attention="flash"
    ),
)
STRANGE: Any = SimpleNamespace(kind="Strange", kernel="", query_tokens=1)


def attention(
    kernel: AttentionKernel,
    query: int = 1,
    *,
    head_dim: int = 128,
    dtype: str = "bfloat16",
    stored: str = "",
) -> ops.Attention:
    def buffer(name: str, kind: Any, shape: tuple[int, ...], kept: str = "") -> Buffer:
        return Buffer(name, kind, shape, kept or dtype)  # type: ignore[arg-type]

    return ops.Attention(
        name="attn.sdpa",
        qkv=buffer("qkv", "activation", (8 * query, 24 * head_dim)),
        kv=buffer("kv", "kv", (2, 8, 8, 1024, head_dim), stored),
        output=buffer("out", "activation", (8 * query, 8 * head_dim)),
        sequences=8,
        query_tokens=query,
        context_tokens=1024,
        num_heads=8,
        num_key_value_heads=8,
        head_dim=head_dim,
        kernel=kernel,
    )


def matmul(dtype: str = "bfloat16", stored: str = "") -> ops.Matmul:
    def buffer(name: str, kind: Any, rows: int, kept: str = "") -> Buffer:
        return Buffer(name, kind, (rows, 4096), kept or dtype)  # type: ignore[arg-type]

    return ops.Matmul(
        name="m",
        source=buffer("s", "activation", 64),
        weight=buffer("w", "weight", 4096, stored),
        output=buffer("o", "activation", 64),
        rows=64,
        columns=4096,
        inner=4096,
    )


def cold(op: ops.LocalOp) -> Traffic:
    demand = demand_of(op)
    return Traffic(demand.read_bytes, 0, demand.written_bytes)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (attention("cudnn"), []),
        (attention("split_kv"), []),
        (attention("cudnn", 1024), []),
        (attention("flash", 512), []),
        (matmul(), []),
        (attention("flash"), [("kernel", "decode_attention", "flash", ("cudnn",))]),
        (attention("flash", 1024), [("kernel", "prefill_attention", "flash", ("cudnn",))]),
        (attention("cudnn", 512), [("kernel", "chunked_prefill_attention", "cudnn", ("flash",))]),
        (attention("cudnn", head_dim=64), [("head_dim", "decode_attention", "64", ("128",))]),
        (matmul("float32"), [("dtype", "matmul", "float32", ("bfloat16",))]),
        (matmul(stored="float8_e4m3fn"), [("stored_dtype", "matmul", "float8_e4m3fn", ())]),
        (
            attention("cudnn", stored="float8_e4m3fn"),
            [("stored_dtype", "decode_attention", "float8_e4m3fn", ())],
        ),
        (matmul(stored="float32"), [("stored_dtype", "matmul", "float32", ())]),
    ],
)
def test_what_separates_an_op_from_its_fit(op: ops.LocalOp, expected: list[object]) -> None:
    found = changes_of(op, PROFILE, H100)

    assert expected == [(one.aspect, one.kind, one.used, one.fitted) for one in found]


def test_several_things_at_once_are_all_told() -> None:
    found = changes_of(attention("flash", head_dim=64, dtype="float32"), PROFILE, H100)

    assert ["kernel", "head_dim", "dtype"] == [one.aspect for one in found]


def test_a_fit_says_itself_what_it_has_seen() -> None:
    seen = replace(
        PROFILE.fits["decode_attention"],
        kernels=("cudnn", "flash"),
        head_dims=(64, 128),
        dtypes=("bfloat16", "float32"),
    )
    profile = replace(PROFILE, fits=PROFILE.fits | {"decode_attention": seen})

    assert () == changes_of(attention("flash", head_dim=64, dtype="float32"), profile, H100)


def test_an_unfitted_op_costs_the_same_is_flagged_and_wider() -> None:
    cost = Calibrated(CLUSTER, PROFILE)
    fitted, flash = (cost.local(op, cold(op)) for op in map(attention, ("cudnn", "flash")))

    assert (fitted.launch_s, fitted.kernel_s) == (flash.launch_s, flash.kernel_s)
    assert (False, True) == (fitted.extrapolated, flash.extrapolated)
    assert (0.0, WIDTHS["kernel of decode attention"].log) == (fitted.half_width, flash.half_width)


def test_the_uncalibrated_belief_knows_no_kernel_and_extrapolates_from_nothing() -> None:
    cost = Calibrated(CLUSTER, published_profile(CLUSTER), belief="uncalibrated")
    op = attention("flash")
    (change,) = cost.changes(op)

    assert (
        Change("kernel", "decode_attention", "flash", ("FlashAttention-3",), 0.0, "published")
        == change
    )
    assert (False, 0.0) == (
        cost.local(op, cold(op)).extrapolated,
        cost.local(op, cold(op)).half_width,
    )


def test_the_speed_of_light_says_what_it_leaves_out() -> None:
    light = SpeedOfLight(CLUSTER)
    told = sentences(
        (*light.changes(attention("flash")), *light.changes(matmul(stored="float8_e4m3fn")))
    )

    assert ["bounds every kernel alike" in told[0], "may be beaten" in told[1]] == [True, True]


def test_widths_of_one_op_add_up() -> None:
    changes = changes_of(attention("flash", head_dim=64), PROFILE, H100)

    expected = [
        WIDTHS[name].log or 0.0
        for name in ("kernel of decode attention", "head size 64 of decode attention")
    ]

    assert sum(expected) == half_width_of(changes) > max(expected)


def test_a_head_size_that_was_not_measured_is_as_wide_as_the_widest_that_was() -> None:
    (change,) = changes_of(attention("cudnn", head_dim=80), PROFILE, H100)

    assert max(w.log or 0.0 for name, w in WIDTHS.items() if "of decode attention" in name) == (
        change.half_width
    )


def test_math_attention_has_no_interval() -> None:
    changes = changes_of(attention("math"), PROFILE, H100)

    assert [("math", None)] == [(one.used, one.half_width) for one in changes]


def test_every_width_has_a_source() -> None:
    assert [] == [name for name, width in WIDTHS.items() if not width.source]


def test_a_sentence_names_the_kernel_the_fit_and_the_width() -> None:
    (said,) = sentences(changes_of(attention("flash", 1024), PROFILE, H100))

    assert (
        "prefill attention runs 'flash'; the profile was fitted to 'cudnn': the time is that of "
        "'cudnn', the op's interval is widened by 101 %"
    ) == said


def test_kinds_that_share_a_change_share_a_sentence() -> None:
    one, other = (
        Change("head_dim", kind, "64", ("128",), 0.25)
        for kind in ("decode_attention", "rotary_write")
    )
    (said,) = sentences((one, other, one))

    assert said.startswith("decode attention and rotary write: heads of 64 dimensions")


def test_float32_goes_at_its_own_peak() -> None:
    assert (67e12, 989.4e12) == tuple(
        peak_flops_per_s(op, H100) for op in (matmul("float32"), matmul())
    )


def test_float32_on_a_gpu_without_that_peak_is_said_and_has_no_interval() -> None:
    own = replace(H100, name="mine", peak_float32_flops_per_s=0.0)
    (change,) = changes_of(matmul("float32"), PROFILE, own)

    assert 989.4e12 == peak_flops_per_s(matmul("float32"), own)
    assert ("peak", None) == (change.aspect, change.half_width)
    assert "give cluster.gpu.peak_float32_flops_per_s" in sentences([change])[0]


def test_a_constant_that_nobody_listed_is_refused_when_a_profile_moves() -> None:
    fit = PROFILE.fits["norm"]
    strange = replace(fit, constants=fit.constants | {"warp_s": constant(1e-6)})
    profile = replace(PROFILE, fits=PROFILE.fits | {"norm": strange})
    faster = replace(CLUSTER, gpu=replace(H100, hbm_bytes_per_s=2 * H100.hbm_bytes_per_s))

    with pytest.raises(UnknownKindError, match=r"'warp_s' is not listed in following.FOLLOWS"):
        Calibrated.about(faster, profile)
    with pytest.raises(LayerwiseError):
        followed_by("warp_s")


def test_an_op_of_no_known_class_is_refused() -> None:
    with pytest.raises(UnknownKindError):
        changes_of(STRANGE, PROFILE, H100)

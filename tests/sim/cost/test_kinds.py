"""The table of kinds of op: every record is whole, and what is not in it is refused by name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from layerwise.calibration.data import profile_path
from layerwise.calibration.points import attention
from layerwise.sim.cost.kinds import KINDS, Kind, kind_named, kind_of
from layerwise.sim.cost.unfitted import changes_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import UnknownKindError
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.profile import load_profile
from tests.sim.scenes import matmul_op

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)


def test_every_op_of_one_gpu_has_a_kind() -> None:
    assert set(get_args(ops.LocalOp)) == {kind.op for kind in KINDS.values()}


@each_kind
def test_a_record_is_whole(kind: Kind) -> None:
    assert len(kind.weights) == len(kind.features) + 1
    assert all(hasattr(kind.op, name) for name in (*kind.features, *([kind.own] * bool(kind.own))))
    assert kind.published or KINDS[kind.else_priced_as].published


@each_kind
def test_only_a_kind_that_a_profile_may_go_without_is_priced_as_another(kind: Kind) -> None:
    assert kind.is_optional or not kind.else_priced_as


def test_a_kinds_kernel_is_its_own_or_the_chosen_one() -> None:
    chosen = KernelChoice(decode_attention="cudnn")

    assert ("cublas", "skinny", "cudnn", "split_kv") == tuple(
        KINDS[name].kernel_of(chosen)
        for name in ("matmul", "matmul.skinny", "decode_attention", "decode_attention.split_kv")
    )


def test_a_kind_that_is_not_listed_is_refused_by_name() -> None:
    with pytest.raises(UnknownKindError, match="'strange' is not listed in kinds.KINDS"):
        kind_named("strange")


def test_a_kernel_or_a_class_of_no_kind_is_refused_by_name() -> None:
    strange: Any = SimpleNamespace(kernel="")
    other: Any = replace(matmul_op("m", 2**20), kernel="magic")  # type: ignore[arg-type]

    with pytest.raises(UnknownKindError, match="'SimpleNamespace' is not listed"):
        kind_of(strange)
    with pytest.raises(UnknownKindError, match="'Matmul magic' is not listed"):
        kind_of(other)


def test_a_kernel_with_a_fit_of_its_own_is_priced_by_it_and_else_by_another() -> None:
    op = attention(4, 8, 8, 1, 1000, "flash")

    assert "decode_attention.flash" == kind_of(op).name
    assert "decode_attention.flash" == kind_of(op, ["decode_attention.flash"]).name
    assert "decode_attention" == kind_of(op, ["decode_attention"]).name


def test_flash_is_flagged_on_an_h100_and_not_on_an_h200() -> None:
    ops_asked = [attention(4, 8, 8, query, 1024, "flash") for query in (1, 1024)]
    told = [
        len(changes_of(op, load_profile(profile_path(gpu)), GPUS[gpu]))
        for gpu in ("h100-sxm", "h200")
        for op in ops_asked
    ]

    assert [1, 1, 0, 0] == told

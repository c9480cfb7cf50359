"""The table of kinds of op: every record is whole, and what is not in it is refused by name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from layerwise.sim.cost.kinds import KINDS, Kind, kind_named, kind_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import UnknownKindError
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

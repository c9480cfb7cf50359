from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from layerwise.calibration.dataset import steady_traffic
from layerwise.calibration.points import MAX_ROTATING_BYTES, SweepPoint
from layerwise.calibration.sweeps import (
    HELD_OUT_CONTEXT,
    HELD_OUT_MATMULS,
    WARM_BYTES,
    WARM_KV_BYTES,
    supplement,
    sweep,
)
from layerwise.sim.cost.kinds import KINDS, OPTIONAL_KINDS, kind_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.scenario import compile_run
from layerwise.sim.plan.validate import validate_run
from tests.calibration.fabricated import GPU, L2, every_point, own_points, stage_scenario

FLASH = KernelChoice(chunked_prefill_attention="flash")
# 128 repeats of these do not fill the L2. The traffic count knows it; only the name says cold.
COLD_IN_NAME_ONLY = {
    "decode_attention/s1.h4.kv4.c128/cold",
    "decode_attention/s1.h8.kv2.c128/cold",
    "decode_attention/s1.h8.kv2.c384/cold",
    "decode_attention/s2.h8.kv2.c128/cold",
    "matmul/m304.n448.k448/cold",
    "matmul/m4.n448.k448/cold",
    "prefill_attention/s1.h4.kv4.q128.c128/cold",
}


def rotating_bytes(point: SweepPoint) -> int:
    """Bytes of weights or KV cache of one repeat."""
    if isinstance(point.op, ops.Matmul):
        return point.op.weight.num_bytes
    return point.op.kv.num_bytes if isinstance(point.op, ops.Attention) else 0


def test_names_are_unique() -> None:
    assert 1 == max(Counter(point.name for point in every_point()).values())


def test_same_seed_same_order() -> None:
    first, again, other = ([p.name for p in sweep(KernelChoice(), seed=seed)] for seed in (1, 1, 2))

    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


def test_every_kind_of_op_is_measured() -> None:
    own = {point.kind for point in own_points()}
    assert OPTIONAL_KINDS == own
    assert KINDS.keys() | {"graph_launch"} == {point.kind for point in every_point()} | own


def test_kind_of_a_point_is_that_of_its_op() -> None:
    assert all(p.kind == kind_of(p.op).name for p in every_point() if p.kind != "graph_launch")


def test_paper_matmuls_are_held_out() -> None:
    shapes = {(p.op.columns, p.op.inner) for p in every_point() if isinstance(p.op, ops.Matmul)}

    assert not HELD_OUT_MATMULS & shapes


def test_paper_context_is_held_out() -> None:
    attentions = [p.op for p in every_point() if isinstance(p.op, ops.Attention)]

    assert HELD_OUT_CONTEXT not in {op.context_tokens for op in attentions}
    assert HELD_OUT_CONTEXT not in {op.query_tokens for op in attentions}


def test_cold_points_exceed_the_l2() -> None:
    warm_all_the_same = {
        p.name
        for p in every_point()
        if p.name.endswith("/cold") and 0 < rotating_bytes(p) * p.num_repeats <= GPU.l2_bytes
    }

    assert COLD_IN_NAME_ONLY == warm_all_the_same


def test_what_rotates_fits_in_memory() -> None:
    cold = [p for p in every_point() if not p.name.endswith("/warm")]

    assert all(
        rotating_bytes(p) * p.num_repeats <= max(MAX_ROTATING_BYTES, 2 * rotating_bytes(p))
        for p in cold
    )


def test_cold_repeats_have_weights_of_their_own_and_warm_ones_share() -> None:
    for point in every_point():
        if isinstance(point.op, ops.Matmul):
            layers = {part.layer for part in point.program.parts}
            assert len(layers) == (1 if point.name.endswith("/warm") else point.num_repeats)


def test_chunks_ask_for_the_chosen_kernel() -> None:
    kernels = {
        p.op.kernel
        for p in sweep(FLASH)
        if isinstance(p.op, ops.Attention) and p.kind.startswith("chunked")
    }

    assert {"flash"} == kernels


@pytest.mark.parametrize("kind", sorted([*KINDS, "graph_launch"]))
def test_programs_are_valid(kind: str) -> None:
    points = [point for point in every_point() if point.kind == kind]

    compiled = compile_run(stage_scenario())[0]
    for point in points[:25]:
        validate_run([replace(compiled, template=(point.program,))])
        assert point.num_repeats == len(list(point.program))


@cache
def added() -> tuple[SweepPoint, ...]:
    return tuple(supplement(KernelChoice()))


def test_supplement_has_new_names_only() -> None:
    names = [point.name for point in added()]

    assert len(names) == len(set(names))
    assert not set(names) & {point.name for point in every_point()}


def test_supplement_is_warm_where_the_sweep_was_not() -> None:
    counts = Counter((point.kind, point.name.rsplit("/")[-1]) for point in added())

    assert (310, 208) == (counts["matmul", "cold"], counts["matmul", "warm"])
    assert (180, 165) == (counts["decode_attention", "cold"], counts["decode_attention", "warm"])
    assert 59 == counts["chunked_prefill_attention", "cold"]


def test_supplement_holds_out_the_paper() -> None:
    shapes = {(p.op.columns, p.op.inner) for p in added() if isinstance(p.op, ops.Matmul)}
    attentions = [p.op for p in added() if isinstance(p.op, ops.Attention)]

    assert not HELD_OUT_MATMULS & shapes
    assert HELD_OUT_CONTEXT not in {
        n for op in attentions for n in (op.context_tokens, op.query_tokens)
    }


def test_warm_points_of_the_supplement_may_stay_in_the_l2() -> None:
    warm = [point for point in added() if point.name.endswith("/warm")]

    assert max(WARM_BYTES, WARM_KV_BYTES) >= max(map(rotating_bytes, warm))


def test_cold_points_of_the_supplement_exceed_the_l2() -> None:
    cold = [p for p in added() if p.name.endswith("/cold") and rotating_bytes(p)]

    assert all(rotating_bytes(point) * point.num_repeats > GPU.l2_bytes for point in cold)


def test_rotating_pointwise_reads_hbm_and_a_repeated_one_does_not() -> None:
    reads = {
        point.name: steady_traffic(point, L2).hbm_read_bytes
        for point in added()
        if point.kind == "residual_add"
    }

    assert 2 * 2 * 256 * 1280 == reads["residual_add/t256.h1280.rotating/cold"]
    assert 0 == reads["residual_add/t128.h1280/warm"]


def test_programs_of_the_supplement_are_valid() -> None:
    compiled = compile_run(stage_scenario())[0]
    for point in added()[::10]:
        validate_run([replace(compiled, template=(point.program,))])
        assert point.num_repeats == len(list(point.program))

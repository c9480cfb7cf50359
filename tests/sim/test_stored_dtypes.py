"""Weights and KV stored in another dtype than is computed with: bytes follow, intervals do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.demand import (
    closed_form_flops,
    closed_form_weight_and_kv_read_bytes,
    demand_of,
)
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.model import MODELS, ModelSpec
from layerwise.sim.plan.ops import Op
from layerwise.sim.plan.overrides import with_values
from layerwise.sim.plan.placement import tensor_pipeline
from layerwise.sim.plan.scenario import Scenario, paper_scenario
from layerwise.sim.plan.workload import decode_steps
from layerwise.sim.predict import predict
from tests.synthetic import synthetic_profile

FP8 = "float8_e4m3fn"
PAPER = MODELS["paper-16"]


def ops_of(model: ModelSpec) -> dict[str, Op]:
    (step,) = decode_steps((8,), 1000, 1)
    compiled = compile_step(model, tensor_pipeline(model), step, KernelChoice())
    return {op.name: op for part in compiled.template[0].parts for op in part.segment.ops}


def scenario(**stored: str) -> Scenario:
    asked = paper_scenario("layer-wise").with_microbatches(16)
    return with_values(asked, {f"model.{key}": value for key, value in stored.items()})


def test_unless_said_otherwise_both_are_the_models_dtype() -> None:
    wide = replace(PAPER, dtype="float32")

    assert ("float32", "float32") == (wide.stored_weight_dtype, wide.stored_kv_dtype)
    assert replace(PAPER, weight_dtype="bfloat16", kv_dtype="bfloat16").layer_weight_bytes == (
        PAPER.layer_weight_bytes
    )


def test_fp8_weights_are_half_as_large_and_norms_stay() -> None:
    norms = 2 * 4096 * 2

    assert (PAPER.layer_weight_bytes - norms) // 2 + norms == (
        replace(PAPER, weight_dtype=FP8).layer_weight_bytes
    )


def test_fp8_cache_is_half_as_large() -> None:
    assert 8 * 1024 == replace(PAPER, kv_dtype=FP8).kv_bytes_per_token_per_layer


def test_attention_reads_half_the_cache_and_the_same_queries() -> None:
    before, after = (
        demand_of(ops_of(m)["attn.sdpa"]) for m in (PAPER, replace(PAPER, kv_dtype=FP8))
    )

    assert (before.reads[0][1], before.reads[1][1] // 2) == (after.reads[0][1], after.reads[1][1])
    assert before.flops == after.flops


def test_rotary_writes_half_the_cache() -> None:
    before, after = (
        demand_of(ops_of(m)["attn.rope"]) for m in (PAPER, replace(PAPER, kv_dtype=FP8))
    )

    assert (before.writes[0][1], before.writes[1][1] // 2) == (
        after.writes[0][1],
        after.writes[1][1],
    )


def test_bytes_of_all_ops_are_the_closed_form() -> None:
    model = replace(PAPER, weight_dtype=FP8, kv_dtype=FP8)
    placement = tensor_pipeline(model)
    (step,) = decode_steps((8,), 1000, 1)
    compiled = compile_step(model, placement, step, KernelChoice())
    read = sum(
        size
        for part in compiled.template[0].parts
        for op in part.segment.ops
        if isinstance(op, (ops.Matmul, ops.Attention))
        for buffer, size in demand_of(op).reads
        if buffer.kind in ("weight", "kv")
    )

    assert closed_form_weight_and_kv_read_bytes(model, placement, step) == read
    assert closed_form_flops(PAPER, step) == closed_form_flops(model, step)


def test_half_the_cache_is_held_and_a_step_is_faster() -> None:
    profile = synthetic_profile()
    before, after = (predict(scenario(**kv), profile) for kv in ({}, {"kv_dtype": FP8}))

    assert [b.kv_bytes // 2 for b in before.memory] == [b.kv_bytes for b in after.memory]
    assert after.step_s < before.step_s


@pytest.mark.parametrize("key", ["weight_dtype", "kv_dtype"])
def test_what_nobody_measured_is_flagged_and_has_no_interval(key: str) -> None:
    profile = synthetic_profile()
    before, after = predict(scenario(), profile), predict(scenario(**{key: FP8}), profile)

    assert before.interval
    assert after.interval is None
    assert before.num_extrapolated_ops < after.num_extrapolated_ops


def test_an_unknown_one_is_refused() -> None:
    with pytest.raises(SpecError) as caught:
        replace(PAPER, kv_dtype="int4")  # pyright: ignore[reportArgumentType]

    assert "kv_dtype='int4' is unknown" in str(caught.value)

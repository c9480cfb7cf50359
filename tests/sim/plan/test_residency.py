"""Windows over weights: what is counted, and the share that persists."""

from __future__ import annotations

from dataclasses import replace

from layerwise.sim.plan import ops
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.plan.residency import (
    rank_weight_bytes,
    window_bytes,
    window_hit_ratio,
)
from layerwise.sim.plan.scenario import compile_run
from tests.hw.scenes import TINY, scenario

GPU = replace(GPUS["h100-sxm"], persisting_l2_bytes=30_000_000, access_window_bytes=100_000)


def test_small_weights_persist_whole() -> None:
    assert 1.0 == window_hit_ratio(30_000_000, GPU)
    assert 1.0 == window_hit_ratio(0, GPU)


def test_large_weights_share_the_set_aside() -> None:
    assert 0.25 == window_hit_ratio(120_000_000, GPU)


def test_without_a_set_aside_nothing_persists() -> None:
    assert 0.0 == window_hit_ratio(1, replace(GPU, persisting_l2_bytes=0))


def test_weights_of_a_rank_are_counted_once() -> None:
    run = compile_run(scenario(pipeline_parallel=2))
    programs = [step.programs[1] for step in run]

    assert 2 * TINY.layer_weight_bytes == rank_weight_bytes(programs)


def test_weights_of_some_ops_are_counted_alone() -> None:
    run = compile_run(scenario())
    norms = 2 * TINY.num_layers * TINY.hidden_size * TINY.dtype_bytes

    assert norms == rank_weight_bytes([run[0].programs[0]], lambda op: isinstance(op, ops.Norm))


def test_shards_count_their_own_part() -> None:
    run = compile_run(scenario(tensor_parallel=2))
    norms = 2 * TINY.num_layers * TINY.hidden_size * TINY.dtype_bytes
    matmuls = TINY.num_layers * TINY.layer_weight_bytes - norms

    assert norms + matmuls // 2 == rank_weight_bytes([run[0].programs[0]])


def test_embedding_is_read_in_part_and_has_no_window() -> None:
    model = replace(scenario(), model=TINY.with_vocabulary(16))
    placed = list(compile_run(model)[0].programs[0])
    weights = {each.op.name: each.op.whole_weight for each in placed}

    assert weights["embed"] is None
    assert weights["head.matmul"] is not None


def test_window_of_a_large_weight_covers_its_first_part() -> None:
    placed = next(iter(compile_run(scenario())[0].programs[0]))
    weight = placed.op.whole_weight
    assert weight is not None

    assert weight.num_bytes == window_bytes(weight, GPU)
    assert 10 == window_bytes(weight, replace(GPU, access_window_bytes=10))

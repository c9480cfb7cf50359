from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerwise.sim.cost.model import Traffic
from layerwise.sim.machine.blocks import Block, BlockCache, time_ops, walk
from layerwise.sim.machine.l2 import L2State
from layerwise.sim.plan import ops
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.ops import Buffer
from layerwise.sim.plan.program import Part, Segment
from layerwise.sim.plan.scenario import PlacementSpec, compile_run
from tests.sim.scenes import calibrated, matmul_op, scenario_of

L2 = GPUS["h100-sxm"].l2_bytes
MIB = 2**20


def weight_hits(op: ops.Matmul, traffic: Traffic) -> float:
    """Share of the op's reads that hit, up to its few KiB of activations."""
    return traffic.l2_read_bytes / (traffic.l2_read_bytes + traffic.hbm_read_bytes)


def sweep(state: L2State, op: ops.Matmul, layers: int) -> list[float]:
    return [weight_hits(op, state.traffic_of(op, layer, 0)) for layer in range(layers)]


def test_first_pass_misses() -> None:
    assert max(sweep(L2State(calibrated()), matmul_op("m", 4 * MIB), 3)) < 0.01


def test_weights_that_fit_hit_in_the_second_pass() -> None:
    state, op = L2State(calibrated()), matmul_op("m", 4 * MIB)
    sweep(state, op, 8)

    assert [1.0] * 8 == sweep(state, op, 8)


def test_cyclic_sweep_of_more_than_the_capacity_never_hits() -> None:
    state, op = L2State(calibrated()), matmul_op("m", 4 * MIB)
    sweep(state, op, 16)

    assert max(sweep(state, op, 16)) < 0.01


def test_between_fit_and_miss_is_a_ramp() -> None:
    # Synthetic ramp: all of it up to 0.75 L2, nothing from 0.95 L2.
    state, op = L2State(calibrated()), matmul_op("m", round(0.85 * L2))
    sweep(state, op, 1)

    assert [0.5] == [round(share, 2) for share in sweep(state, op, 1)]


def test_part_of_a_buffer_is_as_far_back_as_all_that_was_touched_of_it() -> None:
    state, cache = L2State(calibrated()), ("kv", 0, -1)
    state._touch(cache, round(0.85 * L2), 0)

    # Half-way down the synthetic ramp.
    assert 0.5 == round(state._hit_fraction(MIB, *state._touch(cache, MIB, 0)), 2)


def test_reuse_at_once_hits_whatever_came_before() -> None:
    state, op = L2State(calibrated()), matmul_op("m", 4 * MIB)
    sweep(state, op, 16)

    assert 1.0 == weight_hits(op, state.traffic_of(op, 15, 0))


def test_layers_weights_are_told_apart() -> None:
    state, op = L2State(calibrated()), matmul_op("m", 4 * MIB)
    state.traffic_of(op, 0, 0)

    assert weight_hits(op, state.traffic_of(op, 1, 0)) < 0.01


def test_microbatches_share_weights() -> None:
    state, op = L2State(calibrated()), matmul_op("m", 4 * MIB)
    state.traffic_of(op, 0, 0)

    assert 1.0 == weight_hits(op, state.traffic_of(op, 0, 1))


def test_what_was_just_written_hits() -> None:
    state, producer = L2State(calibrated()), matmul_op("m", 4 * MIB)
    sample = ops.Sample(
        name="s",
        logits=producer.output,
        token_ids=Buffer("i", "tokens", (1,), "int64"),
        sequences=1,
        vocab_size=4,
    )
    state.traffic_of(producer, 0, 0)

    assert producer.output.num_bytes == state.traffic_of(sample, 0, 0).l2_read_bytes


def test_bytes_read_are_all_accounted_for() -> None:
    state, op = L2State(calibrated()), matmul_op("m", round(0.85 * L2))
    sweep(state, op, 1)
    traffic = state.traffic_of(op, 0, 0)

    assert op.weight.num_bytes + op.source.num_bytes == (
        traffic.hbm_read_bytes + traffic.l2_read_bytes
    )


def test_state_forgets_what_no_hit_can_reach() -> None:
    state, op = L2State(calibrated()), matmul_op("m", 4 * MIB)
    sweep(state, op, 100)

    assert sum(size for _, size, _ in state.entries) < L2 + 8 * MIB


def test_kv_cache_that_fits_hits_in_the_next_step() -> None:
    run = compile_run(scenario_of(PlacementSpec(num_gpus=1), num_steps=2))
    program, state = run[0].programs[0], L2State(calibrated())
    traffic = [
        {p.name: state.traffic_of(p.op, p.layer, p.microbatch) for p in program} for _ in range(2)
    ]

    assert 0 == traffic[1]["L00.attn.sdpa@m0"].hbm_read_bytes


SEGMENTS = tuple(
    Segment(made)
    for made in (
        (matmul_op("a", 5 * MIB),),
        (matmul_op("b", 24 * MIB), matmul_op("c", 1 * MIB)),
        (matmul_op("d", 12 * MIB, per_layer=False),),
        (matmul_op("a", 5 * MIB), matmul_op("a", 5 * MIB)),
    )
)


@st.composite
def blocks(draw: st.DrawFn) -> list[tuple[Part, ...]]:
    def part() -> Part:
        layer, microbatch = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        return Part(draw(st.sampled_from(SEGMENTS)), f"L{layer}", layer, microbatch)

    return [
        tuple(part() for _ in range(draw(st.integers(1, 3))))
        for _ in range(draw(st.integers(1, 12)))
    ]


def enter(cache: BlockCache, parts: tuple[Part, ...], state: L2State, context: int = 32) -> Block:
    return cache.run(cache.name(parts), state, context)


@given(blocks())
def test_cached_block_equals_a_walk_bit_for_bit(drawn: list[tuple[Part, ...]]) -> None:
    cost = calibrated()
    cache, cached, walked = BlockCache(cost), L2State(cost), L2State(cost)
    for parts in drawn:
        block = enter(cache, parts, cached)

        assert time_ops(cost, walk(parts, walked)) == block.at(32).ops
        assert walked.entries == cached.entries


@given(st.integers(2_000, 40_000), st.integers(2_000, 40_000))
def test_block_timed_again_at_another_context_equals_a_walk_there(first: int, then: int) -> None:
    # From 1,639 tokens on, one sequence's cache (32 KiB a token) is larger than the L2.
    cost, model = (
        calibrated(),
        replace(MODELS["paper-16"], num_layers=1, num_key_value_heads=64, num_attention_heads=64),
    )
    scenario = scenario_of(PlacementSpec(num_gpus=1), model=model, batch_size=1, num_steps=1)
    program = compile_run(scenario)[0].programs[0]
    cache = BlockCache(cost)
    enter(cache, program.parts, L2State(cost), first)
    moved = enter(cache, program.parts, L2State(cost), then).at(then)

    walked = time_ops(cost, walk(program.at(then).parts, L2State(cost)))
    assert [(one.cost, one.end_ps) for one in walked] == [
        (one.cost, one.end_ps) for one in moved.ops
    ]


def test_layers_and_microbatches_are_told_apart_in_cached_blocks() -> None:
    cost, one = calibrated(), SEGMENTS[0]
    cache = BlockCache(cost)
    same_weight = enter(cache, (Part(one, "L0", 0, 0), Part(one, "L0", 0, 1)), L2State(cost))
    other_weight = enter(cache, (Part(one, "L0", 0, 0), Part(one, "L1", 1, 0)), L2State(cost))

    assert same_weight.at(32).duration_ps < other_weight.at(32).duration_ps


def test_repeated_block_is_walked_once() -> None:
    cost, one = calibrated(), SEGMENTS[0]
    cache, state = BlockCache(cost), L2State(cost)
    for layer in range(40):
        enter(cache, (Part(one, f"L{layer}", layer, 0),), state)

    assert len(cache.blocks) < 15


def written_back(state: L2State, op: ops.Matmul, layer: int = 0) -> int:
    return state.traffic_of(op, layer, 0).written_back_bytes


def test_what_is_written_again_in_the_l2_never_reaches_hbm() -> None:
    state, op = L2State(calibrated()), matmul_op("m", 4 * MIB, rows=512)

    assert [0, 0, 0] == [written_back(state, op) for _ in range(3)]


def test_what_was_written_leaves_for_hbm_when_it_is_pushed_out() -> None:
    state, op = L2State(calibrated()), matmul_op("m", 4 * MIB, rows=512)
    state.traffic_of(op, 0, 0)
    others = [matmul_op(f"o{index}", 20 * MIB) for index in range(3)]

    assert op.output.num_bytes == sum(written_back(state, other) for other in others)


def test_what_is_larger_than_the_l2_leaves_as_it_is_written() -> None:
    state, op = L2State(calibrated()), matmul_op("m", 40 * MIB, rows=4096)
    traffic = state.traffic_of(op, 0, 0)

    assert traffic.written_bytes - state.limit_bytes == traffic.written_back_bytes


def test_message_that_arrived_is_found_in_the_l2() -> None:
    state, op = L2State(calibrated()), matmul_op("m", 4 * MIB)
    state.receive(op.source, 0, 0)

    assert op.source.num_bytes == state.traffic_of(op, 0, 0).l2_read_bytes


def test_windows_keep_their_share_of_weights_that_do_not_fit() -> None:
    state = L2State(calibrated(), persisting=0.25, left=0.5)
    op = replace(matmul_op("m", 128 * MIB), kernel="skinny")
    first, second = (state.traffic_of(op, 0, 0) for _ in range(2))

    assert op.weight.num_bytes // 4 == second.l2_read_bytes - first.l2_read_bytes


def test_kernel_that_does_not_obey_windows_keeps_nothing_in_them() -> None:
    plain, windowed = L2State(calibrated()), L2State(calibrated(), persisting=0.25)
    op = matmul_op("m", 128 * MIB)

    for _ in range(2):
        assert plain.traffic_of(op, 0, 0) == windowed.traffic_of(op, 0, 0)


def test_windows_take_from_everything_else() -> None:
    halved = L2State(calibrated(), left=0.5)

    assert L2State(calibrated()).limit_bytes == pytest.approx(2 * halved.limit_bytes, abs=2)

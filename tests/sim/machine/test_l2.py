from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sim.cost.model import Traffic
from sim.machine.blocks import BlockCache, time_block
from sim.machine.l2 import L2State
from sim.plan import ops
from sim.plan.hardware import GPUS
from sim.plan.ops import Buffer
from sim.plan.program import Part, Segment
from sim.plan.scenario import PlacementSpec, compile_run
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
        name="s", logits=producer.output, token_ids=Buffer("i", "tokens", (1,), "int64"),
        sequences=1, vocab_size=4,
    )  # fmt: skip
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

    assert sum(size for _, size in state.entries) < L2 + 8 * MIB


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


@given(blocks())
def test_cached_block_equals_a_walk_bit_for_bit(drawn: list[tuple[Part, ...]]) -> None:
    cost = calibrated()
    cache, cached, walked = BlockCache(cost), L2State(cost), L2State(cost)
    for parts in drawn:
        block = cache.run(parts, cached)
        timed, hbm_bytes, bound_ps = time_block(parts, walked)

        assert (tuple(timed), hbm_bytes, bound_ps) == (block.ops, block.hbm_bytes, block.bound_ps)
        assert walked.entries == cached.entries


def test_layers_and_microbatches_are_told_apart_in_cached_blocks() -> None:
    cost, one = calibrated(), SEGMENTS[0]
    cache = BlockCache(cost)
    same_weight = cache.run((Part(one, "L0", 0, 0), Part(one, "L0", 0, 1)), L2State(cost))
    other_weight = cache.run((Part(one, "L0", 0, 0), Part(one, "L1", 1, 0)), L2State(cost))

    assert same_weight.hbm_bytes < other_weight.hbm_bytes


def test_repeated_block_is_walked_once() -> None:
    cost, one = calibrated(), SEGMENTS[0]
    cache, state = BlockCache(cost), L2State(cost)
    for layer in range(40):
        cache.run((Part(one, f"L{layer}", layer, 0),), state)

    assert len(cache.blocks) < 15

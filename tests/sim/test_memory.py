from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given

from layerwise.sim.memory import (
    MemoryBudget,
    WorkloadKey,
    largest_that_fits,
    memory_budgets,
    remedies,
    slack_bytes_of,
)
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import MODELS, ModelSpec
from layerwise.sim.plan.placement import layer_wise
from layerwise.sim.plan.program import buffers_of
from layerwise.sim.plan.scenario import (
    PlacementSpec,
    Scenario,
    Strategy,
    compile_run,
    paper_scenario,
    place,
)
from layerwise.sim.plan.workload import MAX_CONTEXT, Phase, Workload, decode_steps
from tests.sim.scenes import TINY, Case, cases, scenario_of

CAPACITY = 80 * 10**9
MIB = 2**20
PAPER_30B = paper_scenario("layer-wise", "paper-30b").with_microbatches(16)


def budget(scenario: Scenario, rank: int = 0) -> MemoryBudget:
    return memory_budgets(compile_run(scenario), CAPACITY, 2 * 10**9)[rank]


@given(cases())
def test_budget_holds_each_buffer_of_every_step_once(case: Case) -> None:
    held: dict[object, int] = {}
    for compiled in case.run:
        for part in compiled.programs[0].parts:
            for op in part.segment.ops:
                for buffer in buffers_of(op):
                    key = buffer.key(part.layer, part.microbatch)
                    held[key] = max(held.get(key, 0), buffer.num_bytes)
    found = memory_budgets(case.run, CAPACITY)[0]

    assert sum(held.values()) == found.total_bytes - found.slack_bytes
    assert slack_bytes_of(held.values()) == found.slack_bytes


def test_kv_cache_has_room_for_the_longest_context_of_a_run() -> None:
    placement = layer_wise(TINY, num_gpus=8, on_chip_bytes=CAPACITY)
    short, long = (decode_steps((3,), context, 1) for context in (10, 40))
    run = [compile_step(TINY, placement, step, KernelChoice()) for step in (*long, *short)]

    # Keys and values of 3 sequences: 40 tokens, 8 heads of 8, two bytes each, one layer a GPU.
    assert 2 * 3 * 40 * 8 * 8 * 2 == memory_budgets(run, CAPACITY)[0].kv_bytes


def remedy(change: str) -> int:
    found = {r.change: r.value for r in remedies(PAPER_30B, budget(PAPER_30B))}
    return next(value for name, value in found.items() if name.startswith(change))


@given(cases())
def test_ranks_together_hold_every_matmul_weight_once(case: Case) -> None:
    budgets = memory_budgets(case.run, CAPACITY)
    replica = [budgets[p.rank] for p in case.run[0].programs if p.replica == 0]
    held = sum(b.weight_bytes for b in replica)
    model, shards = case.model, case.placement.tensor_parallel
    norms = 2 * model.num_layers + (1 if model.vocab_size else 0)
    whole = norms * model.hidden_size + model.vocab_size * model.hidden_size
    split = model.parameters - whole

    # Norms and the embedding are whole on every rank of their group.
    assert (split + shards * whole) * model.dtype_bytes == held


@given(cases())
def test_kv_cache_is_held_once_over_the_ranks(case: Case) -> None:
    budgets = memory_budgets(case.run, CAPACITY)
    held = sum(budgets[p.rank].kv_bytes for p in case.run[0].programs if p.replica == 0)
    step, model = case.steps[0], case.model
    per_layer = step.num_sequences * step.kv_capacity_tokens * model.kv_bytes_per_token_per_layer

    assert model.num_layers * per_layer == held


def test_paper_16_layer_takes_21_gigabytes_of_kv() -> None:
    found = budget(paper_scenario("layer-wise").with_microbatches(16))

    assert 128 * 10_000 * 16 * 1024 == found.kv_bytes
    assert found.fits


def test_paper_30b_does_not_fit() -> None:
    found = budget(PAPER_30B)

    assert 7 * 128 * 10_000 * 16 * 1024 == found.kv_bytes
    assert not found.fits


def test_budget_is_the_sum_of_its_parts() -> None:
    found = budget(PAPER_30B)

    assert found.total_bytes == (
        found.weight_bytes
        + found.kv_bytes
        + found.activation_bytes
        + found.communication_bytes
        + found.slack_bytes
        + 2 * 10**9
    )


def fits_with(**workload: int) -> bool:
    scenario = replace(PAPER_30B, workload=replace(PAPER_30B.workload, **workload))
    return budget(scenario).fits


def test_batch_that_would_fit_fits_and_one_more_does_not() -> None:
    batch = remedy("batch_size")

    assert fits_with(batch_size=batch)
    assert not fits_with(batch_size=batch + 1)


def test_context_that_would_fit_fits_and_one_more_token_does_not() -> None:
    context = remedy("context_tokens")

    assert fits_with(context_tokens=context)
    assert not fits_with(context_tokens=context + 1)


@pytest.mark.parametrize("strategy", ["layer-wise", "tensor-pipeline"])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("key", ["workload.batch_size", "workload.context_tokens"])
def test_largest_that_fits_is_exact(strategy: Strategy, phase: Phase, key: WorkloadKey) -> None:
    scenario = paper_scenario(strategy, "paper-30b", Workload(phase=phase))
    scenario = scenario.with_microbatches(place(scenario).num_stages)
    found = largest_that_fits(scenario, key, 2 * 10**9)
    name = key.removeprefix("workload.")
    changed = [
        replace(scenario, workload=replace(scenario.workload, **{name: value}))
        for value in (found, found + 1)
    ]

    assert [True, False] == [
        all(b.fits for b in memory_budgets(compile_run(s), CAPACITY, 2 * 10**9)) for s in changed
    ]


def test_largest_batch_is_shared_evenly_by_replicas() -> None:
    scenario = replace(PAPER_30B, placement=PlacementSpec(data_parallel=2))
    found = largest_that_fits(scenario, "workload.batch_size", 0)
    fits = [
        all(
            b.fits
            for b in memory_budgets(
                compile_run(
                    replace(
                        scenario,
                        workload=replace(scenario.workload, batch_size=batch),
                    )
                ),
                CAPACITY,
            )
        )
        for batch in (found, found + 2)
    ]

    assert found % 2 == 0
    assert [True, False] == fits


def test_what_fits_may_grow() -> None:
    scenario = paper_scenario("layer-wise").with_microbatches(16)

    assert largest_that_fits(scenario, "workload.batch_size", 0) > 128


def test_largest_is_one_that_a_workload_may_have() -> None:
    tiny = replace(TINY, num_layers=1)
    scenario = scenario_of(PlacementSpec(num_gpus=1), model=tiny, microbatches=1, batch_size=1)

    assert MAX_CONTEXT == largest_that_fits(scenario, "workload.context_tokens", 0)


def test_remedies_of_a_large_model_are_found_at_once() -> None:
    scenario = paper_scenario("layer-wise", "paper-30b")
    started = time.perf_counter()
    largest_that_fits(scenario, "workload.context_tokens", 0)

    assert time.perf_counter() - started < 0.3


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((2 * MIB,) * 10, 0),
        ((512,), 2 * MIB - 512),
        ((1, 1), 2 * MIB - 2),
        ((MIB, MIB), 0),
        ((3 * MIB,), 17 * MIB),
        ((9 * MIB, 9 * MIB, 9 * MIB), 13 * MIB),
        ((10 * MIB,), 0),
        ((10 * MIB + 1,), 2 * MIB - 1),
        ((20 * MIB, 1), 2 * MIB - 1),
        ((), 0),
    ],
)
def test_allocator_takes_whole_segments(sizes: tuple[int, ...], expected: int) -> None:
    assert expected == slack_bytes_of(sizes)


def test_kv_heads_that_would_fit_fit_and_more_do_not() -> None:
    heads = remedy("num_key_value_heads")
    fit, more = (
        budget(replace(PAPER_30B, model=replace(PAPER_30B.model, num_key_value_heads=h))).fits
        for h in (heads, 2 * heads)
    )

    assert (True, False) == (fit, more)


def test_kv_of_eight_bits_is_what_would_fit() -> None:
    assert 8 == remedy("KV bits")


def test_weights_alone_too_large_leave_no_remedy_in_kv() -> None:
    large = replace(PAPER_30B, model=replace(MODELS["paper-30b"], intermediate_size=800_000))
    *of_kv, gpus = remedies(large, budget(large))

    assert {0} == {r.value for r in of_kv}
    # One of its 112 layers a GPU: two hold 42 GB of KV and 40 GB of weights.
    assert 7 == gpus.value


def test_so_many_times_the_gpus_fit_as_replicas() -> None:
    times = remedy("times as many GPUs")
    cluster = replace(PAPER_30B.cluster, num_nodes=times * PAPER_30B.cluster.num_nodes)
    placement = replace(PAPER_30B.placement, data_parallel=times)
    wider = replace(PAPER_30B, cluster=cluster, placement=placement)

    assert 2 == times
    assert all(b.fits for b in memory_budgets(compile_run(wider), CAPACITY, 2 * 10**9))


def test_more_gpus_divide_the_weights_too() -> None:
    # 140 GB of weights and 168 GB of KV on two GPUs: five would do, and so three times two.
    model = ModelSpec(
        name="70b",
        num_layers=80,
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128_256,
    )
    scenario = Scenario(
        name="",
        model=model,
        cluster=dgx_cluster(GPUS["h100-sxm"], 2),
        placement=PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2),
        workload=Workload(batch_size=64, context_tokens=8000, num_microbatches=1),
    )

    assert 3 == remedies(scenario, budget(scenario))[-1].value


def test_remedies_of_what_no_cluster_holds_are_found_at_once() -> None:
    huge = replace(PAPER_30B, workload=replace(PAPER_30B.workload, context_tokens=MAX_CONTEXT))
    full = budget(huge)
    started = time.perf_counter()

    assert 0 == remedies(huge, full)[-1].value
    assert time.perf_counter() - started < 3


def test_remedies_are_said_in_words() -> None:
    words = [r.words for r in remedies(PAPER_30B, budget(PAPER_30B))]

    assert f"a batch of at most {remedy('batch_size')}" in words
    assert "a KV cache of at most 8 bits per element" in words
    assert "2 times as many GPUs, with weights and KV spread over them" in words


def test_activations_are_those_of_the_largest_microbatch() -> None:
    even, uneven = (
        budget(scenario_of(PlacementSpec(num_gpus=2), microbatches=2, batch_size=batch))
        for batch in (4, 3)
    )

    # Microbatches of 2 + 2 and of 2 + 1 sequences.
    assert even.activation_bytes == uneven.activation_bytes


def test_chunks_of_a_prefill_need_what_the_largest_needs() -> None:
    scenario = scenario_of(PlacementSpec(num_gpus=2), microbatches=1, batch_size=1)
    workload = replace(
        scenario.workload, phase="prefill", context_tokens=40, prefill_chunk_tokens=32
    )
    chunked, one = (
        budget(replace(scenario, workload=replace(workload, context_tokens=c))).activation_bytes
        for c in (40, 32)
    )

    assert one == chunked

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given

from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.demand import (
    closed_form_flops,
    closed_form_weight_and_kv_read_bytes,
    demand_of,
)
from layerwise.sim.plan.errors import LayerwiseError
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.placement import layer_wise, tensor_pipeline
from layerwise.sim.plan.program import buffers_of, kernel_set_hash
from layerwise.sim.plan.scenario import PlacementSpec, compile_run
from layerwise.sim.plan.validate import validate_run
from layerwise.sim.plan.workload import decode_steps, prefill_steps
from tests.sim.scenes import TINY, Case, cases, scenario_of

COLLECTIVES = (ops.AllReduce, ops.AllGather)


@given(cases())
def test_what_compiles_is_valid(case: Case) -> None:
    validate_run(case.run)


@given(cases())
def test_flops_equal_the_closed_form(case: Case) -> None:
    for index, step in enumerate(case.steps):
        flops = sum(demand_of(op).flops for op in case.replica_ops(index))

        assert closed_form_flops(case.model, step) == flops


@given(cases())
def test_every_replica_does_the_same(case: Case) -> None:
    counted = {
        sum(demand_of(op).flops for op in case.replica_ops(0, replica))
        for replica in range(case.placement.data_parallel)
    }

    assert 1 == len(counted)


@given(cases())
def test_weight_and_kv_bytes_equal_the_closed_form(case: Case) -> None:
    for index, step in enumerate(case.steps):
        read = sum(
            size
            for op in case.replica_ops(index)
            if isinstance(op, (ops.Matmul, ops.Attention))
            for buffer, size in demand_of(op).reads
            if buffer.kind in ("weight", "kv")
        )

        assert closed_form_weight_and_kv_read_bytes(case.model, case.placement, step) == read


@given(cases())
def test_collectives_are_there_exactly_when_layers_are_shared(case: Case) -> None:
    found = any(isinstance(op, COLLECTIVES) for op in case.replica_ops(0))

    assert (case.placement.tensor_parallel > 1) == found


@given(cases())
def test_names_are_unique_within_rank_and_step(case: Case) -> None:
    for compiled in case.run:
        for program in compiled.programs:
            counts = Counter(placed.name for placed in program)

            assert {1} == set(counts.values())


@given(cases())
def test_length_is_the_number_of_ops(case: Case) -> None:
    for program in case.run[0].programs:
        assert len(list(program)) == len(program)


@given(cases())
def test_kv_cache_is_written_where_it_is_read(case: Case) -> None:
    for program in case.run[0].programs:
        written = {
            placed.op.kv.key(placed.layer, placed.microbatch)
            for placed in program
            if isinstance(placed.op, ops.RotaryWrite)
        }
        read = {
            placed.op.kv.key(placed.layer, placed.microbatch)
            for placed in program
            if isinstance(placed.op, ops.Attention)
        }

        assert written == read


@given(cases())
def test_compiling_twice_gives_equal_programs(case: Case) -> None:
    again = compile_step(case.model, case.placement, case.steps[0], KernelChoice())

    assert [list(p) for p in case.run[0].programs] == [list(p) for p in again.programs]


def names(placement: PlacementSpec, rank: int, step: int = 0) -> list[str]:
    run = compile_run(scenario_of(placement, microbatches=1, num_steps=2))
    return [placed.name for placed in run[step].programs[rank]]


def test_layer_is_a_dozen_named_ops() -> None:
    golden = [
        "L00.attn.norm@m0",
        "L00.attn.qkv@m0",
        "L00.attn.rope@m0",
        "L00.attn.sdpa@m0",
        "L00.attn.out@m0",
        "L00.attn.all_reduce@m0",
        "L00.mlp.norm@m0",
        "L00.mlp.gate_up@m0",
        "L00.mlp.act@m0",
        "L00.mlp.down@m0",
        "L00.mlp.all_reduce@m0",
    ]

    assert golden == names(PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2), 0)[:11]


def test_middle_stage_receives_computes_and_sends() -> None:
    stage = names(PlacementSpec(num_gpus=4), 1)

    assert ("P1.act.recv@m0", "P1.out.residual@m0", "P1.act.send@m0") == (
        stage[0],
        stage[-2],
        stage[-1],
    )


def test_last_stage_hands_its_token_to_the_first() -> None:
    assert "P3.token.send@m0" == names(PlacementSpec(num_gpus=4), 3)[-1]


def test_first_stage_of_a_later_step_waits_for_its_token() -> None:
    assert "P0.token.recv@m0" == names(PlacementSpec(num_gpus=4), 0, step=1)[0]


def test_single_stage_sends_nothing() -> None:
    run = compile_run(scenario_of(PlacementSpec(num_gpus=1), microbatches=2))

    assert not [p.name for c in run for p in c.programs[0] if "send" in p.name or "recv" in p.name]


def test_vocabulary_adds_embedding_and_head() -> None:
    model = TINY.with_vocabulary(32)
    placement = tensor_pipeline(model, tensor_parallel=2)
    compiled = compile_step(model, placement, decode_steps((2,), 8, 1)[0], KernelChoice())
    edge = [p.name for p in compiled.programs[0] if p.name.startswith("P0")]

    assert [
        "P0.embed@m0",
        "P0.head.norm@m0",
        "P0.head.matmul@m0",
        "P0.head.all_gather@m0",
        "P0.head.sample@m0",
    ] == edge


def test_sequences_choose_the_attention_kernel_of_their_phase() -> None:
    kernels = KernelChoice(
        decode_attention="split_kv", prefill_attention="flash", chunked_prefill_attention="cudnn"
    )
    steps = [*decode_steps((1,), 8, 1), *prefill_steps((1,), 8, 4)]
    chosen = [
        placed.op.kernel
        for step in steps
        for placed in compile_step(
            TINY, layer_wise(TINY, num_gpus=8, on_chip_bytes=1), step, kernels
        ).programs[0]
        if isinstance(placed.op, ops.Attention)
    ]

    assert ["split_kv", "flash", "cudnn"] == chosen


def test_other_kernels_have_another_hash() -> None:
    placement, step = tensor_pipeline(TINY, tensor_parallel=2), decode_steps((1,), 8, 1)[0]
    hashes = {
        kernel_set_hash(compile_step(TINY, placement, step, kernels).programs[0])
        for kernels in (
            KernelChoice(),
            KernelChoice(all_reduce="one_shot"),
            KernelChoice(decode_attention="flash"),
        )
    }

    assert 3 == len(hashes)


def test_ranks_of_one_group_share_their_layers() -> None:
    run = compile_run(scenario_of(PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2)))
    first, second = run[0].programs[:2]

    assert [id(p.segment) for p in first.parts if p.prefix[0] == "L"] == [
        id(p.segment) for p in second.parts if p.prefix[0] == "L"
    ]


def test_op_names_its_buffers_once_in_order() -> None:
    run = compile_run(scenario_of(PlacementSpec(num_gpus=1)))
    norm = run[0].programs[0].parts[0].segment.ops[0]

    assert ["act.in", "attn.norm.weight", "normed"] == [b.name for b in buffers_of(norm)]


def test_compiled_run_shares_equal_steps() -> None:
    run = compile_run(scenario_of(PlacementSpec(num_gpus=2), num_steps=6))

    assert 3 == len({id(compiled) for compiled in run})


def test_more_microbatches_than_a_replica_has_sequences_is_refused() -> None:
    spec = PlacementSpec(strategy="tensor-pipeline", data_parallel=4)

    with pytest.raises(LayerwiseError, match="num_microbatches=8 "):
        compile_run(scenario_of(spec, microbatches=8))


def test_open_number_of_microbatches_is_refused() -> None:
    with pytest.raises(LayerwiseError, match="workload.num_microbatches=0 is not decided"):
        compile_run(scenario_of(PlacementSpec(num_gpus=2), microbatches=0))


def test_placement_larger_than_the_cluster_is_refused() -> None:
    spec = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=8, pipeline_parallel=4)

    with pytest.raises(LayerwiseError, match="needs 32 GPUs and cluster.num_gpus=16; use a small"):
        compile_run(scenario_of(spec))


def test_batch_that_replicas_cannot_share_is_refused() -> None:
    spec = PlacementSpec(strategy="tensor-pipeline", data_parallel=3)

    with pytest.raises(LayerwiseError, match="placement.data_parallel=3 does not divide workload"):
        compile_run(scenario_of(spec))


def test_paper_compiles_to_one_layer_a_rank() -> None:
    run = compile_run(
        scenario_of(PlacementSpec(), model=MODELS["paper-16"], microbatches=16, num_steps=1)
    )

    assert [{rank} for rank in range(16)] == [
        {p.layer for p in program.parts} for program in run[0].programs
    ]

"""Measuring on the CPU: rows join the program, peers are replaced, requests are refused."""

from __future__ import annotations

import pytest

from layerwise.hw.errors import DoesNotFitError, NotAvailableError, RankFailedError
from layerwise.hw.measure import measure
from layerwise.hw.options import Options
from layerwise.hw.ranks.launch import launch
from layerwise.hw.streams import plan_stream
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import PlacementError, SpecError
from layerwise.sim.plan.scenario import compile_run
from layerwise.sim.plan.workload import Workload
from layerwise.sim.trace import Trace
from tests.hw.scenes import scenario

ON_CPU = Options(timing="clock", device="cpu", traced_repeats=2)


@pytest.fixture(scope="module")
def one_rank() -> Trace:
    trace = measure(
        scenario(pipeline_parallel=2, tensor_parallel=2, only_rank=2),
        timing="clock",
        device="cpu",
        traced_repeats=2,
    )
    assert trace is not None
    return trace


@pytest.fixture(scope="module")
def two_ranks() -> Trace:
    trace = launch(scenario(pipeline_parallel=2), ON_CPU)
    assert trace is not None
    return trace


def test_rows_are_the_ops_of_the_steady_step(one_rank: Trace) -> None:
    run = compile_run(scenario(pipeline_parallel=2, tensor_parallel=2, only_rank=2))
    expected = [(repeat, 2, 2, placed.name) for repeat in range(2) for placed in run[2].programs[2]]
    assert expected == [row.key for row in one_rank.rows]


def test_messages_of_a_rank_alone_are_marked_and_take_no_time(one_rank: Trace) -> None:
    messages = {"AllReduce", "Send", "Recv"}
    assert messages == {row.kind for row in one_rank.rows if row.replaced}
    assert not any(row.kind in messages for row in one_rank.rows if not row.replaced)
    assert all(row.duration_s == 0 for row in one_rank.rows if row.replaced)


def test_times_of_a_step_start_at_zero_and_are_in_order(one_rank: Trace) -> None:
    rows = [row for row in one_rank.rows if row.repeat == 0 and row.stream == "compute"]
    assert min(row.start_s for row in rows if not row.replaced) == 0
    assert all(row.ready_s <= row.start_s <= row.end_s for row in rows)
    assert all(a.end_s <= b.start_s for a, b in zip(rows, rows[1:], strict=False))


def test_step_times_come_with_and_without_the_tracer(one_rank: Trace) -> None:
    assert (4, 2) == (len(one_rank.untraced_step_s), len(one_rank.traced_step_s))
    assert all(seconds > 0 for seconds in one_rank.untraced_step_s)


def test_all_ranks_come_together_in_one_trace(two_ranks: Trace) -> None:
    run = compile_run(scenario(pipeline_parallel=2))
    expected = {
        (repeat, 2, rank, placed.name)
        for repeat in range(2)
        for rank in range(2)
        for placed in run[2].programs[rank]
    }
    assert expected == {row.key for row in two_ranks.rows}
    assert not any(row.replaced for row in two_ranks.rows)


def test_a_trace_says_where_it_was_taken(two_ranks: Trace) -> None:
    assert "clock" == two_ranks.timing
    assert {"torch", "date_utc", "device", "python"} <= two_ranks.environment.keys()
    assert "hostname" not in two_ranks.environment


def test_a_stream_is_primed_and_drained_only_with_peers() -> None:
    run = compile_run(scenario(pipeline_parallel=2))
    together, alone = plan_stream(run, alone=False), plan_stream(run, alone=True)
    assert (1, 1, 1) == tuple(map(len, (together.prologue, together.body, together.epilogue)))
    assert (0, 1, 0) == tuple(map(len, (alone.prologue, alone.body, alone.epilogue)))


def test_the_chunks_of_a_prefill_are_one_repeat() -> None:
    workload = Workload(
        phase="prefill", batch_size=2, context_tokens=8, num_microbatches=1, prefill_chunk_tokens=4
    )
    trace = measure(scenario(workload=workload), timing="clock", device="cpu", traced_repeats=1)
    assert trace is not None
    assert {0, 1} == {row.step for row in trace.rows}
    assert 4 == len(trace.untraced_step_s)


def test_graphs_are_refused_on_the_cpu() -> None:
    with pytest.raises(SpecError, match="run.launch='graph' needs a CUDA GPU"):
        measure(scenario(launch="graph"), timing="clock", device="cpu")


def test_device_timing_is_refused_on_the_cpu() -> None:
    with pytest.raises(NotAvailableError, match="--timing cupti cannot be used on cpu"):
        measure(scenario(), timing="cupti", device="cpu")


def test_a_missing_gpu_is_one_line() -> None:
    with pytest.raises(NotAvailableError, match="1 CUDA GPUs are needed"):
        launch(scenario(), Options(timing="events", device="cuda"))


def test_several_ranks_are_refused_in_one_process() -> None:
    with pytest.raises(PlacementError, match="WORLD_SIZE=1; start 2 processes"):
        measure(scenario(pipeline_parallel=2), timing="clock", device="cpu")


def test_a_scenario_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DoesNotFitError, match="rank 0 needs"):
        measure(scenario(), timing="clock", device="cpu", free_bytes=1000)


def test_one_shot_all_reduce_is_refused_and_ends_all_ranks() -> None:
    kernels = KernelChoice(all_reduce="one_shot")
    with pytest.raises(RankFailedError, match="'one_shot' is not available on the cpu"):
        launch(scenario(tensor_parallel=2).with_kernels(kernels), ON_CPU)


def test_a_failing_op_names_rank_op_and_cause() -> None:
    kernels = KernelChoice(decode_attention="cudnn")
    with pytest.raises(RankFailedError, match=r"rank \d: L0\d.attn.sdpa@m0 failed: RuntimeError"):
        launch(scenario(pipeline_parallel=2).with_kernels(kernels), ON_CPU)

"""The joins from kernels to operations, on synthetic records: no CUPTI, no GPU."""

import pytest

from layerwise.hw.instrument.spans import (
    ApiCall,
    CapturedNode,
    GraphNodeMismatchError,
    KernelRecord,
    Marker,
    NodeCreation,
    OpSpan,
    ProcessRecords,
    count_unmatched,
    join_eager,
    join_graph,
    match_graph_nodes,
    name_nodes,
    spans_by_op_eager,
    spans_by_op_graph,
)


def make_kernel(
    name: str, start_ns: int, end_ns: int, correlation_id: int, node_id: int = 0, stream_id: int = 7
) -> KernelRecord:
    return KernelRecord(name, start_ns, end_ns, stream_id, correlation_id, node_id)


def make_call(start_ns: int, correlation_id: int, thread_id: int = 1) -> ApiCall:
    return ApiCall(start_ns, start_ns + 1, thread_id, correlation_id)


def test_eager_span_covers_first_to_last_kernel_of_the_range() -> None:
    kernels = [make_kernel("k1", 120, 130, 2), make_kernel("k0", 100, 115, 1)]
    spans = spans_by_op_eager(
        kernels, [make_call(11, 1), make_call(13, 2)], [Marker("a", 10, 20, 1)]
    )
    assert [{"a": OpSpan(100, 130, 2, ("k0", "k1"))}] == spans


def test_eager_kernel_may_run_after_its_range_has_closed() -> None:
    markers = [Marker("a", 10, 20, 1), Marker("b", 20, 30, 1)]
    kernels = [make_kernel("late", 500, 510, 1), make_kernel("later", 510, 520, 2)]
    spans = spans_by_op_eager(kernels, [make_call(15, 1), make_call(25, 2)], markers)
    assert [{"a": OpSpan(500, 510, 1, ("late",)), "b": OpSpan(510, 520, 1, ("later",))}] == spans


def test_eager_innermost_range_wins() -> None:
    markers = [Marker("step", 0, 100, 1), Marker("a", 10, 20, 1), Marker("b", 30, 40, 1)]
    calls = [make_call(15, 1), make_call(35, 2), make_call(50, 3)]
    kernels = [make_kernel(f"k{i}", 200 + i, 201 + i, i) for i in (1, 2, 3)]
    (spans,) = spans_by_op_eager(kernels, calls, markers)
    assert {"a": ("k1",), "b": ("k2",), "step": ("k3",)} == {
        op: span.kernel_names for op, span in spans.items()
    }


def test_eager_repeated_name_begins_the_next_step() -> None:
    markers = [Marker(name, 10 * i, 10 * i + 9, 1) for i, name in enumerate("abab")]
    calls = [make_call(10 * i + 5, i) for i in range(4)]
    kernels = [make_kernel("k", 100 + i, 101 + i, i) for i in range(4)]
    spans = spans_by_op_eager(kernels, calls, markers)
    assert [[100, 101], [102, 103]] == [[s.start_ns for s in step.values()] for step in spans]


def test_eager_ranges_of_other_threads_do_not_count() -> None:
    markers = [Marker("a", 10, 20, 1), Marker("b", 10, 20, 2)]
    kernels = [make_kernel("k", 100, 110, 1)]
    (spans,) = spans_by_op_eager(kernels, [make_call(15, 1, thread_id=1)], markers)
    assert ["a"] == list(spans)


def test_eager_threads_numbered_differently_are_taken_as_one() -> None:
    kernels = [make_kernel("k", 100, 110, 1)]
    calls = [make_call(15, 1, thread_id=9)]
    assert ["a"] == list(spans_by_op_eager(kernels, calls, [Marker("a", 10, 20, 1)])[0])


def test_eager_driver_call_within_a_runtime_call_joins_once() -> None:
    calls = [make_call(15, 1), make_call(16, 1)]
    spans = spans_by_op_eager([make_kernel("k", 100, 110, 1)], calls, [Marker("a", 10, 20, 1)])
    assert 1 == spans[0]["a"].num_kernels


def test_eager_kernel_outside_ranges_is_counted_as_unmatched() -> None:
    kernels = [make_kernel("in", 100, 110, 1), make_kernel("out", 110, 120, 2)]
    calls = [make_call(15, 1), make_call(25, 2)]
    spans = spans_by_op_eager(kernels, calls, [Marker("a", 10, 20, 1)])
    assert 1 == count_unmatched(kernels, spans)


def test_eager_steps_tell_their_ranges_and_what_was_launched_between_them() -> None:
    markers = [Marker(name, 10 * i, 10 * i + 5, 1) for i, name in enumerate("abab")]
    kernels = [
        make_kernel("in a", 500, 510, 1),
        make_kernel("astray", 520, 530, 2),
        make_kernel("between steps", 530, 540, 3),
    ]
    calls = [make_call(2, 1), make_call(7, 2), make_call(17, 3)]
    first, second = join_eager(kernels, calls, markers)
    assert {"a", "b"} == first.names == second.names
    assert (["a"], ["astray"]) == (list(first.spans), [k.name for k in first.strays])
    assert ({}, ()) == (second.spans, second.strays)


def test_eager_kernel_without_a_call_is_astray_where_it_ran() -> None:
    (step,) = join_eager([make_kernel("k", 15, 18, 1)], [], [Marker("a", 10, 20, 1)])
    assert ["k"] == [kernel.name for kernel in step.strays]


def test_eager_step_begins_at_its_first_range_even_after_a_part_of_one() -> None:
    markers = [Marker(name, 10 * i, 10 * i + 5, 1) for i, name in enumerate("cabcab")]
    steps = join_eager([], [], markers, first="a")
    assert [{"c"}, {"a", "b", "c"}, {"a", "b"}] == [step.names for step in steps]


def test_graph_replay_tells_what_ran_in_its_course() -> None:
    kernels = [
        make_kernel("x", 10, 20, 1, 1),
        make_kernel("y", 30, 40, 1, 2),
        make_kernel("astray", 25, 28, 9),
        make_kernel("after", 50, 60, 10),
    ]
    (replay,) = join_graph(kernels, {1: "a", 2: "b"})
    assert ["astray"] == [kernel.name for kernel in replay.strays]


def test_nodes_are_named_by_the_step_and_range_of_their_creation() -> None:
    markers = [Marker(name, 10 * i, 10 * i + 5, 1) for i, name in enumerate("abab")]
    process = ProcessRecords(
        process_id=1,
        kernels=tuple(make_kernel("k", i, i + 1, 1, 100 + i) for i in range(6)),
        created_nodes=tuple(NodeCreation(i, moment, 1) for i, moment in enumerate((2, 12, 22, 32))),
        # Node 104 is of another graph, node 105 of one that was captured before the recording.
        cloned_nodes={100 + i: i for i in range(4)} | {104: 104},
    )
    assert {100: "0|a", 101: "0|b", 102: "1|a", 103: "1|b"} == name_nodes(process, markers)


def test_nodes_created_outside_all_ranges_have_no_name() -> None:
    process = ProcessRecords(
        process_id=1,
        kernels=(make_kernel("k", 1, 2, 1, 7),),
        created_nodes=(NodeCreation(7, 50, 1),),
    )
    assert {} == name_nodes(process, [Marker("a", 10, 20, 1)])


def test_nodes_cloned_in_a_circle_are_refused() -> None:
    with pytest.raises(GraphNodeMismatchError):
        match_graph_nodes(CAPTURED, [30], {30: 31, 31: 30})


def test_graph_replays_are_told_apart_by_correlation_id() -> None:
    kernels = [
        make_kernel(f"k{n}", 10 * r + n, 10 * r + n + 1, r, n) for r in (1, 2) for n in (1, 2)
    ]
    spans = spans_by_op_graph(kernels, {1: "a", 2: "b"})
    assert [
        {"a": OpSpan(11, 12, 1, ("k1",)), "b": OpSpan(12, 13, 1, ("k2",))},
        {"a": OpSpan(21, 22, 1, ("k1",)), "b": OpSpan(22, 23, 1, ("k2",))},
    ] == spans


@pytest.mark.parametrize("correlation_ids", [(1, 2, 3, 4), (5, 5, 5, 5)])
def test_graph_replays_without_an_id_of_their_own_are_told_apart_by_repetition(
    correlation_ids: tuple[int, ...],
) -> None:
    nodes = (1, 2, 1, 2)
    kernels = [
        make_kernel("k", 10 * i, 10 * i + 5, correlation, node)
        for i, (correlation, node) in enumerate(zip(correlation_ids, nodes, strict=True))
    ]
    spans = spans_by_op_graph(kernels, {1: "a", 2: "b"})
    assert [{"a": 0, "b": 10}, {"a": 20, "b": 30}] == [
        {op: span.start_ns for op, span in replay.items()} for replay in spans
    ]


def test_graph_span_covers_nodes_on_several_streams() -> None:
    kernels = [make_kernel("x", 10, 40, 1, 1, 7), make_kernel("y", 12, 20, 1, 2, 8)]
    spans = spans_by_op_graph(kernels, {1: "a", 2: "a"})
    assert [{"a": OpSpan(10, 40, 2, ("x", "y"))}] == spans


def test_graph_unknown_node_is_counted_as_unmatched() -> None:
    kernels = [make_kernel("x", 10, 20, 1, 1), make_kernel("y", 20, 30, 1, 99)]
    assert 1 == count_unmatched(kernels, spans_by_op_graph(kernels, {1: "a"}))


CAPTURED = (
    CapturedNode("a", 11, True),
    CapturedNode("a", 12, False),
    CapturedNode("b", 13, True),
)


def test_nodes_match_by_identity() -> None:
    assert {11: "a", 13: "b"} == match_graph_nodes(CAPTURED, [13, 11, 11], {})


def test_nodes_match_through_clones_of_clones() -> None:
    cloned = {30: 20, 20: 13, 31: 21, 21: 11}
    assert {30: "b", 31: "a"} == match_graph_nodes(CAPTURED, [30, 31], cloned)


def test_nodes_match_by_order_of_creation_without_clone_events() -> None:
    assert {51: "a", 53: "b"} == match_graph_nodes(CAPTURED, [53, 51], {})


def test_nodes_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(GraphNodeMismatchError, match="3 nodes where 2 recorded"):
        match_graph_nodes(CAPTURED, [51, 52, 53], {})

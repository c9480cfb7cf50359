"""From made-up profiles of a tiny scenario to a trace: every op a row, nothing dropped unsaid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from layerwise.hw.engine.schedule import actions_of
from layerwise.hw.errors import UnmeasuredOpError
from layerwise.hw.imported.trace import import_trace
from layerwise.hw.streams import plan_stream
from layerwise.scenarios.command_line import main
from layerwise.scenarios.compare.joined import compare
from layerwise.sim.plan.errors import FileFormatError, SpecError, TraceMismatchError
from layerwise.sim.plan.program import PlacedOp, Program
from layerwise.sim.plan.scenario import Scenario, compile_run
from layerwise.sim.plan.workload import Workload
from layerwise.sim.trace import Trace, read_trace, write_trace
from tests.hw.profiles import NsysFile, global_id, host_event, kernel_event, write_kineto
from tests.hw.scenes import scenario
from tests.synthetic import synthetic_profile

DEVICE_NS = 1_000_000
"""When the device begins, after the host has issued everything."""


class Host:
    """One process that runs a program under ranges, a kernel or two per op, clock by clock."""

    def __init__(self, file: NsysFile, process: int, *, first_ns: int = DEVICE_NS) -> None:
        self.file, self.process = file, process
        self.now_ns, self.device_ns = 1000, first_ns
        self.correlation = count(1)
        file.domain(process)

    def step(
        self,
        program: Program,
        *,
        skip: Sequence[str] = (),
        silent: Sequence[str] = (),
        device: int = 0,
    ) -> None:
        """Every op's range and kernels: none of `skip` at all, no kernels of `silent`."""
        for index, placed in enumerate(launched(program)):
            if placed.name in skip:
                continue
            begin_ns = self.now_ns
            if placed.name not in silent:
                for _ in range(1 + index % 2):
                    self.kernel(duration_ns(placed), device=device)
            self.now_ns += 10
            self.file.range(placed.name, begin_ns, self.now_ns, self.process, registered=True)
            self.now_ns += 10

    def kernel(self, length_ns: int = 5, *, name: str = "gemm", device: int = 0) -> None:
        """Launched now, run when the device has come to it."""
        self.now_ns += 10
        self.file.launch(
            self.now_ns,
            self.device_ns,
            self.device_ns + length_ns,
            next(self.correlation),
            self.process,
            name=name,
            device=device,
        )
        self.device_ns += length_ns + 2
        self.now_ns += 10


def launched(program: Program) -> Iterator[PlacedOp]:
    return (action.placed for action in actions_of(program) if action.verb != "wait")


def duration_ns(placed: PlacedOp) -> int:
    return 100 + len(placed.name) + 7 * placed.layer + placed.microbatch


def programs_of(asked: Scenario, rank: int = 0) -> list[Program]:
    return plan_stream(compile_run(asked), alone=True).body_programs(rank)


def eager_file(path: Path, asked: Scenario, repeats: int = 3, **more: Any) -> Path:
    """One process per rank, pids 100 on, clashing correlation ids."""
    file = NsysFile()
    num_ranks = compile_run(asked)[0].placement.num_ranks
    for rank in range(num_ranks):
        host = Host(file, 100 + rank)
        for _ in range(repeats):
            for program in programs_of(asked, rank):
                host.step(program, **more)
    return file.write(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report.sqlite"


def test_every_op_of_the_body_is_a_row_with_the_time_of_its_kernels(path: Path) -> None:
    asked = scenario()
    trace = import_trace(asked, [eager_file(path, asked)])
    (program,) = programs_of(asked)
    expected = [(repeat, 2, 0, placed.name) for repeat in range(3) for placed in program]
    assert expected == [row.key for row in trace.rows]
    num_kernels = {p.name: 1 + index % 2 for index, p in enumerate(launched(program))}
    lengths = {p.name: (duration_ns(p) + 2) * num_kernels[p.name] - 2 for p in program}
    assert pytest.approx([lengths[row.op] * 1e-9 for row in trace.rows]) == [
        row.duration_s for row in trace.rows
    ]


def test_a_trace_says_what_it_was_imported_from(path: Path) -> None:
    asked = scenario()
    trace = import_trace(asked, [eager_file(path, asked, repeats=9)], repeats=4)
    assert ("measured", "nsys") == (trace.source, trace.timing)
    said = trace.environment
    assert ("nsys of unknown version", "report.sqlite", "0: report.sqlite process 100") == (
        said["imported_from"],
        said["imported_files"],
        said["imported_ranks"],
    )
    assert ("the last 4 of 9", "0", "0") == (
        said["imported_repeats"],
        said["partial_steps"],
        said["unmatched_kernels"],
    )
    assert {0, 1, 2, 3} == {row.repeat for row in trace.rows}


def test_a_step_takes_from_one_end_to_the_next(path: Path) -> None:
    asked = scenario(pipeline_parallel=2)
    trace = import_trace(asked, [eager_file(path, asked, repeats=6)], repeats=5)
    last = [row for row in trace.rows if row.rank == 1]
    span_s = max(r.end_s for r in last if not r.repeat)
    # One idle moment of 2 ns lies between the kernels of two steps.
    assert pytest.approx([span_s + 2e-9] * 5) == list(trace.traced_step_s)


def test_untraced_times_come_from_a_trace_of_the_same_work(path: Path) -> None:
    asked = scenario()
    file = eager_file(path, asked)
    assert () == import_trace(asked, [file]).untraced_step_s
    again = replace(
        import_trace(scenario(repeats=2), [file]),
        untraced_step_s=(0.5, 0.25),
        timing="none",
        environment={"gpu": "pretend H100"},
    )
    both = import_trace(asked, [file], untraced=again)
    assert ((0.5, 0.25), "nsys", "pretend H100") == (
        both.untraced_step_s,
        both.timing,
        both.environment["gpu"],
    )
    other = replace(again, scenario=again.scenario | {"workload": {"batch_size": 1}})
    with pytest.raises(TraceMismatchError, match="is no measurement of this scenario"):
        import_trace(asked, [file], untraced=other)


def test_processes_are_the_ranks_whose_ops_they_ran(path: Path) -> None:
    asked = scenario(pipeline_parallel=2)
    file = NsysFile()
    # The second stage has the lower process id, and ran first.
    for process, rank, first_ns in ((7, 1, 10_000), (8, 0, 90_000)):
        host = Host(file, process, first_ns=first_ns)
        host.step(programs_of(asked, rank)[0])
    trace = import_trace(asked, [file.write(path)])
    expected = {(rank, p.name) for rank in (0, 1) for p in programs_of(asked, rank)[0]}
    assert expected == {(row.rank, row.op) for row in trace.rows}
    assert (
        "0: report.sqlite process 8; 1: report.sqlite process 7"
        == (trace.environment["imported_ranks"])
    )


@pytest.mark.parametrize(
    ("devices", "firsts_ns", "expected"),
    [
        ((0, 0), (90_000, 10_000), "8, 7"),
        ((1, 0), (10_000, 90_000), "8, 7"),
        ((0, 0), (10_000, 90_000), "7, 8"),
    ],
)
def test_ranks_of_equal_ops_go_by_device_and_then_by_first_kernel(
    path: Path, devices: tuple[int, int], firsts_ns: tuple[int, int], expected: str
) -> None:
    asked = scenario(tensor_parallel=2)
    file = NsysFile()
    for process, device, first_ns in zip((7, 8), devices, firsts_ns, strict=True):
        host = Host(file, process, first_ns=first_ns)
        host.step(programs_of(asked)[0], device=device)
    trace = import_trace(asked, [file.write(path)])
    said = trace.environment["imported_ranks"].split("; ")
    assert expected == ", ".join(each.rpartition(" ")[2] for each in said)


def test_a_rank_can_be_given(path: Path) -> None:
    asked = scenario(tensor_parallel=2)
    file = eager_file(path, asked)
    trace = import_trace(asked, [file], rank_of={100: 1})
    assert (
        "0: report.sqlite process 101; 1: report.sqlite process 100"
        == (trace.environment["imported_ranks"])
    )


@pytest.mark.parametrize("rank_of", [{100: 2}, {99: 0}])
def test_a_rank_of_nobody_is_refused(path: Path, rank_of: dict[int, int]) -> None:
    asked = scenario(tensor_parallel=2)
    file = eager_file(path, asked)
    with pytest.raises(SpecError, match=r"--rank-of='\d+=\d' does not pair one of .*\[100, 101\]"):
        import_trace(asked, [file], rank_of=rank_of)


def test_two_processes_for_one_rank_are_refused(path: Path) -> None:
    asked = scenario(tensor_parallel=2)
    file = eager_file(path, asked)
    with pytest.raises(SpecError, match="would be rank 1, which is report.sqlite process 100"):
        import_trace(asked, [file], rank_of={100: 1, 101: 1})


def test_a_rank_without_a_process_is_refused(path: Path) -> None:
    asked = scenario(pipeline_parallel=2)
    file = NsysFile()
    Host(file, 100).step(programs_of(asked, 0)[0])
    with pytest.raises(SpecError, match=r"show no process for ranks \[1\] of 2"):
        import_trace(asked, [file.write(path)])


def test_ranges_of_another_scenario_are_refused(path: Path) -> None:
    file = eager_file(path, scenario(pipeline_parallel=4))
    with pytest.raises(UnmeasuredOpError, match="its ranges are not the ops of any rank"):
        import_trace(scenario(pipeline_parallel=2), [file])


def test_ranks_in_files_of_their_own(tmp_path: Path) -> None:
    asked = scenario(tensor_parallel=2)
    paths: list[Path] = []
    for name, first_ns in (("b.sqlite", 90_000), ("a.sqlite", 10_000)):
        file = NsysFile()
        # The clocks of two machines say nothing about each other: the order given does.
        Host(file, 5, first_ns=first_ns).step(programs_of(asked)[0])
        paths.append(file.write(tmp_path / name))
    trace = import_trace(asked, paths)
    assert "0: b.sqlite process 5; 1: a.sqlite process 5" == trace.environment["imported_ranks"]


def test_ranks_seen_for_different_times_are_refused(path: Path) -> None:
    asked = scenario(tensor_parallel=2)
    file = NsysFile()
    for process, repeats in ((7, 2), (8, 3)):
        host = Host(file, process)
        for _ in range(repeats):
            host.step(programs_of(asked)[0])
    with pytest.raises(UnmeasuredOpError, match="different numbers of whole repeats"):
        import_trace(asked, [file.write(path)])


def test_messages_of_a_rank_alone_are_replaced(path: Path) -> None:
    asked = scenario(pipeline_parallel=2, only_rank=1)
    (program,) = programs_of(asked, 1)
    file = NsysFile()
    Host(file, 9).step(program, silent=[p.name for p in program if p.op.meets])
    trace = import_trace(asked, [file.write(path)])
    assert {"Send", "Recv"} == {row.kind for row in trace.rows if row.replaced}
    assert {1} == {row.rank for row in trace.rows}


def test_the_chunks_of_a_prefill_are_one_repeat(path: Path) -> None:
    workload = Workload(
        phase="prefill", batch_size=2, context_tokens=8, num_microbatches=1, prefill_chunk_tokens=4
    )
    asked = scenario(workload=workload)
    trace = import_trace(asked, [eager_file(path, asked, repeats=2)])
    expected = [
        (repeat, step, 0, placed.name)
        for repeat in range(2)
        for step, program in enumerate(programs_of(asked))
        for placed in program
    ]
    assert expected == [row.key for row in trace.rows]
    assert 2 == len(trace.traced_step_s)


def test_steps_that_were_cut_are_left_out_and_counted(path: Path) -> None:
    asked = scenario()
    (program,) = programs_of(asked)
    names = [placed.name for placed in launched(program)]
    file = NsysFile()
    host = Host(file, 100)
    host.step(program, skip=names[:10])
    host.step(program)
    host.step(program)
    host.step(program, skip=names[-10:])
    trace = import_trace(asked, [file.write(path)])
    assert "2" == trace.environment["partial_steps"]
    assert {0, 1} == {row.repeat for row in trace.rows}


def test_a_range_missing_in_the_middle_is_named(path: Path) -> None:
    asked = scenario()
    (program,) = programs_of(asked)
    file = NsysFile()
    host = Host(file, 100)
    host.step(program)
    host.step(program, skip=["L01.attn.qkv@m1"])
    host.step(program)
    with pytest.raises(
        UnmeasuredOpError, match="step 1 of 3 went through no range of L01.attn.qkv@m1"
    ):
        import_trace(asked, [file.write(path)])


def test_an_op_without_a_kernel_is_named(path: Path) -> None:
    asked = scenario()
    file = eager_file(path, asked, silent=["L01.attn.qkv@m1", "L02.mlp.down@m0"])
    with pytest.raises(
        UnmeasuredOpError, match=r"\(rank 0\): no kernel was seen of L01.attn.qkv@m1, L02.mlp.down"
    ):
        import_trace(asked, [file])


def test_kernels_before_and_after_the_steps_are_counted(path: Path) -> None:
    asked = scenario()
    file = NsysFile()
    host, launcher = Host(file, 100), Host(file, 50)
    launcher.kernel()
    host.kernel()
    for _ in range(2):
        host.step(programs_of(asked)[0])
        host.kernel(name="align the ranks")
    trace = import_trace(asked, [file.write(path)])
    assert "4" == trace.environment["unmatched_kernels"]


def test_a_kernel_within_a_step_and_in_no_range_is_named(path: Path) -> None:
    asked = scenario()
    file = NsysFile()
    host = Host(file, 100)
    host.step(programs_of(asked)[0])
    file.launch(1035, 2_000_000, 2_000_010, 999, 100, thread=1, name="of nobody")
    with pytest.raises(
        UnmeasuredOpError, match="1 kernels ran within repeat 0 and in no op's range: of nobody"
    ):
        import_trace(asked, [file.write(path)])


class Graph:
    """A capture under ranges and its replays: a node or two per op, cloned when instantiated."""

    def __init__(self, file: NsysFile, process: int = 100) -> None:
        self.file, self.process, self.now_ns = file, process, 1000
        self.nodes: list[tuple[int, int]] = []
        file.domain(process)

    def capture(self, programs: Sequence[Program], *, ranges: bool = True) -> None:
        for step, program in enumerate(programs):
            for index, placed in enumerate(launched(program)):
                begin_ns = self.now_ns
                for _ in range(1 + index % 2):
                    self._node(duration_ns(placed) + 1000 * step)
                if ranges:
                    self.file.range(placed.name, begin_ns, self.now_ns, self.process)
                self.now_ns += 10
        for node, _ in self.nodes:
            self.file.node(self.now_ns, 1000 + node, node, self.process)

    def _node(self, length_ns: int) -> None:
        self.nodes.append((len(self.nodes) + 1, length_ns))
        self.now_ns += 10
        self.file.node(self.now_ns, self.nodes[-1][0], process=self.process)
        # A call that is captured is recorded, and nothing runs.
        self.file.call(self.now_ns, 50_000 + len(self.nodes), self.process)
        self.now_ns += 10

    def replay(self, number: int) -> None:
        at_ns = DEVICE_NS * (number + 1)
        self.file.call(self.now_ns, number, self.process)
        for node, length_ns in self.nodes:
            self.file.kernel(at_ns, at_ns + length_ns, number, self.process, node=1000 + node)
            at_ns += length_ns + 1
        self.now_ns += 100


def graph_file(path: Path, asked: Scenario, replays: int = 3, **more: Any) -> Path:
    file = NsysFile()
    graph = Graph(file)
    graph.capture(programs_of(asked) * asked.run.steps_per_graph, **more)
    for number in range(replays):
        graph.replay(number + 1)
    return file.write(path)


def test_a_graphs_kernels_are_named_by_the_ranges_of_its_capture(path: Path) -> None:
    asked = scenario(launch="graph")
    trace = import_trace(asked, [graph_file(path, asked)])
    (program,) = programs_of(asked)
    expected = [(repeat, 2, 0, placed.name) for repeat in range(3) for placed in program]
    assert expected == [row.key for row in trace.rows]
    qkv = next(row for row in trace.rows if row.op == "L00.attn.qkv@m0")
    assert pytest.approx((2 * 115 + 1) * 1e-9) == qkv.duration_s


def test_of_several_steps_in_a_graph_the_last_is_kept(path: Path) -> None:
    asked = scenario(launch="graph", steps_per_graph=2)
    trace = import_trace(asked, [graph_file(path, asked)])
    (program,) = programs_of(asked)
    assert 3 * len(program) == len(trace.rows)
    first = next(launched(program))
    assert pytest.approx([(duration_ns(first) + 1000) * 1e-9] * 3) == [
        row.duration_s for row in trace.rows if row.op == first.name
    ]
    # Replays come at a fixed distance, of two steps each.
    assert pytest.approx([DEVICE_NS * 1e-9 / 2] * 2) == list(trace.traced_step_s)


def test_other_graphs_and_eager_kernels_are_counted(path: Path) -> None:
    asked = scenario(launch="graph")
    file = NsysFile()
    graph = Graph(file)
    graph.capture(programs_of(asked))
    graph.replay(1)
    file.launch(5, 50, 60, 777, 100, name="warm-up")
    file.node(graph.now_ns + 5, 5000, process=100)
    file.launch(graph.now_ns + 9, 9 * DEVICE_NS, 9 * DEVICE_NS + 5, 778, 100, node=5000)
    trace = import_trace(asked, [file.write(path)])
    assert "2" == trace.environment["unmatched_kernels"]


def test_a_kernel_that_runs_within_a_replay_and_is_no_node_of_it_is_named(path: Path) -> None:
    asked = scenario(launch="graph")
    file = NsysFile()
    graph = Graph(file)
    graph.capture(programs_of(asked))
    graph.replay(1)
    file.launch(5, 2 * DEVICE_NS + 100, 2 * DEVICE_NS + 110, 777, 100, name="of nobody")
    with pytest.raises(UnmeasuredOpError, match="in no op's range: of nobody"):
        import_trace(asked, [file.write(path)])


def test_nodes_match_by_order_where_no_clones_are_told(path: Path) -> None:
    asked = scenario(launch="graph")
    file = NsysFile()
    graph = Graph(file)
    graph.capture(programs_of(asked))
    graph.replay(1)
    nodes = file.rows["CUDA_GRAPH_NODE_EVENTS"]
    file.rows["CUDA_GRAPH_NODE_EVENTS"] = [n for n in nodes if n["originalGraphNodeId"] is None]
    older = file.write(path, without=("originalGraphNodeId",))
    expected = import_trace(asked, [graph_file(path.with_name("b.sqlite"), asked, 1)])
    assert expected.rows == import_trace(asked, [older]).rows


def without_nodes(file: NsysFile) -> None:
    del file.rows["CUDA_GRAPH_NODE_EVENTS"]


def recorded_whole(file: NsysFile) -> None:
    del file.rows["CUPTI_ACTIVITY_KIND_KERNEL"]
    file.add("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", start=1, end=2, globalPid=global_id(100), graphId=1)


def without_clones(file: NsysFile) -> None:
    nodes = file.rows["CUDA_GRAPH_NODE_EVENTS"]
    file.rows["CUDA_GRAPH_NODE_EVENTS"] = nodes[: len(nodes) // 3]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (without_nodes, "no table CUDA_GRAPH_NODE_EVENTS; .*--cuda-graph-trace=node`"),
        (recorded_whole, "1 graph launches were .*`nsys profile --cuda-graph-trace=node`"),
        (without_clones, "nodes where .* recorded ones were captured"),
    ],
)
def test_replays_that_cannot_be_told_apart_are_refused(
    path: Path, spoil: Callable[[NsysFile], None], expected: str
) -> None:
    asked = scenario(launch="graph")
    file = NsysFile()
    graph = Graph(file)
    graph.capture(programs_of(asked))
    graph.replay(1)
    spoil(file)
    with pytest.raises(UnmeasuredOpError, match=expected):
        import_trace(asked, [file.write(path)])


def test_a_capture_without_ranges_is_refused_with_how_to_make_them(path: Path) -> None:
    asked = scenario(launch="graph")
    with pytest.raises(UnmeasuredOpError, match="no range of an op of this scenario; there are no"):
        import_trace(asked, [graph_file(path, asked, ranges=False)])


def test_ranges_beside_a_capture_that_had_none_do_not_name_it(path: Path) -> None:
    asked = scenario(launch="graph")
    file = NsysFile()
    Host(file, 100).step(programs_of(asked)[0])
    graph = Graph(file)
    graph.now_ns = 500_000
    graph.capture(programs_of(asked), ranges=False)
    graph.replay(8)
    with pytest.raises(UnmeasuredOpError, match="the graph was captured without ranges"):
        import_trace(asked, [file.write(path)])


def test_an_eager_run_of_a_graph_scenario_is_refused_and_the_reverse(path: Path) -> None:
    eager, graph = scenario(), scenario(launch="graph")
    with pytest.raises(UnmeasuredOpError, match="run.launch='graph' and there is no graph replay"):
        import_trace(graph, [eager_file(path, eager)])
    with pytest.raises(UnmeasuredOpError, match="run.launch='eager' and there are graph replays"):
        import_trace(eager, [graph_file(path.with_name("b.sqlite"), graph)])


def kineto_file(path: Path, program: Program, repeats: int = 2, **more: Any) -> Path:
    events = [host_event("ProfilerStep#1", 0, 1e6)]
    now_us, device_us, correlation = 10, 100_000.5, count(1)
    for _ in range(repeats):
        for placed in launched(program):
            launch = next(correlation)
            events.append(host_event(placed.name, now_us, 8))
            # What torch annotates within an op is no op.
            events.append(host_event("nccl:all_reduce", now_us + 1, 5))
            call = {"category": "cuda_runtime", "correlation": launch}
            events.append(host_event("cudaLaunchKernel", now_us + 2, 2, **call))
            length_us = duration_ns(placed) / 1000
            events.append(kernel_event("gemm", device_us, length_us, launch, **more))
            now_us, device_us = now_us + 10, device_us + length_us + 1
    return write_kineto(path, events)


def test_a_trace_of_torch_profiler_gives_rows_as_well(tmp_path: Path) -> None:
    asked = scenario()
    (program,) = programs_of(asked)
    trace = import_trace(asked, [kineto_file(tmp_path / "a.json", program)])
    assert ("kineto", "pretend H100") == (trace.timing, trace.environment["gpu"])
    expected = [(repeat, 2, 0, placed.name) for repeat in range(2) for placed in program]
    assert expected == [row.key for row in trace.rows]
    assert pytest.approx([duration_ns(p) * 1e-9 for p in program] * 2) == [
        row.duration_s for row in trace.rows
    ]


def test_graphs_of_torch_profiler_are_refused(tmp_path: Path) -> None:
    (program,) = programs_of(scenario())
    path = kineto_file(tmp_path / "a.json", program, **{"graph node id": 4})
    with pytest.raises(UnmeasuredOpError, match="does not say where a graph's nodes were captured"):
        import_trace(scenario(launch="graph"), [path])


def test_files_of_two_tools_are_refused(tmp_path: Path) -> None:
    asked = scenario(tensor_parallel=2)
    nsys = eager_file(tmp_path / "a.sqlite", asked)
    kineto = kineto_file(tmp_path / "b.json", programs_of(asked)[0])
    with pytest.raises(SpecError, match=r"--import=\['kineto', 'nsys'\] mixes tools"):
        import_trace(asked, [nsys, kineto])


def test_a_file_of_neither_tool_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.nsys-rep"
    path.write_bytes(b"\x00\x01 something else")
    with pytest.raises(FileFormatError, match="nsys export --type sqlite"):
        import_trace(scenario(), [path])


TINY = """
[model]
num_layers = 2
hidden_size = 64
intermediate_size = 128
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 16
[cluster]
num_gpus = 1
[placement]
strategy = "tensor-pipeline"
[workload]
batch_size = 2
context_tokens = 8
num_microbatches = 2
[run]
launch = "eager"
"""


@pytest.fixture
def asked_in_toml(tmp_path: Path) -> tuple[Path, Scenario]:
    from layerwise.calibration.data import profile_path
    from layerwise.sim.plan.files import load_scenario
    from layerwise.sim.profile import load_profile

    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path, load_scenario(path).with_kernels(load_profile(profile_path("h100-sxm")).kernels)


def test_the_command_line_imports_what_compare_can_read(
    path: Path, asked_in_toml: tuple[Path, Scenario], capsys: pytest.CaptureFixture[str]
) -> None:
    scenario_file, asked = asked_in_toml
    eager_file(path, asked, repeats=5)
    alone, out = path.with_name("untraced.jsonl"), path.with_name("trace.jsonl.gz")
    write_trace(untraced_trace(asked, path), alone)
    arguments = ["measure", str(scenario_file), "--out", str(out), "--import", str(path)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--untraced", str(alone), "--rank-of", "100=0"])
    assert 0 == ended.value.code
    assert "timing nsys, the last 5 of 5 repeats; 0 kernels" in capsys.readouterr().err
    compared = compare(read_trace(out), replace(synthetic_profile(), kernels=asked.kernels))
    assert len(programs_of(asked)[0]) == sum(op.count for op in compared.ops)
    assert median(untraced_trace(asked, path).untraced_step_s) == compared.stage.measured_s


def untraced_trace(asked: Scenario, path: Path) -> Trace:
    """As `--timing none` writes it: step times, no rows."""
    trace = import_trace(asked, [path])
    return replace(trace, rows=(), traced_step_s=(), untraced_step_s=(2e-5,) * 3, timing="none")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--rank-of", "1=0"], "--import=None is missing"),
        (["--import", "a.sqlite", "--timing", "cupti"], "runs nothing for ['--timing']"),
        (["--import", "a.sqlite", "--rank-of", "one=0"], "write --rank-of 4242=0"),
        (["--import", "a.sqlite"], "a.sqlite: cannot be read"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    tmp_path: Path,
    asked_in_toml: tuple[Path, Scenario],
    options: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "trace.jsonl"
    with pytest.raises(SystemExit) as ended:
        main(["measure", str(asked_in_toml[0]), "--out", str(out), *options])
    said = capsys.readouterr().err
    assert (2, 1) == (ended.value.code, said.count("\n"))
    assert expected in said
    assert not out.exists()

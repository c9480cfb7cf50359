"""Reading nsys exports: every version's columns, and nothing of another process or domain."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerwise.hw.imported.nsys import process_of, read_nsys
from layerwise.hw.instrument.spans import (
    ApiCall,
    KernelRecord,
    Marker,
    NodeCreation,
    ProcessRecords,
    count_unmatched,
    spans_by_op_eager,
)
from layerwise.sim.plan.errors import FileFormatError
from tests.hw.profiles import NsysFile, global_id


@pytest.fixture
def file() -> NsysFile:
    made = NsysFile()
    made.domain(1)
    return made


def only_process(path: Path) -> ProcessRecords:
    (process,) = read_nsys(path).processes
    return process


def test_process_id_is_cut_out_of_the_global_id() -> None:
    assert 0x123456 == process_of(global_id(0x123456, thread=0xABCDEF))


def test_kernel_call_and_range_become_records(file: NsysFile, tmp_path: Path) -> None:
    file.range("a", 10, 20)
    file.launch(15, 100, 130, 5, stream=9, device=2)
    process = only_process(file.write(tmp_path / "a.sqlite"))
    thread = global_id(1, 1)
    assert (KernelRecord("gemm", 100, 130, 9, 5, 0, 2),) == process.kernels
    assert (ApiCall(15, 16, thread, 5),) == process.api_calls
    assert (Marker("a", 10, 20, thread),) == process.markers


def test_copies_and_sets_are_kernels_too(file: NsysFile, tmp_path: Path) -> None:
    file.launch(15, 100, 130, 5, table="CUPTI_ACTIVITY_KIND_MEMCPY")
    file.launch(16, 130, 140, 6, table="CUPTI_ACTIVITY_KIND_MEMSET", node=77)
    process = only_process(file.write(tmp_path / "a.sqlite"))
    assert [("memcpy", 0), ("memset", 77)] == [(k.name, k.graph_node_id) for k in process.kernels]


def test_clashing_correlation_ids_of_two_processes_stay_apart(tmp_path: Path) -> None:
    file = NsysFile()
    for process, op in ((11, "a"), (12, "b")):
        file.domain(process)
        file.range(op, 10, 20, process)
        file.launch(15, 100 * process, 100 * process + 10, 5, process)
    recording = read_nsys(file.write(tmp_path / "a.sqlite"))
    joined = {
        each.process_id: spans_by_op_eager(each.kernels, each.api_calls, each.markers)
        for each in recording.processes
    }
    assert {11: {"a": 1100}, 12: {"b": 1200}} == {
        process: {op: span.start_ns for op, span in step.items()}
        for process, (step,) in joined.items()
    }


def test_a_process_id_of_two_machines_is_two_processes(file: NsysFile, tmp_path: Path) -> None:
    file.launch(15, 100, 110, 5)
    file.add(
        "CUPTI_ACTIVITY_KIND_KERNEL",
        start=1,
        end=2,
        streamId=7,
        correlationId=5,
        globalPid=global_id(1, machine=0x5B),
    )
    recording = read_nsys(file.write(tmp_path / "a.sqlite"))
    assert [(1, 1), (1, 1)] == [(p.process_id, len(p.kernels)) for p in recording.processes]


def test_a_range_without_text_has_a_registered_string(file: NsysFile, tmp_path: Path) -> None:
    file.range("L00.attn.qkv@m0", 10, 20, registered=True)
    process = only_process(file.write(tmp_path / "a.sqlite"))
    assert ["L00.attn.qkv@m0"] == [marker.name for marker in process.markers]


def test_a_registered_domain_name_counts(tmp_path: Path) -> None:
    file = NsysFile()
    file.add(
        "NVTX_EVENTS",
        start=0,
        eventType=75,
        textId=file.string("layerwise"),
        domainId=3,
        globalTid=global_id(1),
    )
    file.range("a", 10, 20)
    assert 1 == len(only_process(file.write(tmp_path / "a.sqlite")).markers)


def test_an_open_range_lasts_to_the_end_of_the_recording(file: NsysFile, tmp_path: Path) -> None:
    file.range("open", 10, None)
    file.launch(15, 100, 130, 5)
    process = only_process(file.write(tmp_path / "a.sqlite"))
    assert [("open", 10, 130)] == [(m.name, m.start_ns, m.end_ns) for m in process.markers]


def test_ranges_of_other_domains_and_other_events_are_left_out(
    file: NsysFile, tmp_path: Path
) -> None:
    file.domain(1, "NCCL", domain_id=4)
    file.range("ncclAllReduce", 10, 20, domain_id=4)
    file.range("of the default domain", 10, 20, domain_id=0)
    file.range("a mark", 10, None, kind=34)
    file.range("started and ended", 10, 20, kind=60)
    process = only_process(file.write(tmp_path / "a.sqlite"))
    assert ["started and ended"] == [marker.name for marker in process.markers]


def test_a_domain_id_means_its_own_process_only(file: NsysFile, tmp_path: Path) -> None:
    file.domain(2, "something else")
    file.range("theirs", 10, 20, process=2)
    recording = read_nsys(file.write(tmp_path / "a.sqlite"))
    assert [] == [marker for each in recording.processes for marker in each.markers]


def test_graph_nodes_are_created_or_cloned(file: NsysFile, tmp_path: Path) -> None:
    file.node(110, 1)
    file.node(130, 11)
    file.node(131, 11, original=1)
    process = only_process(file.write(tmp_path / "a.sqlite"))
    assert (NodeCreation(1, 110, global_id(1, 1)),) == process.created_nodes
    assert {11: 1} == process.cloned_nodes


def test_graphs_recorded_whole_are_counted(file: NsysFile, tmp_path: Path) -> None:
    for start in (10, 20):
        file.add(
            "CUPTI_ACTIVITY_KIND_GRAPH_TRACE",
            start=start,
            end=start + 5,
            globalPid=global_id(1),
            correlationId=start,
            graphId=1,
        )
    assert 2 == only_process(file.write(tmp_path / "a.sqlite")).num_whole_graphs


def test_tables_and_columns_that_are_missing_read_as_nothing(
    file: NsysFile, tmp_path: Path
) -> None:
    file.range("a", 10, 20)
    file.launch(15, 100, 130, 5)
    lacking = ("graphNodeId", "globalPid", "deviceId", "shortName", "textId")
    process = only_process(file.write(tmp_path / "a.sqlite", without=lacking))
    assert (KernelRecord("gemm<float>", 100, 130, 7, 5, 0, 0),) == process.kernels
    assert 1 == len(process.markers)
    assert ((), {}, 0) == (process.created_nodes, process.cloned_nodes, process.num_whole_graphs)


@pytest.mark.parametrize("nothing", [0, -1])
def test_an_older_schema_writes_a_number_where_a_newer_one_writes_null(
    tmp_path: Path, nothing: int
) -> None:
    file = NsysFile()
    file.domain(1)
    file.add(
        "NVTX_EVENTS",
        start=10,
        end=nothing,
        eventType=59,
        text="",
        textId=file.string("open"),
        domainId=3,
        globalTid=global_id(1, 1),
    )
    file.launch(15, 100, 130, 5, node=0)
    file.node(5, 1, original=0)
    process = only_process(file.write(tmp_path / "a.sqlite"))
    assert [("open", 130)] == [(marker.name, marker.end_ns) for marker in process.markers]
    assert 0 == process.kernels[0].graph_node_id
    assert {} == process.cloned_nodes


def test_kernels_that_name_no_process_among_two_are_refused(tmp_path: Path) -> None:
    file = NsysFile()
    file.launch(15, 100, 130, 5, process=1)
    file.launch(15, 100, 130, 5, process=2)
    path = file.write(tmp_path / "a.sqlite", without=("globalPid",))
    with pytest.raises(FileFormatError, match="name no process, and there are 2 in the file"):
        read_nsys(path)


def test_a_table_without_its_main_columns_is_refused(file: NsysFile, tmp_path: Path) -> None:
    file.launch(15, 100, 130, 5)
    path = file.write(tmp_path / "a.sqlite", without=("correlationId",))
    with pytest.raises(FileFormatError, match="KERNEL lacks \\['correlationId'\\]"):
        read_nsys(path)


def test_the_version_and_the_gpus_are_told(file: NsysFile, tmp_path: Path) -> None:
    file.add("META_DATA_EXPORT", name="EXPORT_PRODUCT_VERSION", value="2026.1.1.204")
    file.add("META_DATA_EXPORT", name="EXPORT_SCHEMA_VERSION", value="3.24.14")
    for number in (0, 1):
        file.add("TARGET_INFO_GPU", id=number, name="NVIDIA H200")
    recording = read_nsys(file.write(tmp_path / "a.sqlite"))
    assert ("nsys", "2026.1.1.204, schema 3.24.14") == (recording.tool, recording.version)
    assert ("NVIDIA H200",) == recording.gpus


def test_an_export_without_metadata_says_so(file: NsysFile, tmp_path: Path) -> None:
    assert "of unknown version" == read_nsys(file.write(tmp_path / "a.sqlite")).version


def test_a_file_that_is_no_sqlite_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.sqlite"
    path.write_text("this is no database, and long enough to be looked at " * 40)
    with pytest.raises(FileFormatError, match=r"report.sqlite: .* not a database; make one with"):
        read_nsys(path)


def test_a_missing_file_is_refused_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "none.sqlite"
    with pytest.raises(FileFormatError, match="none.sqlite: cannot be read"):
        read_nsys(path)
    assert not path.exists()


def test_nested_ranges_on_two_threads_and_streams_join_to_the_innermost(
    file: NsysFile, tmp_path: Path
) -> None:
    file.range("outer", 10, 100)
    file.range("inner", 20, 40)
    file.range("elsewhere", 10, 100, thread=2)
    file.launch(30, 200, 210, 1, stream=7)
    file.launch(50, 205, 230, 2, stream=8)
    file.launch(60, 230, 240, 3, thread=2)
    file.launch(500, 300, 310, 4)
    process = only_process(file.write(tmp_path / "a.sqlite"))
    steps = spans_by_op_eager(process.kernels, process.api_calls, process.markers)
    assert [{"inner": 200, "outer": 205, "elsewhere": 230}] == [
        {op: span.start_ns for op, span in step.items()} for step in steps
    ]
    assert 1 == count_unmatched(process.kernels, steps)

"""Reading torch.profiler's traces: exact times, one process, plain or packed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from layerwise.hw.imported.kineto import read_kineto
from layerwise.hw.instrument.spans import (
    ApiCall,
    KernelRecord,
    Marker,
    ProcessRecords,
    spans_by_op_eager,
)
from layerwise.sim.plan.errors import FileFormatError
from tests.hw.profiles import host_event, kernel_event, write_kineto


def read(tmp_path: Path, *events: dict[str, Any], **more: Any) -> ProcessRecords:
    (process,) = read_kineto(write_kineto(tmp_path / "a.json", events, **more)).processes
    return process


def test_events_become_records(tmp_path: Path) -> None:
    process = read(
        tmp_path,
        host_event("a", 1.0, 9.5),
        host_event("cudaLaunchKernel", 2.0, 1.0, category="cuda_runtime", correlation=5),
        kernel_event("gemm", 20.125, 3.001, 5, stream=9, device=1),
    )
    assert 4242 == process.process_id
    assert (Marker("a", 1000, 10500, 4242),) == process.markers
    assert (ApiCall(2000, 3000, 4242, 5),) == process.api_calls
    assert (KernelRecord("gemm", 20125, 23126, 9, 5, 0, 1),) == process.kernels


def test_absolute_times_keep_their_nanoseconds(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    event = json.dumps(kernel_event("gemm", 1, 0.003, 5)).replace(
        '"ts": 1', '"ts": 1759300074000123.457'
    )
    path.write_text(f'{{"traceEvents": [{event}]}}')
    (kernel,) = read_kineto(path).processes[0].kernels
    assert (1759300074000123457, 1759300074000123460) == (kernel.start_ns, kernel.end_ns)


def test_copies_sets_and_driver_calls_are_read(tmp_path: Path) -> None:
    process = read(
        tmp_path,
        host_event("cuLaunchKernel", 2, 1, category="cuda_driver", correlation=4),
        kernel_event("Memcpy DtoD", 20, 3, 5, category="gpu_memcpy"),
        kernel_event("Memset", 24, 3, 6, category="gpu_memset"),
    )
    assert ["memcpy", "memset"] == [kernel.name for kernel in process.kernels]
    assert [4] == [call.correlation_id for call in process.api_calls]


def test_other_events_are_left_out(tmp_path: Path) -> None:
    process = read(
        tmp_path,
        host_event("aten::mm", 1, 1, category="cpu_op"),
        host_event("a", 1, 1, category="gpu_user_annotation", process=0),
        host_event("cudaGetDevice", 1, 1, category="cuda_runtime"),
        {"ph": "M", "name": "process_name", "pid": 4242, "args": {"name": "python"}},
    )
    assert ((), (), ()) == (process.kernels, process.api_calls, process.markers)


def test_a_node_of_a_graph_is_told(tmp_path: Path) -> None:
    process = read(tmp_path, kernel_event("gemm", 1, 1, 5, **{"graph node id": 8589934592}))
    assert [8589934592] == [kernel.graph_node_id for kernel in process.kernels]


def test_the_rank_the_version_and_the_gpu_are_told(tmp_path: Path) -> None:
    path = write_kineto(
        tmp_path / "a.json", [], distributedInfo={"rank": 3}, cuda_runtime_version=12080
    )
    recording = read_kineto(path)
    assert 3 == recording.processes[0].rank
    assert "schemaVersion 1, cuda_runtime_version 12080" == recording.version
    assert ("pretend H100",) == recording.gpus


def test_a_packed_trace_reads_the_same(tmp_path: Path) -> None:
    plain = write_kineto(tmp_path / "a.json", [kernel_event("gemm", 1, 1, 5)])
    packed = tmp_path / "a.json.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_kineto(plain) == read_kineto(packed)


def test_the_same_join_serves_both_tools(tmp_path: Path) -> None:
    process = read(
        tmp_path,
        host_event("a", 1, 20),
        host_event("b", 5, 5),
        host_event("cudaLaunchKernel", 2, 1, category="cuda_runtime", correlation=1),
        host_event("cuLaunchKernel", 6, 1, category="cuda_driver", correlation=2),
        kernel_event("k1", 100, 1, 1),
        kernel_event("k2", 101, 1, 2),
    )
    (step,) = spans_by_op_eager(process.kernels, process.api_calls, process.markers)
    assert {"a": ("k1",), "b": ("k2",)} == {op: span.kernel_names for op, span in step.items()}


def test_two_processes_in_one_file_are_refused(tmp_path: Path) -> None:
    path = write_kineto(tmp_path / "a.json", [host_event("a", 1, 1, process=p) for p in (1, 2)])
    with pytest.raises(FileFormatError, match=r"holds processes \[1, 2\]"):
        read_kineto(path)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{", "cannot be read as a trace of torch.profiler"),
        (
            gzip.compress(b'{"traceEvents": []}', mtime=0)[:-9],
            "cannot be read as a trace of torch.profiler",
        ),
        (b'{"events": []}', "has no list of traceEvents"),
        (b'{"traceEvents": [3]}', "has no list of traceEvents"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=f"a.json: {expected}"):
        read_kineto(path)


def test_a_kernel_without_its_correlation_is_refused(tmp_path: Path) -> None:
    event = kernel_event("gemm", 1, 1, 5)
    del event["args"]["correlation"]
    with pytest.raises(FileFormatError, match="lacks or misspells 'correlation'"):
        read(tmp_path, event)

"""Files as a profiler writes them, made here: nsys exports and torch.profiler traces."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Schema 3.x, of the columns that matter. Source: Nsight Systems, "SQLite Schema Reference".
TABLES = {
    "StringIds": "id, value",
    "META_DATA_EXPORT": "name, value",
    "TARGET_INFO_GPU": "id, name",
    "CUPTI_ACTIVITY_KIND_KERNEL": (
        "start, end, deviceId, streamId, correlationId, globalPid, demangledName, shortName, "
        "graphNodeId"
    ),
    "CUPTI_ACTIVITY_KIND_MEMCPY": (
        "start, end, deviceId, streamId, correlationId, globalPid, graphNodeId, bytes"
    ),
    "CUPTI_ACTIVITY_KIND_MEMSET": (
        "start, end, deviceId, streamId, correlationId, globalPid, graphNodeId, bytes"
    ),
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start, end, globalTid, correlationId, nameId",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": "start, end, globalPid, correlationId, graphId",
    "NVTX_EVENTS": (
        "start, end, eventType, rangeId, text, globalTid, endGlobalTid, textId, domainId"
    ),
    "CUDA_GRAPH_NODE_EVENTS": "start, end, globalTid, nameId, graphNodeId, originalGraphNodeId",
}
DOMAIN_ID = 3


def global_id(process: int, thread: int = 0, machine: int = 0x5A) -> int:
    """As nsys writes ids: machine, process and thread in one number."""
    return machine << 48 | process << 24 | thread


@dataclass
class NsysFile:
    """Collects rows by table; `write` makes the tables that have rows, as the exporter does."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    strings: dict[str, int] = field(default_factory=dict)

    def add(self, table: str, **row: Any) -> None:
        self.rows.setdefault(table, []).append(row)

    def string(self, text: str) -> int:
        if text not in self.strings:
            self.strings[text] = len(self.strings) + 1
            self.add("StringIds", id=self.strings[text], value=text)
        return self.strings[text]

    def domain(self, process: int, name: str = "layerwise", domain_id: int = DOMAIN_ID) -> None:
        self.add(
            "NVTX_EVENTS",
            start=0,
            eventType=75,
            text=name,
            domainId=domain_id,
            globalTid=global_id(process, process),
        )

    def range(
        self,
        name: str,
        start: int,
        end: int | None,
        process: int = 1,
        *,
        thread: int = 1,
        registered: bool = False,
        kind: int = 59,
        domain_id: int = DOMAIN_ID,
    ) -> None:
        self.add(
            "NVTX_EVENTS",
            start=start,
            end=end,
            eventType=kind,
            domainId=domain_id,
            text=None if registered else name,
            textId=self.string(name) if registered else None,
            globalTid=global_id(process, thread),
        )

    def launch(
        self,
        launched: int,
        start: int,
        end: int,
        correlation: int,
        process: int = 1,
        *,
        thread: int = 1,
        table: str = "CUPTI_ACTIVITY_KIND_KERNEL",
        name: str = "gemm",
        stream: int = 7,
        node: int | None = None,
        device: int = 0,
    ) -> None:
        """An API call and what it put on the device."""
        self.call(launched, correlation, process, thread=thread)
        self.kernel(
            start,
            end,
            correlation,
            process,
            table=table,
            name=name,
            stream=stream,
            node=node,
            device=device,
        )

    def call(self, start: int, correlation: int, process: int = 1, *, thread: int = 1) -> None:
        self.add(
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            start=start,
            end=start + 1,
            correlationId=correlation,
            nameId=self.string("cudaLaunchKernel"),
            globalTid=global_id(process, thread),
        )

    def kernel(
        self,
        start: int,
        end: int,
        correlation: int,
        process: int = 1,
        *,
        table: str = "CUPTI_ACTIVITY_KIND_KERNEL",
        name: str = "gemm",
        stream: int = 7,
        node: int | None = None,
        device: int = 0,
    ) -> None:
        row: dict[str, Any] = {
            "start": start,
            "end": end,
            "streamId": stream,
            "correlationId": correlation,
            "deviceId": device,
            "globalPid": global_id(process),
            "graphNodeId": node,
        }
        if table.endswith("KERNEL"):
            row |= {"shortName": self.string(name), "demangledName": self.string(f"{name}<float>")}
        self.add(table, **row)

    def node(
        self, start: int, node: int, original: int | None = None, process: int = 1, thread: int = 1
    ) -> None:
        self.add(
            "CUDA_GRAPH_NODE_EVENTS",
            start=start,
            end=start,
            graphNodeId=node,
            originalGraphNodeId=original,
            nameId=self.string("Graph Node Creation"),
            globalTid=global_id(process, thread),
        )

    def write(self, path: Path, *, without: Iterable[str] = (), tables: Iterable[str] = ()) -> Path:
        """`without`: columns that this version's schema lacks. `tables`: empty ones to make too."""
        with closing(sqlite3.connect(path)) as connection, connection:
            for table in dict.fromkeys((*self.rows, *tables)):
                columns = [c for c in TABLES[table].split(", ") if c not in set(without)]
                quoted = ", ".join(f'"{c}"' for c in columns)
                connection.execute(f'CREATE TABLE "{table}" ({quoted})')
                marks = ", ".join("?" * len(columns))
                connection.executemany(
                    f'INSERT INTO "{table}" ({quoted}) VALUES ({marks})',
                    [[row.get(c) for c in columns] for row in self.rows.get(table, ())],
                )
        return path


def kernel_event(
    name: str,
    start_us: float,
    duration_us: float,
    correlation: int,
    *,
    category: str = "kernel",
    stream: int = 7,
    device: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """Something on the device, as torch.profiler writes it: its process is the device."""
    said = {"device": device, "stream": stream, "correlation": correlation} | more
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": device,
        "tid": stream,
        "ts": start_us,
        "dur": duration_us,
        "args": said,
    }


def host_event(
    name: str,
    start_us: float,
    duration_us: float,
    *,
    category: str = "user_annotation",
    process: int = 4242,
    thread: int = 4242,
    **said: Any,
) -> dict[str, Any]:
    """A call or an annotated range on the host."""
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": process,
        "tid": thread,
        "ts": start_us,
        "dur": duration_us,
        "args": said,
    }


def write_kineto(path: Path, events: Sequence[dict[str, Any]], **more: Any) -> Path:
    """A trace file of these events."""
    data = {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "pretend H100"}], **more}
    path.write_text(json.dumps(data | {"traceEvents": list(events)}))
    return path

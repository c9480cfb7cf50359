"""Records from a file of Nsight Systems, exported with `nsys export --type sqlite REPORT.nsys-rep`.

Tables appear only when there is something in them, and columns have come over the versions: what
is optional here may be missing, and then reads as NULL. Older exports write 0 where newer ones
write NULL. Ids of a process and a thread are one number: bits 0-23 the thread, 24-47 the process,
above them the machine. Correlation and node ids are a process's own.
Source: Nsight Systems user guide, "SQLite Schema Reference"; schemas 2.x (2020) to 3.2x (2026).
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from layerwise.hw.instrument.spans import (
    ApiCall,
    KernelRecord,
    Marker,
    NodeCreation,
    ProcessRecords,
    Recording,
)
from layerwise.sim.plan.errors import FileFormatError

SQLITE_MAGIC = b"SQLite format 3\0"
THREAD_BITS = 24
PROCESS_MASK = 0xFFFFFF
# Values of NVTX_EVENTS.eventType. Source: "SQLite Schema Reference", table NVTX_EVENTS.
PUSH_POP_RANGE, START_END_RANGE, DOMAIN_CREATE = 59, 60, 75
DEVICE_TABLES = {
    "CUPTI_ACTIVITY_KIND_KERNEL": "",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "memcpy",
    "CUPTI_ACTIVITY_KIND_MEMSET": "memset",
}
# Driver calls share the runtime's table; some versions gave them their own.
API_TABLES = ("CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_DRIVER")
GRAPH_TABLE, NODE_TABLE = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE", "CUDA_GRAPH_NODE_EVENTS"
NVTX_TABLE = "NVTX_EVENTS"

Row = tuple[Any, ...]


def read_nsys(path: Path, domain: str = "layerwise") -> Recording:
    """Everything that an export says about kernels, launches, graph nodes and a domain's ranges.

    The file is opened for reading only. A range that nobody closed lasts to the end of the
    recording. Raises FileFormatError for a file that is no such export.
    """
    try:
        # Reading it as a URI is what keeps sqlite from making the file, or a journal beside it.
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            return _Export(path, connection, domain).recording()
    except sqlite3.Error as error:
        raise FileFormatError(
            f"{path}: cannot be read as an export of Nsight Systems: {error}; "
            "make one with `nsys export --type sqlite REPORT.nsys-rep`"
        ) from error


def process_of(global_id: int) -> int:
    """The process id within a globalTid or globalPid."""
    return global_id >> THREAD_BITS & PROCESS_MASK


class _Export:
    """One open file. Processes are told apart by all but the thread's bits of their ids."""

    def __init__(self, path: Path, connection: sqlite3.Connection, domain: str) -> None:
        self._path, self._connection, self._domain = path, connection, domain
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table','view')")
        self._columns = {name: self._columns_of(name) for (name,) in tables.fetchall()}
        self._strings: dict[int, str] = dict(self._select("StringIds", "id", "value"))
        self._processes = self._all_processes()

    def recording(self) -> Recording:
        kernels, calls, markers = self._kernels(), self._api_calls(), self._markers()
        created, cloned = self._nodes()
        graphs = self._whole_graphs()
        return Recording(
            tool="nsys",
            version=self._version(),
            gpus=self._gpus(),
            processes=tuple(
                ProcessRecords(
                    process_id=process_of(key),
                    kernels=tuple(kernels[key]),
                    api_calls=tuple(calls[key]),
                    markers=tuple(markers[key]),
                    created_nodes=tuple(created[key]),
                    cloned_nodes=cloned[key],
                    num_whole_graphs=graphs[key],
                )
                for key in sorted(self._processes)
            ),
        )

    def _kernels(self) -> dict[int, list[KernelRecord]]:
        found: dict[int, list[KernelRecord]] = defaultdict(list)
        for table, fixed_name in DEVICE_TABLES.items():
            rows = self._select(
                table,
                "start",
                "end",
                "streamId",
                "correlationId",
                optional=("globalPid", "graphNodeId", "deviceId", "shortName", "demangledName"),
            )
            for start, end, stream, correlation, process, node, device, short, full in rows:
                name = fixed_name or self._string(short) or self._string(full) or "a kernel"
                record = KernelRecord(
                    name, start, end, stream, correlation or 0, node or 0, device or 0
                )
                found[self._key(process, table)].append(record)
        return found

    def _api_calls(self) -> dict[int, list[ApiCall]]:
        found: dict[int, list[ApiCall]] = defaultdict(list)
        for table in API_TABLES:
            rows = self._select(table, "start", "end", "correlationId", "globalTid")
            for start, end, correlation, thread in rows:
                call = ApiCall(start, end, _thread_of(thread), correlation or 0)
                found[self._key(thread, table)].append(call)
        return found

    def _markers(self) -> dict[int, list[Marker]]:
        rows = list(
            self._select(
                NVTX_TABLE,
                "start",
                "end",
                "globalTid",
                optional=("eventType", "text", "textId", "domainId"),
            )
        )
        domains = {
            (self._key(thread, NVTX_TABLE), domain_id)
            for _, _, thread, kind, text, text_id, domain_id in rows
            if kind == DOMAIN_CREATE and self._text(text, text_id) == self._domain
        }
        tells_domains = {"eventType", "domainId"} <= self._columns.get(NVTX_TABLE, set())
        last_ns = self._last_ns()
        found: dict[int, list[Marker]] = defaultdict(list)
        for start, end, thread, kind, text, text_id, domain_id in rows:
            key = self._key(thread, NVTX_TABLE)
            is_ours = (key, domain_id) in domains or not tells_domains
            if is_ours and kind in (PUSH_POP_RANGE, START_END_RANGE, None):
                closed_ns = end if end and end >= start else max(last_ns, start)
                marker = Marker(self._text(text, text_id), start, closed_ns, _thread_of(thread))
                found[key].append(marker)
        return found

    def _nodes(self) -> tuple[dict[int, list[NodeCreation]], dict[int, dict[int, int]]]:
        rows = list(
            self._select(
                NODE_TABLE, "start", "graphNodeId", optional=("globalTid", "originalGraphNodeId")
            )
        )
        cloned: dict[int, dict[int, int]] = defaultdict(dict)
        created: dict[int, list[NodeCreation]] = defaultdict(list)
        for _, node, thread, original in rows:
            if original and original != node:
                cloned[self._key(thread, NODE_TABLE)][node] = original
        for start, node, thread, _ in rows:
            key = self._key(thread, NODE_TABLE)
            # Instantiating reports a clone twice: as created, and as a clone.
            if node not in cloned[key]:
                created[key].append(NodeCreation(node, start, _thread_of(thread)))
        return created, cloned

    def _whole_graphs(self) -> dict[int, int]:
        counts: dict[int, int] = defaultdict(int)
        for _, process in self._select(GRAPH_TABLE, "start", optional=("globalPid",)):
            counts[self._key(process, GRAPH_TABLE)] += 1
        return counts

    def _version(self) -> str:
        found = dict(self._select("META_DATA_EXPORT", "name", "value"))
        version = found.get("EXPORT_PRODUCT_VERSION", "of unknown version")
        schema = found.get("EXPORT_SCHEMA_VERSION")
        return f"{version}, schema {schema}" if schema else version

    def _gpus(self) -> tuple[str, ...]:
        names = self._select("TARGET_INFO_GPU", optional=("name",))
        return tuple(dict.fromkeys(name for (name,) in names if name))

    def _all_processes(self) -> set[int]:
        tables = [(table, "globalPid") for table in (*DEVICE_TABLES, GRAPH_TABLE)]
        tables += [(table, "globalTid") for table in (*API_TABLES, NVTX_TABLE, NODE_TABLE)]
        ids = {i for table, column in tables for (i,) in self._select(table, optional=(column,))}
        return {number >> THREAD_BITS << THREAD_BITS for number in ids if number is not None} or {0}

    def _key(self, global_id: int | None, table: str) -> int:
        """Which process a row is of. Older kernel tables do not say: then there must be one."""
        if global_id is not None:
            return global_id >> THREAD_BITS << THREAD_BITS
        if len(self._processes) > 1:
            raise FileFormatError(
                f"{self._path}: rows of {table} name no process, and there are "
                f"{len(self._processes)} in the file; profile one process per file, or export "
                "with a newer nsys"
            )
        return next(iter(self._processes))

    def _last_ns(self) -> int:
        tables = (*DEVICE_TABLES, *API_TABLES, NVTX_TABLE)
        moments = (row for table in tables for row in self._select(table, "start", "end"))
        return max((moment for row in moments for moment in row if moment is not None), default=0)

    def _text(self, text: str | None, text_id: int | None) -> str:
        """A registered string has an id and no text of its own."""
        return text or self._string(text_id)

    def _string(self, string_id: int | None) -> str:
        return "" if string_id is None else self._strings.get(string_id, "")

    def _columns_of(self, table: str) -> set[str]:
        rows = self._connection.execute(f'PRAGMA table_info("{table}")')
        return {name for _, name, *_ in rows.fetchall()}

    def _select(self, table: str, *required: str, optional: tuple[str, ...] = ()) -> Iterator[Row]:
        """Rows of a table that may be missing; optional columns may be missing as well."""
        columns = self._columns.get(table)
        if columns is None:
            return iter(())
        missing = [column for column in required if column not in columns]
        if missing:
            raise FileFormatError(
                f"{self._path}: table {table} lacks {missing}: a schema that this reader does not "
                "know; export with nsys 2020.3 or newer"
            )
        wanted = [f'"{c}"' if c in columns else "NULL" for c in (*required, *optional)]
        return self._connection.execute(f'SELECT {", ".join(wanted)} FROM "{table}"')  # noqa: S608


def _thread_of(global_id: int | None) -> int:
    return global_id or 0

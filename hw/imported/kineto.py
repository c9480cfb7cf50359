"""Records from a trace of torch.profiler: Chrome's JSON, as it is or gzipped.

One file is of one process. Times are microseconds with three decimals; an absolute one has more
digits than a float, so they are read as decimals. Ranges are those of `record_function`, which
know no domains: whoever joins them picks the names that are ops. Kineto says of a graph's kernels
which node they are, and nowhere which range the node was captured in.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

from layerwise.hw.instrument.spans import ApiCall, KernelRecord, Marker, ProcessRecords, Recording
from layerwise.sim.plan.errors import FileFormatError

GZIP_MAGIC = b"\x1f\x8b"
# Names as the other readers give them; a kernel has its own.
DEVICE_CATEGORIES = {"kernel": "", "gpu_memcpy": "memcpy", "gpu_memset": "memset"}
API_CATEGORIES = ("cuda_runtime", "cuda_driver")
RANGE_CATEGORY = "user_annotation"

Event = dict[str, Any]


def read_kineto(path: Path) -> Recording:
    """Everything that a trace says about kernels, launches and annotated ranges.

    Raises FileFormatError for a file that is no such trace, or holds several processes.
    """
    data = _load(path)
    events = [e for e in _events(path, data) if e.get("ph") == "X"]
    try:
        kernels = tuple(_kernels(events))
        calls = tuple(_calls(events))
        markers = tuple(_markers(events))
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{path}: an event of the trace lacks or misspells {error}; export it again with "
            "`profiler.export_chrome_trace`"
        ) from error
    info = data.get("distributedInfo")
    process = ProcessRecords(
        process_id=_process_id(path, events),
        kernels=kernels,
        api_calls=calls,
        markers=markers,
        rank=info.get("rank") if isinstance(info, dict) else None,
    )
    gpus = dict.fromkeys(str(gpu.get("name", "")) for gpu in data.get("deviceProperties") or ())
    return Recording(tool="kineto", version=_version(data), gpus=tuple(gpus), processes=(process,))


def _load(path: Path) -> dict[str, Any]:
    try:
        packed = path.read_bytes()
        text = gzip.decompress(packed) if packed.startswith(GZIP_MAGIC) else packed
        data = json.loads(text, parse_float=Decimal)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise FileFormatError(
            f"{path}: cannot be read as a trace of torch.profiler: {error}; export it again with "
            "`profiler.export_chrome_trace`"
        ) from error
    return data if isinstance(data, dict) else {"traceEvents": data}


def _events(path: Path, data: dict[str, Any]) -> list[Event]:
    events = data.get("traceEvents")
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise FileFormatError(
            f"{path}: has no list of traceEvents; is this a trace of torch.profiler?"
        )
    return events


def _kernels(events: Iterable[Event]) -> Iterable[KernelRecord]:
    for event in events:
        fixed_name = DEVICE_CATEGORIES.get(event.get("cat", ""))
        if fixed_name is not None:
            said = event["args"]
            yield KernelRecord(
                fixed_name or event["name"],
                *_span_ns(event),
                int(said["stream"]),
                int(said["correlation"]),
                int(said.get("graph node id", 0)),
                int(said["device"]),
            )


def _calls(events: Iterable[Event]) -> Iterable[ApiCall]:
    for event in events:
        # A call that launches nothing may carry no correlation.
        if event.get("cat") in API_CATEGORIES and "correlation" in event.get("args", {}):
            yield ApiCall(*_span_ns(event), int(event["tid"]), int(event["args"]["correlation"]))


def _markers(events: Iterable[Event]) -> Iterable[Marker]:
    for event in events:
        if event.get("cat") == RANGE_CATEGORY:
            yield Marker(event["name"], *_span_ns(event), int(event["tid"]))


def _span_ns(event: Event) -> tuple[int, int]:
    start_us, duration_us = Decimal(event["ts"]), Decimal(event["dur"])
    return round(start_us * 1000), round((start_us + duration_us) * 1000)


def _process_id(path: Path, events: Iterable[Event]) -> int:
    """The host's. A kernel's `pid` is its device."""
    on_host = (*API_CATEGORIES, RANGE_CATEGORY)
    found = sorted({int(event["pid"]) for event in events if event.get("cat") in on_host})
    if len(found) > 1:
        raise FileFormatError(
            f"{path}: holds processes {found}, whose correlation ids clash; import the file of "
            "each process by itself"
        )
    return found[0] if found else 0


def _version(data: dict[str, Any]) -> str:
    keys = ("schemaVersion", "cuda_runtime_version", "cuda_driver_version", "cupti_version")
    said = [f"{key} {data[key]}" for key in keys if key in data]
    return ", ".join(said) or "of unknown version"

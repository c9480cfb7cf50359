"""Kernel records, API calls and NVTX ranges from CUPTI; `spans` joins them to operations.

CUPTI delivers NVTX ranges only for an explicit domain, and only in this order: import torch (whose
libcupti must be the one loaded), subscribe, then the first nvtx call of the process. Under a graph
replay no NVTX range fires, so nodes are attributed to operations while the graph is captured.
Nothing of CUPTI is imported before a recorder opens.
"""

from __future__ import annotations

import os
import re
import site
import sys
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from layerwise.hw.instrument.spans import ApiCall, CapturedNode, KernelRecord, Marker

BUFFER_BYTES = 32 * 2**20
MARKER_START_FLAG = 1 << 1
MARKER_END_FLAG = 1 << 2


class KernelRecorder:
    """Collects kernels, API calls and NVTX ranges of one domain while it is started.

    As a context manager it subscribes on entry, stays started, and gives CUPTI's one subscription
    back on exit; in between, `stop` and `start` may alternate. Open it before the first nvtx call
    of the process and before the capture of the graphs whose replays it is to tell apart.
    Without `clone_events` the nodes of a replay are matched by order of creation alone.
    """

    def __init__(self, domain: str = "layerwise", *, clone_events: bool = True) -> None:
        self.domain = domain
        self.clone_events = clone_events
        self.kernels: list[KernelRecord] = []
        self.api_calls: list[ApiCall] = []
        self.markers: list[Marker] = []
        self.cloned_nodes: dict[int, int] = {}
        self.errors: list[str] = []
        self._open_markers: dict[int, tuple[str, int, int]] = {}
        self._subscriber: int | None = None
        self._cupti: Any = None

    def __enter__(self) -> Self:
        self.open()
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self.close()

    def open(self) -> None:
        """Load CUPTI beside torch's, announce it to NVTX, and subscribe."""
        import torch  # noqa: F401  (its libcupti has to be loaded before cupti-python's)

        os.environ["NVTX_INJECTION64_PATH"] = str(find_libcupti())
        cupti = self._cupti = import_module("cupti.cupti")
        parameters = cupti.SubscriberParams()
        parameters.struct_size = cupti.SUBSCRIBER_PARAMS_SIZE
        parameters.subscriber_name = "layerwise"
        self._subscriber = cupti.subscribe_v2(self._on_callback, None, parameters.ptr)
        self._enable_clone_events(1)
        cupti.activity_register_callbacks(_request_buffer, self._on_records)

    def start(self) -> None:
        """Begin to record."""
        for kind in self._kinds():
            self._cupti.activity_enable(kind)

    def stop(self) -> None:
        """Wait for the device, deliver what is pending, and cease to record."""
        self.flush()
        for kind in self._kinds():
            self._cupti.activity_disable(kind)

    def flush(self) -> None:
        """Wait for the device and deliver what is pending."""
        import torch

        torch.cuda.synchronize()
        self._cupti.activity_flush_all(1)

    def clear(self) -> None:
        """Forget the records; node clones stay, since their graphs may be replayed again."""
        self.kernels.clear()
        self.api_calls.clear()
        self.markers.clear()

    def close(self) -> None:
        """Give the subscription back."""
        self._enable_clone_events(0)
        self._cupti.unsubscribe(self._subscriber)
        self._subscriber = None

    def _kinds(self) -> list[int]:
        kind = self._cupti.ActivityKind
        return [
            kind.MARKER,
            kind.RUNTIME,
            kind.DRIVER,
            kind.MEMCPY,
            kind.MEMSET,
            kind.CONCURRENT_KERNEL,
        ]

    def _enable_clone_events(self, enable: int) -> None:
        if not self.clone_events:
            return
        cupti = self._cupti
        cloned = cupti.CallbackIdResource.GRAPHNODE_CLONED
        cupti.enable_callback(enable, self._subscriber, cupti.CallbackDomain.RESOURCE, cloned)

    def _on_callback(self, userdata: object, domain: int, callback_id: int, data: Any) -> None:
        try:
            self._note_clone(data)
        except Exception as error:  # It would unwind through CUPTI's C frames.
            self.errors.append(f"callback {domain}/{callback_id}: {error!r}")

    def _note_clone(self, data: Any) -> None:
        cupti = self._cupti
        # Some versions hand resource callbacks out as CallbackData over the same bytes.
        if not hasattr(data, "resource_descriptor"):
            data = cupti.ResourceData.from_ptr(data if isinstance(data, int) else data.ptr)
        graph = cupti.GraphData.from_ptr(data.resource_descriptor)
        clone, original = (cupti.get_graph_node_id(n) for n in (graph.node, graph.original_node))
        self.cloned_nodes[clone] = original

    def _on_records(self, activities: list[Any]) -> None:
        for activity in activities:
            try:
                self._take(activity)
            except Exception as error:  # It would unwind through CUPTI's C frames.
                self.errors.append(f"record of kind {activity.kind}: {error!r}")

    def _take(self, activity: Any) -> None:
        kind = self._cupti.ActivityKind
        if activity.kind in (kind.RUNTIME, kind.DRIVER):
            call = (activity.start, activity.end, activity.thread_id, activity.correlation_id)
            self.api_calls.append(ApiCall(*call))
        elif activity.kind == kind.MARKER:
            self._take_marker(activity)
        elif activity.kind in (kind.CONCURRENT_KERNEL, kind.MEMCPY, kind.MEMSET):
            names = {int(kind.MEMCPY): "memcpy", int(kind.MEMSET): "memset"}
            self.kernels.append(
                KernelRecord(
                    names.get(int(activity.kind)) or activity.name,
                    activity.start,
                    activity.end,
                    activity.stream_id,
                    activity.correlation_id,
                    activity.graph_node_id,
                )
            )

    def _take_marker(self, activity: Any) -> None:
        if activity.flags_ & MARKER_START_FLAG and activity.domain == self.domain:
            opened = (activity.name, activity.timestamp, activity.object_id.pt.thread_id)
            self._open_markers[activity.id] = opened
        elif activity.flags_ & MARKER_END_FLAG and activity.id in self._open_markers:
            name, start_ns, thread_id = self._open_markers.pop(activity.id)
            self.markers.append(Marker(name, start_ns, activity.timestamp, thread_id))


class GraphNodeMap:
    """Attributes graph nodes to operations: call `mark(op_name)` after each one in a capture."""

    def __init__(self) -> None:
        self.nodes: list[CapturedNode] = []
        self._seen: set[int] = set()

    def mark(self, op_name: str) -> None:
        """Give `op_name` all nodes that any stream has added to the graph since the last mark."""
        import torch

        runtime = import_module("cuda.bindings.runtime")
        graph = _capturing_graph(runtime, torch.cuda.current_stream().cuda_stream)
        _, _, count = _checked(runtime.cudaGraphGetNodes(graph))
        nodes = _checked(runtime.cudaGraphGetNodes(graph, count))[1]
        kinds = runtime.cudaGraphNodeType
        recorded = {
            kinds.cudaGraphNodeTypeKernel,
            kinds.cudaGraphNodeTypeMemcpy,
            kinds.cudaGraphNodeTypeMemset,
        }
        for node in nodes:
            if int(node) not in self._seen:
                self._seen.add(int(node))
                kind = _checked(runtime.cudaGraphNodeGetType(node))[1]
                self.nodes.append(CapturedNode(op_name, _node_id(int(node)), kind in recorded))


def find_libcupti() -> Path:
    """The libcupti that this process uses: the one torch has loaded, else one of the wheels'.

    Raises: FileNotFoundError, naming where it looked.
    """
    loaded = re.search(r"(/\S*libcupti\.so\S*)", Path("/proc/self/maps").read_text())
    if loaded:
        return Path(loaded.group(1))
    roots = [Path(path) for path in {*sys.path, *site.getsitepackages()}]
    for folder in ("nvidia/cu13/lib", "nvidia/cuda_cupti/lib"):
        for root in roots:
            for path in sorted((root / folder).glob("libcupti.so*")):
                return path
    raise FileNotFoundError(f"no nvidia/*/lib/libcupti.so* under {sorted(map(str, roots))}")


def _request_buffer() -> tuple[int, int]:
    return BUFFER_BYTES, 0


def _capturing_graph(runtime: Any, stream: int) -> Any:
    # The tuple has grown over the versions of cuda-bindings; the graph is known by its type.
    info = _checked(runtime.cudaStreamGetCaptureInfo(runtime.cudaStream_t(stream)))
    graphs = [item for item in info if isinstance(item, runtime.cudaGraph_t)]
    if not graphs or int(graphs[0]) == 0:
        raise RuntimeError("the current stream is not capturing; mark() belongs in a graph capture")
    return graphs[0]


def _checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    if int(result[0]) != 0:
        raise RuntimeError(f"CUDA runtime call failed: {result[0]}")
    return result


def _node_id(node: int) -> int | None:
    cupti = import_module("cupti.cupti")
    # Without an open recorder CUPTI may not know the node: the order of creation still does.
    try:
        return int(cupti.get_graph_node_id(node))
    except cupti.cuptiError:
        return None

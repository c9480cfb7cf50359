"""Which op a kernel belongs to: joins of kernel records with NVTX ranges or graph nodes.

Pure functions over records, whoever delivered them. Eager kernels join by the range in which they
were launched; under a graph replay no range fires, and kernels join by the node that was captured.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class KernelRecord:
    """One kernel, copy or set on the device; graph_node_id is 0 outside a graph replay."""

    name: str
    start_ns: int
    end_ns: int
    stream_id: int
    correlation_id: int
    graph_node_id: int


@dataclass(frozen=True)
class ApiCall:
    """One runtime or driver call on the host; its correlation id is that of what it launched."""

    start_ns: int
    end_ns: int
    thread_id: int
    correlation_id: int


@dataclass(frozen=True)
class Marker:
    """One closed NVTX range on the host."""

    name: str
    start_ns: int
    end_ns: int
    thread_id: int


@dataclass(frozen=True)
class CapturedNode:
    """One node of a captured graph; node_id is None where CUPTI could not name it."""

    op_name: str
    node_id: int | None
    is_recorded: bool


class OpSpan(NamedTuple):
    """From an operation's first kernel's start to its last kernel's end, kernels in start order."""

    start_ns: int
    end_ns: int
    num_kernels: int
    kernel_names: tuple[str, ...]


class GraphNodeMismatchError(ValueError):
    """The nodes of a replay cannot be told apart by identity, by cloning or by order."""


def spans_by_op_eager(
    kernels: Iterable[KernelRecord], api_calls: Iterable[ApiCall], markers: Iterable[Marker]
) -> list[dict[str, OpSpan]]:
    """Spans of each eager step, in order; a range name that comes again begins the next step.

    A kernel belongs to the innermost range that was open on the launching thread when its launch
    began. Kernels outside all ranges are left out: see `count_unmatched`.
    """
    ordered = sorted(markers, key=lambda marker: marker.start_ns)
    steps = _number_steps([marker.name for marker in ordered])
    range_of = _enclosing_markers(api_calls, ordered)
    groups: dict[tuple[int, str], list[KernelRecord]] = defaultdict(list)
    for kernel in kernels:
        index = range_of.get(kernel.correlation_id)
        if index is not None:
            groups[steps[index], ordered[index].name].append(kernel)
    return _collect_launches(groups)


def spans_by_op_graph(
    kernels: Iterable[KernelRecord], node_to_op: Mapping[int, str]
) -> list[dict[str, OpSpan]]:
    """Spans of each graph replay, in order; `node_to_op` comes from `match_graph_nodes`."""
    ordered = sorted(
        (kernel for kernel in kernels if kernel.graph_node_id in node_to_op),
        key=lambda kernel: kernel.start_ns,
    )
    groups: dict[tuple[int, str], list[KernelRecord]] = defaultdict(list)
    for replay, kernel in zip(_number_replays(ordered), ordered, strict=True):
        groups[replay, node_to_op[kernel.graph_node_id]].append(kernel)
    return _collect_launches(groups)


def count_unmatched(
    kernels: Sequence[KernelRecord], launches: Iterable[Mapping[str, OpSpan]]
) -> int:
    """How many of the kernels are in no span of the launches joined from them."""
    matched = sum(span.num_kernels for launch in launches for span in launch.values())
    return len(kernels) - matched


def match_graph_nodes(
    captured: Sequence[CapturedNode], observed: Iterable[int], cloned: Mapping[int, int]
) -> dict[int, str]:
    """Map each node id seen in replays of one graph to the operation that added the node.

    captured: in order of creation; observed: the graph_node_ids of the kernel records; cloned:
    a clone's node id -> the original's (`KernelRecorder.cloned_nodes`). Instantiating a graph
    clones its nodes under new ids, so identity alone rarely holds; without clone events the ids
    of a graph's recorded nodes are matched by order of creation.

    Raises: GraphNodeMismatchError, if neither way accounts for all observed nodes.
    """
    ids = sorted(set(observed))
    op_of = {node.node_id: node.op_name for node in captured if node.node_id is not None}
    originals = [_find_original(node_id, op_of, cloned) for node_id in ids]
    if all(original in op_of for original in originals):
        return {node_id: op_of[original] for node_id, original in zip(ids, originals, strict=True)}
    recorded = [node.op_name for node in captured if node.is_recorded]
    if len(recorded) != len(ids):
        raise GraphNodeMismatchError(
            f"a replay shows {len(ids)} nodes where {len(recorded)} recorded ones were captured; "
            "start the recorder before the capture and pass the kernels of one graph only"
        )
    return dict(zip(ids, recorded, strict=True))


def _find_original(node_id: int, known: Mapping[int, str], cloned: Mapping[int, int]) -> int:
    while node_id not in known and node_id in cloned:
        node_id = cloned[node_id]
    return node_id


def _number_steps(names: Sequence[str]) -> list[int]:
    step, seen, steps = 0, set[str](), list[int]()
    for name in names:
        if name in seen:
            step, seen = step + 1, set()
        seen.add(name)
        steps.append(step)
    return steps


def _number_replays(ordered: Sequence[KernelRecord]) -> list[int]:
    # A graph launch gives all its kernels its own correlation id. Where that does not hold (an id
    # per kernel, or one id over several replays), the n-th time of a node is the n-th replay.
    per_launch = Counter((kernel.correlation_id, kernel.graph_node_id) for kernel in ordered)
    launches = {kernel.correlation_id for kernel in ordered}
    nodes = {kernel.graph_node_id for kernel in ordered}
    shared = len(nodes) == 1 or len(launches) < len(ordered)
    if shared and max(per_launch.values(), default=1) == 1:
        unique = dict.fromkeys(kernel.correlation_id for kernel in ordered)
        number = {launch: index for index, launch in enumerate(unique)}
        return [number[kernel.correlation_id] for kernel in ordered]
    times: Counter[int] = Counter()
    replays = []
    for kernel in ordered:
        replays.append(times[kernel.graph_node_id])
        times[kernel.graph_node_id] += 1
    return replays


def _collect_launches(
    groups: Mapping[tuple[int, str], list[KernelRecord]],
) -> list[dict[str, OpSpan]]:
    launches: dict[int, dict[str, OpSpan]] = defaultdict(dict)
    for (launch, op_name), members in groups.items():
        launches[launch][op_name] = _span(members)
    return [launches[launch] for launch in sorted(launches)]


def _span(members: Sequence[KernelRecord]) -> OpSpan:
    ordered = sorted(members, key=lambda kernel: kernel.start_ns)
    names = tuple(kernel.name for kernel in ordered)
    return OpSpan(ordered[0].start_ns, max(k.end_ns for k in ordered), len(ordered), names)


def _enclosing_markers(calls: Iterable[ApiCall], markers: Sequence[Marker]) -> dict[int, int]:
    """Correlation id -> index of the innermost marker open when the call began."""
    calls = sorted(calls, key=lambda call: call.start_ns)
    # Some drivers number threads differently in markers and calls: then one thread is assumed.
    comparable = bool({c.thread_id for c in calls} & {m.thread_id for m in markers})
    found: dict[int, int] = {}
    open_ranges: dict[int, list[int]] = defaultdict(list)
    upcoming = 0
    for call in calls:
        while upcoming < len(markers) and markers[upcoming].start_ns <= call.start_ns:
            thread = markers[upcoming].thread_id if comparable else 0
            open_ranges[thread].append(upcoming)
            upcoming += 1
        stack = open_ranges[call.thread_id if comparable else 0]
        while stack and markers[stack[-1]].end_ns < call.start_ns:
            stack.pop()
        if stack:
            # A runtime call comes before the driver call within it; both carry the launch's id.
            found.setdefault(call.correlation_id, stack[-1])
    return found

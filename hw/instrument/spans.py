"""Which op a kernel belongs to: joins of kernel records with NVTX ranges or graph nodes.

Pure functions over records, whoever delivered them: CUPTI, Nsight Systems or torch.profiler. Eager
kernels join by the range in which they were launched; under a graph replay no range fires, and
kernels join by the node that was captured. All records of one join are of one process: correlation
and node ids say nothing outside it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
    device_id: int = 0


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


@dataclass(frozen=True)
class NodeCreation:
    """A node was added to a graph on the host, where the enclosing range says for which op."""

    node_id: int
    start_ns: int
    thread_id: int


@dataclass(frozen=True, kw_only=True)
class ProcessRecords:
    """What a profiler saw of one process.

    `cloned_nodes`: a clone's node id -> the original's. `num_whole_graphs`: graph launches that
    were recorded as one thing, kernels unseen. `rank`: as the file says it, if it does.
    """

    process_id: int
    kernels: tuple[KernelRecord, ...] = ()
    api_calls: tuple[ApiCall, ...] = ()
    markers: tuple[Marker, ...] = ()
    created_nodes: tuple[NodeCreation, ...] = ()
    cloned_nodes: Mapping[int, int] = field(default_factory=dict)
    num_whole_graphs: int = 0
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A profiler's file: `tool` with its `version`, the GPUs it names, and its processes."""

    tool: str
    version: str
    gpus: tuple[str, ...]
    processes: tuple[ProcessRecords, ...]


class OpSpan(NamedTuple):
    """From an operation's first kernel's start to its last kernel's end, kernels in start order."""

    start_ns: int
    end_ns: int
    num_kernels: int
    kernel_names: tuple[str, ...]


class JoinedStep(NamedTuple):
    """One step of one process: the ranges it went through, and the spans of those with kernels.

    `strays` are kernels of no range that were launched in its course (in a replay: that ran in it).
    """

    names: frozenset[str]
    spans: dict[str, OpSpan]
    strays: tuple[KernelRecord, ...]


class GraphNodeMismatchError(ValueError):
    """The nodes of a replay cannot be told apart by identity, by cloning or by order."""


def spans_by_op_eager(
    kernels: Iterable[KernelRecord], api_calls: Iterable[ApiCall], markers: Iterable[Marker]
) -> list[dict[str, OpSpan]]:
    """Spans of each eager step, in order; a range name that comes again begins the next step.

    A kernel belongs to the innermost range that was open on the launching thread when its launch
    began. Kernels outside all ranges are left out: see `count_unmatched`.
    """
    return [step.spans for step in join_eager(kernels, api_calls, markers) if step.spans]


def join_eager(
    kernels: Iterable[KernelRecord],
    api_calls: Iterable[ApiCall],
    markers: Iterable[Marker],
    first: str = "",
) -> list[JoinedStep]:
    """Every eager step, in order, with what ran outside its ranges.

    A step begins where a range name comes again, or at `first`: so a recording that starts within
    a step shows a part of it, and then whole ones.
    """
    ordered = sorted(markers, key=lambda marker: marker.start_ns)
    calls = sorted(api_calls, key=lambda call: call.start_ns)
    steps = _number_steps([marker.name for marker in ordered], first)
    range_of = _enclosing_markers(
        ((call.start_ns, call.thread_id, call.correlation_id) for call in calls), ordered
    )
    groups: dict[tuple[int, str], list[KernelRecord]] = defaultdict(list)
    outside: list[KernelRecord] = []
    for kernel in kernels:
        index = range_of.get(kernel.correlation_id)
        if index is None:
            outside.append(kernel)
        else:
            groups[steps[index], ordered[index].name].append(kernel)
    spans = _collect_by_launch(groups)
    windows = _host_windows(ordered, steps)
    launched_ns = {call.correlation_id: call.start_ns for call in reversed(calls)}
    strays = _within(
        [(launched_ns.get(kernel.correlation_id, kernel.start_ns), kernel) for kernel in outside],
        windows,
    )
    names: dict[int, set[str]] = defaultdict(set)
    for step, marker in zip(steps, ordered, strict=True):
        names[step].add(marker.name)
    return [
        JoinedStep(frozenset(names[step]), spans.get(step, {}), strays[step])
        for step in range(len(windows))
    ]


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
    spans = _collect_by_launch(groups)
    return [spans[launch] for launch in sorted(spans)]


def join_graph(kernels: Sequence[KernelRecord], node_to_op: Mapping[int, str]) -> list[JoinedStep]:
    """Every graph replay, in order, with what ran on the device in its course and is no node's."""
    replays = spans_by_op_graph(kernels, node_to_op)
    windows = [
        (min(span.start_ns for span in replay.values()), max(s.end_ns for s in replay.values()))
        for replay in replays
    ]
    outside = [kernel for kernel in kernels if kernel.graph_node_id not in node_to_op]
    strays = _within([(kernel.start_ns, kernel) for kernel in outside], windows)
    names = frozenset(node_to_op.values())
    return [JoinedStep(names, replay, stray) for replay, stray in zip(replays, strays, strict=True)]


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


def name_nodes(
    process: ProcessRecords, markers: Iterable[Marker], first: str = ""
) -> dict[int, str]:
    """Map the node ids seen in replays to `step|range`, by the ranges open at their creation.

    Steps are those of the capture, told apart as in `join_eager`. Nodes created outside all ranges
    are left out. Raises GraphNodeMismatchError, if no seen node leads to a created one.
    """
    ordered = sorted(markers, key=lambda marker: marker.start_ns)
    steps = _number_steps([marker.name for marker in ordered], first)
    created = sorted(process.created_nodes, key=lambda node: node.start_ns)
    range_of = _enclosing_markers(
        ((node.start_ns, node.thread_id, node.node_id) for node in created), ordered
    )
    captured = [
        CapturedNode(
            f"{steps[range_of[node.node_id]]}|{ordered[range_of[node.node_id]].name}",
            node.node_id,
            is_recorded=True,
        )
        for node in created
        if node.node_id in range_of
    ]
    known = {node.node_id: "" for node in created}
    seen = {kernel.graph_node_id for kernel in process.kernels if kernel.graph_node_id}
    originals = {node_id: _find_original(node_id, known, process.cloned_nodes) for node_id in seen}
    inside = {node_id for node_id, original in originals.items() if original in range_of}
    # Nodes of other graphs are no part of this one; without any identity, order has to do.
    observed = inside or {node_id for node_id in seen if originals[node_id] not in known}
    return match_graph_nodes(captured, observed, process.cloned_nodes) if observed else {}


def _find_original(node_id: int, known: Mapping[int, str], cloned: Mapping[int, int]) -> int:
    passed = {node_id}
    while node_id not in known and cloned.get(node_id, node_id) not in passed:
        node_id = cloned[node_id]
        passed.add(node_id)
    return node_id


def _number_steps(names: Sequence[str], first: str = "") -> list[int]:
    step, seen, steps = 0, set[str](), list[int]()
    for name in names:
        if name in seen or (name == first and seen):
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


def _collect_by_launch(
    groups: Mapping[tuple[int, str], list[KernelRecord]],
) -> dict[int, dict[str, OpSpan]]:
    launches: dict[int, dict[str, OpSpan]] = defaultdict(dict)
    for (launch, op_name), members in groups.items():
        launches[launch][op_name] = _span(members)
    return launches


def _host_windows(ordered: Sequence[Marker], steps: Sequence[int]) -> list[tuple[int, int]]:
    """From each step's first range's start to its last range's end."""
    windows: dict[int, tuple[int, int]] = {}
    for marker, step in zip(ordered, steps, strict=True):
        start_ns, end_ns = windows.get(step, (marker.start_ns, marker.end_ns))
        windows[step] = (start_ns, max(end_ns, marker.end_ns))
    return [windows[step] for step in sorted(windows)]


def _within(
    timed: Iterable[tuple[int, KernelRecord]], windows: Sequence[tuple[int, int]]
) -> list[tuple[KernelRecord, ...]]:
    """For each window, in order of their starts, the kernels whose moment falls into it."""
    found: list[list[KernelRecord]] = [[] for _ in windows]
    starts = [start_ns for start_ns, _ in windows]
    for moment_ns, kernel in timed:
        index = bisect_right(starts, moment_ns) - 1
        if index >= 0 and moment_ns <= windows[index][1]:
            found[index].append(kernel)
    return [tuple(kernels) for kernels in found]


def _span(members: Sequence[KernelRecord]) -> OpSpan:
    ordered = sorted(members, key=lambda kernel: kernel.start_ns)
    names = tuple(kernel.name for kernel in ordered)
    return OpSpan(ordered[0].start_ns, max(k.end_ns for k in ordered), len(ordered), names)


def _enclosing_markers(
    moments: Iterable[tuple[int, int, int]], markers: Sequence[Marker]
) -> dict[int, int]:
    """Index of the innermost marker open at each (start_ns, thread_id, key), by its key."""
    moments = sorted(moments)
    # Some drivers number threads differently in markers and calls: then one thread is assumed.
    comparable = bool({thread for _, thread, _ in moments} & {m.thread_id for m in markers})
    found: dict[int, int] = {}
    open_ranges: dict[int, list[int]] = defaultdict(list)
    upcoming = 0
    for start_ns, thread_id, key in moments:
        while upcoming < len(markers) and markers[upcoming].start_ns <= start_ns:
            thread = markers[upcoming].thread_id if comparable else 0
            open_ranges[thread].append(upcoming)
            upcoming += 1
        stack = open_ranges[thread_id if comparable else 0]
        while stack and markers[stack[-1]].end_ns < start_ns:
            stack.pop()
        if stack:
            # A runtime call comes before the driver call within it; both carry the launch's id.
            found.setdefault(key, stack[-1])
    return found

"""Time messages and collectives by payload on every rank; the first one writes the file.

Pairs of ranks are classed by how they are joined; one pair of each class is timed at every payload,
all pairs at a few. Groups are the first 2, 4, 8, ... ranks and all of them. What was measured is on
disk after each series.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.host.affinity import communication_settings
from layerwise.hw.host.environment import environment_of, sample_clocks
from layerwise.hw.links.ops import PEER_MEMORY_OPS, Issue, Links, check_ops, communication_variables
from layerwise.hw.links.series import (
    Mode,
    Pair,
    Request,
    Series,
    ops_per_replay,
    pairs_of,
    series_of,
    sizes_of,
)
from layerwise.hw.ranks.agreement import agree
from layerwise.hw.ranks.local import run_on_ranks
from layerwise.hw.ranks.session import Session, under_torchrun
from layerwise.sim.trace import write_atomically

FORMAT, VERSION = "layerwise-links", 1
WARM_UPS = 3
REPLAYS = 9
# So much longer than its budget a call may take: a series that has begun is ended.
OVERTIME_S = 180.0


def time_links(request: Request, num_ranks: int = 0) -> int | None:
    """Time links between ranks started here, or as one of torchrun's ranks; the number of timings.

    `num_ranks` 0 takes every GPU, or two ranks on the CPU; torchrun has started its own number, and
    its ranks but the first return None. Raises NotAvailableError, RankFailedError.
    """
    if not under_torchrun():
        num_ranks = num_ranks or (torch.cuda.device_count() if request.device == "cuda" else 2)
        if num_ranks < 2:
            raise NotAvailableError(f"{num_ranks} ranks have no link between them; use two or more")
        check_ops(request.ops, request.modes, torch.device(request.device))
    return run_on_ranks(
        measure_links,
        request,
        num_ranks=num_ranks,
        device_type=request.device,
        timeout_s=request.budget_s + OVERTIME_S,
    )


def measure_links(session: Session, request: Request) -> int | None:
    """Time everything on this rank; the first rank writes. The number of timings, only there.

    An early rank waits for the others, so the shortest time over a group's ranks is the transfer.
    With `request.goes_on`, what the file holds of the same ranks is kept and not timed again.
    """
    check_ops(request.ops, request.modes, session.device)
    before = sample_clocks(session.device, "before")
    deadline = time.monotonic() + request.budget_s
    pairs = agree(session, "pairs", (socket.gethostname(), _local_index(session)), pairs_of)
    wanted = series_of(request, session.world_size, pairs)
    report = _Report(request, session, pairs, len(wanted), before)
    links = Links(session.rank, session.device, max(request.every_size))
    done = agree(session, "done", None, lambda _: report.done_before(wanted))
    for series in wanted:
        if series in done:
            continue
        if not agree(session, "go on", time.monotonic() < deadline, lambda said: said[0]):
            break
        report.announce(series)
        found = _run_series(session, links, request, series)
        report.add(series, session.gather("links", found))
    links.close()
    return report.finish(sample_clocks(session.device, "after"))


def _run_series(
    session: Session, links: Links, request: Request, series: Series
) -> dict[int, list[float]] | str | None:
    """Payload -> seconds of an op in each replay; why there are none; None outside the group."""
    session.progress.enter(f"timing {series.op} of ranks {list(series.ranks)}, {series.mode}")
    try:
        group = links.connect(series.op, series.ranks)
    except NotAvailableError as error:
        return str(error)
    if group is None:
        return None
    found: dict[int, list[float]] = {}
    for size in sizes_of(series, request):
        session.progress.at = f"{size} bytes"
        links.refresh(size)
        issue = links.issue(series.op, series.ranks, size)
        found[size] = _replay_times(session, group, issue, series.mode, ops_per_replay(size))
    if series.op in PEER_MEMORY_OPS:
        links.disconnect(series.ranks)
    return found


def _replay_times(
    session: Session, group: ProcessGroup, issue: Issue, mode: Mode, count: int
) -> list[float]:
    """Seconds of one op, in each replay of `count` of them."""
    issue(WARM_UPS)
    _align(session, group)
    if session.device.type != "cuda":
        return [_host_seconds(session, group, issue, count) for _ in range(REPLAYS)]
    torch.cuda.synchronize(session.device)
    if mode == "eager":
        return [
            _event_seconds(session, group, partial(issue, count), count) for _ in range(REPLAYS)
        ]
    graph = _captured(session.device, partial(issue, count))
    graph.replay()
    times = [_event_seconds(session, group, graph.replay, count) for _ in range(REPLAYS)]
    # A communicator cannot be destroyed while a graph holds its kernels.
    graph.reset()
    return times


def _captured(device: torch.device, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
    # Not torch.cuda.graph: it collects garbage before each capture, and there are hundreds.
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        body()
        graph.capture_end()
    return graph


def _event_seconds(
    session: Session, group: ProcessGroup, replay: Callable[[], None], count: int
) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _align(session, group)
    start.record()
    replay()
    end.record()
    torch.cuda.synchronize(session.device)
    return start.elapsed_time(end) / 1e3 / count


def _host_seconds(session: Session, group: ProcessGroup, issue: Issue, count: int) -> float:
    _align(session, group)
    start_s = time.perf_counter()
    issue(count)
    return (time.perf_counter() - start_s) / count


def _align(session: Session, group: ProcessGroup) -> None:
    """Let the group's ranks leave together."""
    dist.all_reduce(torch.zeros(1, device=session.device), group=group)


class _Report:
    """The file, on the first rank; nothing elsewhere."""

    def __init__(
        self,
        request: Request,
        session: Session,
        pairs: Sequence[Pair],
        num_series: int,
        before: dict[str, str],
    ) -> None:
        self._request, self._writes = request, session.rank == 0
        self._timings: list[dict[str, Any]] = []
        self._refused: list[dict[str, Any]] = []
        self._started_s, self._num_series, self._num_done = time.monotonic(), num_series, 0
        self._environment = (
            environment_of(session.device)
            | communication_settings()
            | communication_variables()
            | before
        )
        self._head: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "num_ranks": session.world_size,
            "pairs": [asdict(pair) for pair in pairs],
        }

    def announce(self, series: Series) -> None:
        """Say on stderr which series begins, where that was asked for."""
        if self._writes and self._request.announce:
            ranks = ", ".join(map(str, series.ranks))
            print(
                f"links: {self._num_done + 1} of {self._num_series}: {series.op} of ranks {ranks}, "
                f"{series.mode}, {time.monotonic() - self._started_s:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    def done_before(self, wanted: Sequence[Series]) -> list[Series]:
        """The series that the file holds already, where the request is to go on with it."""
        earlier = self._earlier() if self._request.goes_on and self._writes else {}
        if not earlier:
            return []
        self._timings, self._refused = list(earlier["timings"]), list(earlier["refused"])
        held = {
            (one["op"], one["mode"], tuple(one["ranks"]))
            for one in (*self._timings, *self._refused)
        }
        found = [series for series in wanted if (series.op, series.mode, series.ranks) in held]
        self._num_done = len(found)
        return found

    def _earlier(self) -> dict[str, Any]:
        """What the file holds of the same ranks and links; nothing of others."""
        out = self._request.out
        found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        # As a file has it: tuples are lists there.
        head = json.loads(json.dumps(self._head))
        return found if all(found.get(key) == head[key] for key in head) else {}

    def add(self, series: Series, gathered: Sequence[dict[int, list[float]] | str | None]) -> None:
        """Take a series as all ranks saw it, and write the file."""
        if not self._writes:
            return
        self._num_done += 1
        members = [gathered[rank] for rank in series.ranks]
        reasons = [member for member in members if isinstance(member, str)]
        named = {"op": series.op, "mode": series.mode, "ranks": list(series.ranks)}
        if reasons:
            self._refused.append(named | {"reason": reasons[0]})
        seen = [member for member in members if isinstance(member, dict)]
        for size in seen[0] if seen and not reasons else ():
            use = "survey" if series.is_survey else self._request.use_of(size)
            self._timings.append(
                named
                | {"payload_bytes": size, "use": use}
                | _summary([m[size] for m in seen])
                | {"ops_per_replay": ops_per_replay(size)}
            )
        self._write({})

    def finish(self, after: dict[str, str]) -> int | None:
        """Write it once more, with the clocks after. The number of timings."""
        if not self._writes:
            return None
        self._write(after)
        return len(self._timings)

    def _write(self, after: dict[str, str]) -> None:
        head = self._head | {
            "environment": self._environment | after,
            "num_series": self._num_series,
            "num_series_done": self._num_done,
            "elapsed_s": round(time.monotonic() - self._started_s, 3),
            "refused": self._refused,
        }
        lines = ",\n".join(f"  {json.dumps(timing)}" for timing in self._timings)
        text = json.dumps(head, indent=1).removesuffix("\n}")
        write_atomically(self._request.out, f'{text},\n "timings": [\n{lines}\n ]\n}}\n')


def _summary(by_rank: Sequence[Sequence[float]]) -> dict[str, float | int]:
    """Median and range over the replays of the shortest time over ranks; median of the longest."""
    shortest = [min(times) for times in zip(*by_rank, strict=True)]
    return {
        "slowest_rank_s": median(max(times) for times in zip(*by_rank, strict=True)),
        "median_s": median(shortest),
        "min_s": min(shortest),
        "max_s": max(shortest),
        "replays": len(shortest),
    }


def _local_index(session: Session) -> int:
    return session.device.index or 0 if session.device.type == "cuda" else session.rank

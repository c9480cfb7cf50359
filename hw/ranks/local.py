"""Several ranks on this machine: processes started once, given tasks, ended together."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, NoReturn

import torch.distributed as dist

from layerwise.hw.errors import ExecutionError, RankFailedError, RanOutOfMemoryError
from layerwise.hw.ranks.session import (
    TIMEOUT,
    Session,
    join_group,
    session_from_torchrun,
    under_torchrun,
    usable_device,
)
from layerwise.hw.ranks.watchdog import STALL_S, Fault, last_seen
from layerwise.sim.plan.errors import LayerwiseError

GRACE_S = 5.0
Task = Callable[..., Any]


@dataclass(frozen=True)
class _Reply:
    """What a rank answers: a task's value, or the fault that ended it."""

    ok: bool
    value: Any


@dataclass(frozen=True)
class LocalRanks:
    """Processes that wait for tasks. `call` runs one on all ranks at once."""

    processes: Sequence[BaseProcess]
    connections: Sequence[Connection]
    store: dist.Store

    def call(self, task: Task, *arguments: Any, timeout_s: float = 600.0) -> list[Any]:
        """Run `task(session, *arguments)` on every rank; the results in rank order.

        Raises RankFailedError as soon as one rank fails, dies, or outlasts `timeout_s`, after
        ending all of them.
        """
        message = pickle.dumps((task, arguments))
        for connection in self.connections:
            connection.send_bytes(message)
        replies: dict[int, Any] = {}
        deadline = time.monotonic() + timeout_s
        while len(replies) < len(self.connections):
            rank, reply = self._next_reply(replies, deadline)
            if not reply.ok:
                self.end()
                raise RankFailedError(
                    f"rank {reply.value.rank} failed, all ranks were ended: {reply.value.text}"
                    if reply.value.rank >= 0
                    else f"all ranks were ended: {reply.value.text}"
                )
            replies[rank] = reply.value
        return [replies[rank] for rank in range(len(self.connections))]

    def end(self) -> None:
        """End all processes: asked first, then made to (a stopped one hears nothing else)."""
        started = [process for process in self.processes if process.pid is not None]
        for process in started:
            process.terminate()
        deadline = time.monotonic() + GRACE_S
        for process in started:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in started:
            if process.is_alive():
                process.kill()
                process.join(GRACE_S)

    def _next_reply(self, have: dict[int, Any], deadline: float) -> tuple[int, _Reply]:
        waiting = {c: rank for rank, c in enumerate(self.connections) if rank not in have}
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            stuck = sorted(waiting.values())
            places = ", ".join(f"rank {rank} at {self._last_seen(rank)}" for rank in stuck)
            return stuck[0], _failed(stuck[0], f"no answer in time; still busy: {places}")
        # Of several that fail together, one that says why tells more than one that only died.
        replies = [(waiting[c], self._receive(waiting[c])) for c in waiting if c in ready]
        for rank, reply in replies[1:]:
            if reply.ok:
                have[rank] = reply.value
        failed = [pair for pair in replies if not pair[1].ok]
        return min(failed or replies[:1], key=lambda pair: _hearsay(*pair))

    def _receive(self, rank: int) -> _Reply:
        try:
            return pickle.loads(self.connections[rank].recv_bytes())
        except (EOFError, OSError):
            self.processes[rank].join(GRACE_S)
            how = _how_it_ended(self.processes[rank].exitcode)
            return _failed(
                rank, f"its process died without a word ({how}) at {self._last_seen(rank)}"
            )

    def _last_seen(self, rank: int) -> str:
        return last_seen(dist.PrefixStore("watchdog", self.store), rank)


@contextmanager
def local_ranks(
    world_size: int, device_type: Literal["cpu", "cuda"], *, stall_s: float = STALL_S
) -> Iterator[LocalRanks]:
    """Start `world_size` rank processes on this machine; they end with the context.

    A rank that gives no sign of life for `stall_s`, or stands still as long while others wait for
    it, ends all of them. Raises NotAvailableError when there are fewer GPUs than ranks.
    """
    usable_device(device_type, world_size)
    # The parent serves the store on a port that the system chose: nothing to race for.
    store = dist.TCPStore(
        "127.0.0.1", 0, world_size, is_master=True, wait_for_workers=False, timeout=TIMEOUT
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "layerwise.hw.ranks.local"])
    pipes = [context.Pipe() for _ in range(world_size)]
    processes = [
        context.Process(
            target=_serve,
            args=(rank, world_size, device_type, store.port, pipes[rank][1], stall_s),
            name=f"rank {rank}",
            daemon=True,
        )
        for rank in range(world_size)
    ]
    ranks = LocalRanks(processes, [ours for ours, _ in pipes], store)
    try:
        for process, (_, theirs) in zip(processes, pipes, strict=True):
            process.start()
            theirs.close()
        yield ranks
        for connection in ranks.connections:
            with suppress(OSError):  # a rank that failed has gone already
                connection.send_bytes(pickle.dumps(None))
        for process in processes:
            process.join(GRACE_S)
    finally:
        ranks.end()


def run_on_ranks(
    task: Task,
    *arguments: Any,
    num_ranks: int,
    device_type: Literal["cpu", "cuda"],
    timeout_s: float,
) -> Any:
    """Run `task(session, *arguments)` on ranks started here; return the first rank's result.

    A process of torchrun runs it as one of torchrun's ranks instead, and returns its own result.
    Where that fails it says why in a line and ends at once: a broken communicator can hold up a
    normal exit.
    """
    if not under_torchrun():
        with local_ranks(num_ranks, device_type) as ranks:
            return ranks.call(task, *arguments, timeout_s=timeout_s)[0]
    try:
        result = task(session_from_torchrun(device_type), *arguments)
    except LayerwiseError as error:
        sys.stdout.flush()
        print(f"layerwise: {describe(error)}", file=sys.stderr, flush=True)
        os._exit(2)
    dist.destroy_process_group()
    return result


def _hearsay(rank: int, reply: _Reply) -> bool:
    """Does a rank tell of another's fault?"""
    return not reply.ok and reply.value.rank != rank


def _failed(rank: int, text: str) -> _Reply:
    return _Reply(False, Fault(rank, text))


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode is None:
        return "it has closed its pipe and does not end"
    if exitcode == -signal.SIGKILL:
        return "killed by SIGKILL: by hand, or for the machine's memory"
    if exitcode < 0:
        return f"killed by {signal.Signals(-exitcode).name}"
    return f"exit code {exitcode}"


def _serve(
    rank: int,
    world_size: int,
    device_type: Literal["cpu", "cuda"],
    port: int,
    connection: Connection,
    stall_s: float,
) -> None:
    """A rank process: join the group, then run tasks until told to stop."""
    import torch

    # Ctrl-C goes to the whole terminal: the parent hears it, and ends its ranks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if device_type == "cpu":
        torch.set_num_threads(1)
    answer = _Answer(connection)
    session: Session | None = None
    try:
        while (message := pickle.loads(connection.recv_bytes())) is not None:
            task, arguments = message
            try:
                if session is None:
                    session = join_group(
                        rank,
                        world_size,
                        rank,
                        device_type,
                        ("127.0.0.1", port),
                        on_fault=answer.end_with,
                        stall_s=stall_s,
                    )
                value = task(session, *arguments)
            except Exception as error:
                answer.end_with(fault_of(error, session, rank))
            answer.send(_Reply(True, value))
    except EOFError:  # the parent has gone
        os._exit(1)
    if session is not None:
        if session.watchdog:
            session.watchdog.stop()
        dist.destroy_process_group()


class _Answer:
    """The way back to the parent, for the rank's task and for its watchdog's thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, reply: _Reply) -> None:
        with self._lock:
            self._connection.send_bytes(pickle.dumps(reply))

    def end_with(self, fault: Fault) -> NoReturn:
        """Answer and leave at once: a broken communicator can hold up a normal exit."""
        with suppress(OSError):
            self.send(_Reply(False, fault))
        sys.stdout.flush()
        os._exit(1)


def fault_of(error: BaseException, session: Session | None, rank: int) -> Fault:
    """Who is to blame for an error on this rank; where it waited for others, perhaps another."""
    if session is None or session.watchdog is None:
        return Fault(rank, describe(error))
    progress = session.progress
    waits = progress.waits_for(rank, session.world_size)
    on_purpose = isinstance(error, LayerwiseError) and not isinstance(error, ExecutionError)
    own = on_purpose or not waits or isinstance(error, RanOutOfMemoryError)
    return session.watchdog.explain(f"{describe(error)} ({progress.when()})", own=own)


def describe(error: BaseException) -> str:
    """One line: the class, the message, and for what nobody raised on purpose the place."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, LayerwiseError):
        return text
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({place.filename}:{place.lineno})"

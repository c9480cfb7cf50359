"""Several ranks on this machine: processes started once, given tasks, ended together."""

from __future__ import annotations

import multiprocessing
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import torch.distributed as dist

from hw.errors import RankFailedError
from hw.session import TIMEOUT, Session, join_group, usable_device
from sim.plan.errors import LayerwiseError

GRACE_S = 5.0
Task = Callable[..., Any]


@dataclass(frozen=True)
class _Reply:
    ok: bool
    value: Any


@dataclass(frozen=True)
class LocalRanks:
    """Processes that wait for tasks. `call` runs one on all ranks at once."""

    processes: Sequence[BaseProcess]
    connections: Sequence[Connection]

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
                raise RankFailedError(f"rank {rank} failed, all ranks were ended: {reply.value}")
            replies[rank] = reply.value
        return [replies[rank] for rank in range(len(self.connections))]

    def end(self) -> None:
        """End all processes: asked first, then made to."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(GRACE_S)
            if process.is_alive():
                process.kill()
                process.join(GRACE_S)

    def _next_reply(self, have: dict[int, Any], deadline: float) -> tuple[int, _Reply]:
        waiting = {c: rank for rank, c in enumerate(self.connections) if rank not in have}
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            stuck = sorted(waiting.values())
            return stuck[0], _Reply(False, f"no answer in time; ranks {stuck} are still busy")
        # Of several that fail together, prefer one that says why to one that only noticed.
        replies = [(waiting[c], _receive(c)) for c in waiting if c in ready]
        for rank, reply in replies[1:]:
            if reply.ok:
                have[rank] = reply.value
        failed = [pair for pair in replies if not pair[1].ok]
        if failed:
            return failed[0]
        return replies[0]


@contextmanager
def local_ranks(world_size: int, device_type: Literal["cpu", "cuda"]) -> Iterator[LocalRanks]:
    """Start `world_size` rank processes on this machine; they end with the context.

    Raises NotAvailableError when there are fewer GPUs than ranks.
    """
    usable_device(device_type, world_size)
    # The parent serves the store on a port that the system chose: nothing to race for.
    store = dist.TCPStore("127.0.0.1", 0, world_size, is_master=True, wait_for_workers=False,
                          timeout=TIMEOUT)  # fmt: skip
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "hw.local"])
    pipes = [context.Pipe() for _ in range(world_size)]
    processes = [
        context.Process(
            target=_serve, args=(rank, world_size, device_type, store.port, pipes[rank][1]),
            name=f"rank {rank}", daemon=True,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    ranks = LocalRanks(processes, [ours for ours, _ in pipes])
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


def _receive(connection: Connection) -> _Reply:
    try:
        return pickle.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return _Reply(False, "its process died without a word (killed, or out of memory)")


def _serve(
    rank: int, world_size: int, device_type: Literal["cpu", "cuda"], port: int,
    connection: Connection,
) -> None:  # fmt: skip
    """A rank process: join the group, then run tasks until told to stop."""
    import torch

    if device_type == "cpu":
        torch.set_num_threads(1)
    session: Session | None = None
    while (message := pickle.loads(connection.recv_bytes())) is not None:
        task, arguments = message
        try:
            if session is None:
                store = dist.TCPStore("127.0.0.1", port, world_size, False, timeout=TIMEOUT)
                session = join_group(rank, world_size, rank, device_type, store)
            reply = _Reply(True, task(session, *arguments))
        except Exception as error:
            reply = _Reply(False, _describe(error))
        connection.send_bytes(pickle.dumps(reply))
        if not reply.ok:
            return
    if session is not None:
        dist.destroy_process_group()


def _describe(error: Exception) -> str:
    if isinstance(error, LayerwiseError):
        return f"{type(error).__name__}: {error}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"

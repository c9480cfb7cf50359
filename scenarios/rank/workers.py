"""Processes that share a ranking's work, and end at once with it."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, forkserver, get_context
from typing import Any

Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


def available_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def spreading(workers: int) -> Generator[Spread]:
    """`map` over processes, or in this one. Ctrl-C is this process' to hear: it ends the others."""
    if workers < 2:
        yield map
        return
    _start_deaf_server()
    others = set(active_children())
    with ProcessPoolExecutor(
        workers, mp_context=get_context("forkserver"), initializer=_begin
    ) as pool:
        try:
            yield pool.map
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(active_children()) - others:
                child.terminate()
            raise


def _start_deaf_server() -> None:
    """A terminal sends Ctrl-C to all its processes; one that is still importing would complain."""
    if threading.current_thread() is not threading.main_thread():
        return  # only a main thread hears signals
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, heard)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Millions of small objects, and an end: as in the command line.
    gc.set_threshold(200_000, 20, 20)

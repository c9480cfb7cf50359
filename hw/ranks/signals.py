"""Ctrl-C and SIGTERM: heard by the main thread, or beside it where it hangs in a library."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

HEARD = (signal.SIGINT, signal.SIGTERM)
# A main thread that is running Python hears a signal at once.
STUCK_S = 1.0

OnStuck = Callable[[int], None]


class Interrupted(KeyboardInterrupt):
    """A signal has come; like Ctrl-C, no `except Exception` holds it up."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal_number)


@contextmanager
def interruptible(on_stuck: OnStuck | None = None) -> Iterator[threading.Event]:
    """While it lasts, SIGINT and SIGTERM raise Interrupted, once, in the main thread.

    Where that thread has not left the context STUCK_S later (it waits in a library for a peer, or
    for a device), `on_stuck` is called in another, and must not return. Whoever sets the event
    that is given hears no more signals. Outside the main thread nobody can: nothing is changed.
    """
    left = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield left
        return
    heard: list[int] = []

    def hear(signal_number: int, frame: FrameType | None) -> None:
        if not heard and not left.is_set():
            heard.append(signal_number)
            raise Interrupted(signal_number)

    before = {number: signal.signal(number, hear) for number in HEARD}
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    # Python's handlers run between two of its own instructions; this byte comes from the signal's.
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(ours, left, on_stuck), daemon=True)
    watcher.start()
    try:
        yield left
    finally:
        left.set()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()
        watcher.join()
        ours.close()


def _watch(pipe: socket.socket, left: threading.Event, on_stuck: OnStuck | None) -> None:
    while data := pipe.recv(1):  # nothing: the other end is closed
        if data[0] in HEARD:
            if on_stuck and not left.wait(STUCK_S):
                on_stuck(data[0])
            return

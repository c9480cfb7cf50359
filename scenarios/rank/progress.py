"""How far a ranking is, on a terminal, once it takes long enough to wonder."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Timer

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

AFTER_S = 2.0
Progress = Callable[[int, int], None]


@contextmanager
def showing_progress(console: Console, after_s: float = AFTER_S) -> Generator[Progress]:
    """Takes how many are done, of how many; shows nothing before `after_s`, or off a terminal."""
    if not console.is_terminal:
        yield _ignored
        return
    columns = (
        TextColumn("rank"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("placements and flips"),
        TimeElapsedColumn(),
    )
    bar = Bar(*columns, console=console, transient=True)
    task = bar.add_task("", total=None)
    timer = Timer(after_s, bar.start)
    timer.daemon = True
    timer.start()

    def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        timer.cancel()
        timer.join()
        bar.stop()


def _ignored(done: int, total: int) -> None:
    del done, total

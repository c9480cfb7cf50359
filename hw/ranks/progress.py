"""Where a rank is: written by the engine on its way, read by the watchdog's thread.

A write is one attribute, so that an eager op of tens of microseconds does not feel it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from typing import Literal, TypeVar

import torch

from layerwise.hw.engine.schedule import LABEL_BYTES, Action, label_of
from layerwise.hw.errors import ExecutionError, RanOutOfMemoryError
from layerwise.sim.plan import ops

Kind = Literal["idle", "setup", "together"]
WHEN_BYTES = 64
SLATE_BYTES = LABEL_BYTES + WHEN_BYTES
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(slots=True)
class Progress:
    """One rank's place in a run.

    `kind` of the phase: `idle` waits for a task, `setup` may take long with no sign of getting on
    (filling weights, making communicators, reading a tracer), `together` is bounded by the stall
    limit. `at` is the action under
    way, or words. `waits`: the phase itself waits for every peer. `budget` is bytes per kind of
    buffer, once they are counted. `slate` has the place as text: mapped from a file, it can be read
    when the process is no more.
    """

    phase: str = "idle"
    kind: Kind = "idle"
    waits: bool = False
    at: Action | str = ""
    step: int = -1
    repeat: int = -1
    steps_issued: int = 0
    budget: Mapping[str, int] = field(default_factory=dict)
    slate: bytearray | mmap = field(default_factory=lambda: bytearray(SLATE_BYTES))
    slate_path: str = ""

    def enter(self, phase: str, kind: Kind = "together", *, waits: bool = False) -> None:
        """Begin a phase: `allocating`, `the untraced run`."""
        self.step, self.repeat = -1, -1
        self.phase, self.kind, self.waits = phase, kind, waits
        self.make("")

    def make(self, what: str) -> None:
        """What is under way, where that is no op."""
        self.at = what
        self.slate[:LABEL_BYTES] = label_of(what)
        self._write_when()

    def begin_repeat(self, number: int) -> None:
        """The next repeat is issued, or awaited."""
        self.repeat = number
        self._write_when()

    def begin_step(self) -> None:
        """The engine issues a step: `at`, and the slate's label, are its to write."""
        self.steps_issued += 1
        self._write_when()

    def keep_on(self, path: Path) -> None:
        """Write the slate to a file from now on. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w+b") as file:
            # A hole in a file on a full disk would end the process at the first write.
            os.posix_fallocate(file.fileno(), 0, SLATE_BYTES)
            self.slate = mmap(file.fileno(), SLATE_BYTES)
        self.slate_path = str(path)
        self.make("")

    def _write_when(self) -> None:
        self.slate[LABEL_BYTES:] = self.when().encode()[:WHEN_BYTES].ljust(WHEN_BYTES)

    def where(self) -> str:
        """For people: `L03.attn.qkv@m2 (step 4 of the untraced run, repeat 7)`."""
        return _place(self.op_name, self.when())

    @property
    def op_name(self) -> str:
        """The op under way, or what else is."""
        at = self.at
        return at if isinstance(at, str) else at.placed.name

    def when(self) -> str:
        """`step 4 of the untraced run, repeat 7`."""
        step = f"step {self.step} of " if self.step >= 0 else ""
        repeat = f", repeat {self.repeat}" if self.repeat >= 0 else ""
        return f"{step}{self.phase}{repeat}"

    def waits_for(self, rank: int, world_size: int) -> tuple[int, ...]:
        """The peers that must act before this rank goes on."""
        at = self.at
        if self.waits:
            return tuple(peer for peer in range(world_size) if peer != rank)
        if isinstance(at, str):
            return ()
        match at.placed.op:
            case ops.AllReduce() | ops.AllGather() as op:
                return tuple(peer for peer in op.group if peer != rank)
            case ops.Send() | ops.Recv() as op:
                return (op.peer,)
            case _:
                return ()

    def state(self) -> tuple[object, ...]:
        """Changes whenever the rank gets on."""
        return (self.phase, self.repeat, self.step, self.steps_issued, id(self.at))


def read_slate(path: str) -> str:
    """Where a process was that kept its slate there; nothing without one."""
    try:
        text = Path(path).read_bytes()
    except OSError:
        return ""
    label, when = (
        part.decode(errors="replace") for part in (text[:LABEL_BYTES], text[LABEL_BYTES:])
    )
    return _place(label.strip(), when.strip())


def _place(name: str, when: str) -> str:
    return f"{name} ({when})" if name else when


def noting(
    progress: Progress, name_of: Callable[[Given], str], make: Callable[[Given], Made]
) -> Callable[[Given], Made]:
    """`make`, which says what it makes before it does."""

    def noted(given: Given) -> Made:
        progress.make(name_of(given))
        return make(given)

    return noted


@contextmanager
def naming_out_of_memory(rank: int, progress: Progress) -> Iterator[None]:
    """Inside, memory that runs out becomes an error that names rank, op and budget."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(rank, progress.op_name or progress.phase, error, progress) from error
    except ExecutionError as error:
        if isinstance(error.__cause__, torch.OutOfMemoryError):
            raise _out_of_memory(rank, error.op_name, error.__cause__, progress) from error
        raise


def _out_of_memory(
    rank: int, op_name: str, error: torch.OutOfMemoryError, progress: Progress
) -> RanOutOfMemoryError:
    # Torch goes on with advice on its allocator.
    cause = f"OutOfMemoryError: {str(error).partition('. GPU')[0]}"
    return RanOutOfMemoryError(rank, op_name, cause, progress.budget)

"""Whether every rank is alive and gets on: a thread beside each rank, and a store they share.

Each beat a rank publishes where it is, and reads where the others are. A rank that has died, gives
no sign of life, or stands still while others wait for it, is named to all; each rank then ends
itself. Nothing here touches the device, and no communicator: those may hang.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch.distributed as dist

from layerwise.hw.options import Options
from layerwise.hw.ranks.progress import Progress, read_slate

STALL_S = Options.stall_s
BEATS_PER_STALL = 15
# What shows no progress on its way (making communicators, ...) may take this many stall limits.
SETUP_FACTOR = 10
# From a rank's first beat to that of the last one: processes import torch at their own pace.
JOIN_S = 50.0
# How many beats a rank whose message failed waits to hear who is at fault, before it says itself.
PATIENCE_BEATS = 4
NOBODY = "-"


@dataclass(frozen=True)
class State:
    """What a rank publishes. `space` and `started` say which process `pid` is, and where.

    `slate_path`: where its place can be read on its own machine, to the op.
    """

    pid: int
    space: str
    started: str
    beat: int = 0
    where: str = ""
    waits_for: tuple[int, ...] = ()
    stalled: bool = False
    done: bool = False
    slate_path: str = ""

    @property
    def place(self) -> str:
        """Where the rank was: now, if that can be read here, or when it last beat."""
        here = self.space == _process_space() and read_slate(self.slate_path)
        return here or self.where


@dataclass(frozen=True)
class Fault:
    """Which rank is at fault (-1: none of them), and all there is to say, with op and cause."""

    rank: int
    text: str


@dataclass
class _Seen:
    """A peer as last read, and how many of our beats ago it last beat."""

    state: State | None = None
    silent_beats: int = 0


@dataclass
class Watchdog:
    """One rank's thread. `on_fault` is called from it, once, and must not return.

    Beats are counted, not seconds: a job that was suspended and goes on is not dead.
    """

    store: dist.Store
    rank: int
    world_size: int
    progress: Progress
    on_fault: Callable[[Fault], None]
    stall_s: float = STALL_S
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _fault: Fault | None = None
    _beat: int = 0
    _still_beats: int = 0
    _last: tuple[object, ...] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)
    _known: threading.Event = field(default_factory=threading.Event)
    _explaining: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin to beat."""
        self._me = State(os.getpid(), _process_space(), _process(os.getpid())[1])
        self._seen = {peer: _Seen() for peer in range(self.world_size) if peer != self.rank}
        self.store.compare_set("fault", "", NOBODY)
        self.publish()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """This rank has done its part: nobody shall miss it."""
        self._ended.set()
        self._thread.join()
        with suppress(RuntimeError):  # the store goes with whoever served it
            self.publish(done=True)

    @property
    def beat_s(self) -> float:
        """Between two beats; many ranks beat slower, for each reads all."""
        return self.stall_s / BEATS_PER_STALL * max(1.0, self.world_size / 64)

    def explain(self, problem: str, *, own: bool) -> Fault:
        """Who is to blame for what went wrong on this rank, told to all ranks.

        What is not this rank's `own` fault is somebody else's, if that becomes known soon.
        """
        self._explaining.set()  # the thread leaves the word to us
        if own or not self._known.wait(PATIENCE_BEATS * self.beat_s):
            self._announce(Fault(self.rank, problem))
        return self._fault or Fault(self.rank, problem)

    def last_seen(self, rank: int) -> str:
        """Where a rank was at its last beat."""
        return last_seen(self.store, rank)

    def _run(self) -> None:
        while not self._ended.wait(self.beat_s):
            try:
                self._beat_once()
            except RuntimeError as error:  # dist.DistError is one
                self._fault = self._fault or Fault(-1, f"the launcher is gone ({_line(error)})")
                self._known.set()
            if self._fault and not self._ended.is_set():
                self._known.set()
                if not self._explaining.is_set():
                    self.on_fault(self._fault)
                    return

    def _beat_once(self) -> None:
        self.publish()
        self._read()
        if self._fault is None and (fault := self._find()):
            self._announce(fault)

    def publish(self, *, done: bool = False) -> None:
        """Tell the others where this rank is: a beat, from its thread or between two of them."""
        with self._lock:
            self._publish(done)

    def _publish(self, done: bool) -> None:
        now = self.progress.state()
        on_time = threading.current_thread() is not threading.main_thread()
        self._still_beats = self._still_beats + on_time if now == self._last else 0
        self._last = now
        self._beat += 1
        self._me = State(
            self._me.pid,
            self._me.space,
            self._me.started,
            self._beat,
            self.progress.where(),
            self.progress.waits_for(self.rank, self.world_size),
            self._is_stalled,
            done,
            self.progress.slate_path,
        )
        self.store.set(_key(self.rank), json.dumps(asdict(self._me)))

    @property
    def _is_stalled(self) -> bool:
        factor = SETUP_FACTOR if self.progress.kind == "setup" else 1
        limit_beats = self.stall_s / self.beat_s * factor
        return self.progress.kind != "idle" and self._still_beats >= limit_beats

    def _read(self) -> None:
        missing = [peer for peer, seen in self._seen.items() if seen.state is None]
        present = [peer for peer in self._seen if peer not in missing]
        present += [peer for peer in missing if self.store.check([_key(peer)])]
        fault, *states = self.store.multi_get(["fault", *map(_key, present)])
        if fault.decode() != NOBODY and self._fault is None:
            self._fault = Fault(**json.loads(fault))
        found = {peer: _state(data) for peer, data in zip(present, states, strict=True)}
        for peer, seen in self._seen.items():
            new = found.get(peer)
            beats = new is not None and (seen.state is None or new.beat != seen.state.beat)
            seen.silent_beats = 0 if beats else seen.silent_beats + 1
            seen.state = new

    def _find(self) -> Fault | None:
        for peer, seen in self._seen.items():
            if fault := self._find_lost(peer, seen):
                return fault
        states = {peer: seen.state for peer, seen in self._seen.items() if seen.state}
        return find_stalled(self.rank, states | {self.rank: self._me}, self.stall_s)

    def _find_lost(self, peer: int, seen: _Seen) -> Fault | None:
        state, silent_s = seen.state, seen.silent_beats * self.beat_s
        if state is None:
            if silent_s < JOIN_S:
                return None
            return Fault(
                peer, f"rank {peer} did not come within {JOIN_S:.0f} s of rank {self.rank}"
            )
        if state.done or seen.silent_beats == 0:
            return None
        condition = self._condition_of(state)
        if condition == "gone":
            return Fault(peer, f"rank {peer} died at {state.place} (its process is gone)")
        if silent_s < self.stall_s:
            return None
        if condition:
            # Nobody else may be left to end a process that hears no signal but this one.
            with suppress(OSError):
                os.kill(state.pid, signal.SIGKILL)
        how = " (its process was stopped)" if condition == "stopped" else ""
        return Fault(
            peer,
            f"rank {peer} gave no sign of life for {silent_s:.0f} s{how}; last seen at "
            f"{state.place}",
        )

    def _condition_of(self, state: State) -> str:
        """`gone`, `stopped` or `there`; nothing for a process that cannot be seen from here."""
        if state.space != self._me.space:
            return ""
        letter, started = _process(state.pid)
        if letter in "ZX" or started != state.started:
            return "gone"
        return "stopped" if letter in "Tt" else "there"

    def _announce(self, fault: Fault) -> None:
        """The first fault that is told is everybody's."""
        self._fault = self._fault or fault
        with suppress(RuntimeError):
            told = self.store.compare_set("fault", NOBODY, json.dumps(asdict(fault)))
            self._fault = Fault(**json.loads(told))
        self._known.set()


def find_stalled(rank: int, states: Mapping[int, State], stall_s: float) -> Fault | None:
    """Whom this rank, which stands still, waits for in the end; None while somebody gets on."""
    if not states[rank].stalled:
        return None
    reached, pending = {rank}, [rank]
    while pending:
        for peer in states[pending.pop()].waits_for:
            if peer not in states:
                return None  # it has yet to come, and is given its time to
            if not states[peer].done and peer not in reached:
                reached.add(peer)
                pending.append(peer)
    if not all(states[peer].stalled for peer in reached):
        return None
    idle = sorted(peer for peer in reached if not states[peer].waits_for)
    advice = "; raise --stall-s if one op may take that long"
    if not idle:
        places = ", ".join(f"rank {peer} at {states[peer].where}" for peer in sorted(reached))
        return Fault(
            -1,
            f"all wait for each other, or for their devices, since {stall_s:.0f} s: "
            f"{places}{advice}",
        )
    culprit = idle[0]
    waiting = [str(peer) for peer in sorted(states) if culprit in states[peer].waits_for]
    who = f"; rank {', '.join(waiting)} waits for it" if waiting else ""
    return Fault(
        culprit,
        f"rank {culprit} made no progress for {stall_s:.0f} s at "
        f"{states[culprit].where}{who}{advice}",
    )


def last_seen(store: dist.Store, rank: int) -> str:
    """Where a rank was, as far as is known; words that say so when it never beat."""
    with suppress(RuntimeError):
        if store.check([_key(rank)]):
            return _state(store.get(_key(rank))).place
    return "its start"


def _key(rank: int) -> str:
    return f"state/{rank}"


def _state(data: bytes) -> State:
    found = json.loads(data)
    return State(**found | {"waits_for": tuple(found["waits_for"])})


def _process_space() -> str:
    """Equal where a pid means the same process: one boot, one namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"


def _process(pid: int) -> tuple[str, str]:
    """State letter and start time of a process, from /proc; `X` when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "X", ""
    # Source: proc(5): the name, in brackets, may hold anything; state is field 3, starttime 22.
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

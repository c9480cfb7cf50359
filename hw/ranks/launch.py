"""Start a measurement where it belongs: alone, under torchrun, or on ranks started here.

However it ends, no process is left, and what was measured by then is in a file.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from layerwise.hw.errors import InterruptedRunError
from layerwise.hw.instrument.power import PowerOptions
from layerwise.hw.measure import check_request, measure
from layerwise.hw.options import DeviceType, Options
from layerwise.hw.ranks.agreement import agree
from layerwise.hw.ranks.journal import (
    clear,
    folder_of,
    journal_of,
    note_reason,
    remove_own,
    salvage_told,
    slate_path_of,
    told_of,
)
from layerwise.hw.ranks.local import LocalRanks, fault_of, local_ranks
from layerwise.hw.ranks.session import Session, session_from_torchrun, under_torchrun, usable_device
from layerwise.hw.ranks.signals import Interrupted, interruptible
from layerwise.hw.ranks.watchdog import Fault
from layerwise.sim.plan.errors import PlacementError
from layerwise.sim.plan.scenario import Scenario, place
from layerwise.sim.trace import Trace, write_trace

# By then torchrun has ended the other ranks.
HEARD_S = 10.0


def launch(scenario: Scenario, options: Options) -> Trace | None:
    """Measure a scenario, and write its trace; None on every process of a torchrun but the first.

    Raises RankFailedError, with rank, op and cause, when a rank of several fails, and
    InterruptedRunError after SIGINT or SIGTERM. A rank of torchrun says it and exits instead: a
    broken communicator would hold it up.
    """
    num_ranks = 1 if scenario.run.only_rank >= 0 else place(scenario).num_ranks
    usable_device(options.device)
    _power_of(options)
    if options.out:
        options = replace(options, out=options.out.absolute())
    if under_torchrun():
        _require_world_size(num_ranks)
    if num_ranks == 1:
        leaving = _Leaving(options, "")
        with _kept(options.out), interruptible(leaving.on_signal):
            return _written(_measure_on(None, scenario, options), options)
    if under_torchrun():
        return _as_one_rank(scenario, options)
    check_request(scenario, options.timing, usable_device(options.device, num_ranks))
    with (
        _kept(options.out),
        interruptible(),
        local_ranks(num_ranks, options.device, stall_s=options.stall_s) as ranks,
    ):
        traces = ranks.call(_measure_on, scenario, options, timeout_s=options.timeout_s)
        return _written(traces[0], options)


def _written(trace: Trace | None, options: Options) -> Trace | None:
    if trace is None or options.out is None:
        return trace
    trace = replace(trace, purpose=options.purpose)
    write_trace(trace, options.out)
    return trace


@contextmanager
def _kept(out: Path | None) -> Iterator[None]:
    """What the ranks have kept becomes a trace where a run ends early, and is removed otherwise."""
    _make_way(out)
    try:
        yield
    except Interrupted as error:
        name = signal.Signals(error.signal_number).name
        text = f"the run was ended by {name}"
        raise InterruptedRunError(error.signal_number, _with_kept(text, out)) from None
    except Exception as error:
        if kept := _salvaged(str(error) or type(error).__name__, out, remove=True):
            error.add_note(kept)
        raise
    if out:
        clear(folder_of(out))


def _make_way(out: Path | None) -> None:
    """An earlier run of the same name that nobody was left to save is saved now."""
    if out and (folder := folder_of(out)).exists():
        print(f"hw: an earlier run: {salvage_told(folder, remove=True)}", file=sys.stderr)


def _salvaged(reason: str, out: Path | None, *, remove: bool) -> str:
    """What is kept of a run that ends for a reason; nothing where nothing is."""
    if out is None or not (folder := folder_of(out)).exists():
        return ""
    note_reason(folder, reason)
    return salvage_told(folder, remove=remove)


def _with_kept(text: str, out: Path | None, *, remove: bool = True) -> str:
    kept = _salvaged(text, out, remove=remove)
    return f"{text}; {kept}" if kept else text


class _Leaving:
    """How a process ends itself where an error, a signal or its watchdog says so: once.

    Through os._exit: what hangs in a library, or in a communicator, is not asked.
    """

    def __init__(self, options: Options, prefix: str) -> None:
        self._options, self._prefix = options, prefix
        self._lock = threading.Lock()
        self.session: Session | None = None

    def on_fault(self, fault: Fault) -> NoReturn:
        """The watchdog has found somebody at fault."""
        self._leave(fault.text, 2)

    def on_signal(self, number: int) -> NoReturn:
        """The main thread does not hear a signal. A launcher ends all ranks when one has failed."""
        text = f"ended by {signal.Signals(number).name}"
        if self.session and self.session.watchdog and number == signal.SIGTERM:
            fault = self.session.watchdog.explain(text, own=False)
            text = fault.text if fault.rank == self.session.rank else f"{text}: {fault.text}"
        self._leave(text, 128 + number)

    def on_error(self, error: BaseException) -> NoReturn:
        """The main thread has failed."""
        if isinstance(error, Interrupted):
            self.on_signal(error.signal_number)
        self._leave(fault_of(error, self.session, int(os.environ["RANK"])).text, 2)

    def _leave(self, text: str, code: int) -> NoReturn:
        self._lock.acquire()  # whoever comes second waits for the end
        line = _with_kept(text, self._options.out, remove=not self._prefix)
        sys.stdout.flush()
        print(f"hw: {self._prefix}{line}", file=sys.stderr, flush=True)
        os._exit(code)


def _as_one_rank(scenario: Scenario, options: Options) -> Trace | None:
    """This process's part under torchrun. After a fault it does not return."""
    rank = int(os.environ["RANK"])
    leaving = _Leaving(options, f"rank {rank}: ")
    with interruptible(leaving.on_signal) as deaf:
        try:
            if rank == 0:
                _make_way(options.out)
            session = session_from_torchrun(
                options.device, on_fault=leaving.on_fault, stall_s=options.stall_s
            )
            leaving.session = session
            trace = _written(_measure_on(session, scenario, options), options)
            agree(session, "written", None, lambda said: None)
            remove_own(options.out, rank)
        except BaseException as error:
            deaf.set()
            leaving.on_error(error)
        if session.watchdog:
            session.watchdog.stop()
    dist.destroy_process_group()
    return trace


def _require_world_size(num_ranks: int) -> None:
    """Raise PlacementError on torchrun's first rank when it has started another number of processes.

    The others end in silence, and after it: torchrun ends all of them at the first that fails, and
    what is to be changed would not be read.
    """
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size == num_ranks:
        return
    if int(os.environ["RANK"]):
        time.sleep(HEARD_S)
        raise SystemExit(2)
    what = "one process: `layerwise measure ...`" if num_ranks == 1 else f"{num_ranks} processes"
    alone = "" if num_ranks == 1 else ", or set run.only_rank to measure one rank alone"
    raise PlacementError(
        "placement",
        f"{num_ranks} rank{'' if num_ranks == 1 else 's'}",
        f"was started with WORLD_SIZE={world_size}",
        f"start {what}{alone}",
    )


def _measure_on(session: Session | None, scenario: Scenario, options: Options) -> Trace | None:
    rank = session.rank if session else max(0, scenario.run.only_rank)
    if session and options.out:
        path = slate_path_of(options.out, rank)
        with told_of(path):
            session.progress.keep_on(path)
        if session.watchdog:
            session.watchdog.publish()  # where to look, should this rank die before its next beat
    return measure(
        scenario,
        timing=options.timing,
        device=options.device,
        session=session,
        traced_repeats=options.traced_repeats,
        with_bandwidth=options.bandwidth,
        power=_power_of(options),
        weights=options.weights,
        journal=journal_of(options.out, rank),
        announce=options.announce,
    )


def _power_of(options: Options) -> PowerOptions:
    sampling = options.sampling or PowerOptions()
    return replace(sampling, sample=options.power, energy_s=options.energy_s)


Measure = Callable[[Scenario], Trace]


@contextmanager
def ready_ranks(num_ranks: int, device: DeviceType) -> Iterator[Measure]:
    """A function that measures on ranks started once, for many scenarios.

    A scenario that fails ends its ranks, as it must; the next one is given new ones.
    """
    started: list[AbstractContextManager[LocalRanks]] = []
    ranks: list[LocalRanks] = []

    def end() -> None:
        ranks.clear()
        while started:
            started.pop().__exit__(None, None, None)

    def measure_on(scenario: Scenario) -> Trace:
        if not ranks:
            started.append(local_ranks(num_ranks, device))
            ranks.append(started[-1].__enter__())
        try:
            return ranks[0].call(_measure_on, scenario, Options(device=device))[0]
        except Exception:
            end()
            raise

    try:
        yield measure_on
    finally:
        end()

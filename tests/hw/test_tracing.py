"""Who times the ops: the default falls back loudly, what was asked for by name does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.instrument.tracing import (
    NVTX_INJECTION,
    ClockTracer,
    CuptiTracer,
    EventTracer,
    choose_tracer,
    default_timing,
    make_tracer,
)
from layerwise.hw.measure import measure
from layerwise.hw.ranks.local import local_ranks
from layerwise.hw.ranks.session import Session
from layerwise.sim.plan.errors import MissingPackageError
from tests.hw.scenes import scenario

# A session says what its device is; nothing here launches a kernel.
ON_GPU = Session(0, 1, torch.device("cuda", 0))


class CuptiError(RuntimeError):
    """What cupti-python raises."""


def no_package() -> Exception:
    return ImportError("No module named 'cupti'", name="cupti")


def no_library() -> Exception:
    return FileNotFoundError("no nvidia/*/lib/libcupti.so* under ['lib']")


def taken() -> Exception:
    return CuptiError("CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED")


class Recorder:
    """Stands in for the CUPTI recorder; `problem` makes what its `open` raises."""

    def __init__(self, problem: Callable[[], Exception] | None = None) -> None:
        self._problem = problem
        self.is_open = False

    def open(self) -> None:
        os.environ[NVTX_INJECTION] = "libcupti.so"
        if self._problem:
            raise self._problem()
        self.is_open = True

    def close(self) -> None:
        self.is_open = False


@pytest.fixture(autouse=True)
def _injection_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NVTX_INJECTION, "libToolsInjection64.so")


def choose(timing: Any, problem: Callable[[], Exception] | None, session: Session = ON_GPU) -> Any:
    make: Any = partial(Recorder, problem)
    return choose_tracer(timing, 1, session, in_graph=True, make_recorder=make)


PROBLEMS = [
    (no_package, "cupti is not installed and is needed to time each kernel"),
    (no_library, "CUPTI is missing: no nvidia"),
    (taken, "CUPTI refuses: CuptiError: CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED; another"),
]


def test_cupti_is_the_default_on_a_gpu() -> None:
    chosen = choose(None, None)
    assert isinstance(chosen.tracer, CuptiTracer)
    assert ("cupti", "") == (chosen.timing, chosen.fallback)


@pytest.mark.parametrize(("problem", "why"), PROBLEMS)
def test_the_default_falls_back_to_events_and_says_so(
    problem: Callable[[], Exception], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = choose(None, problem)
    assert isinstance(chosen.tracer, EventTracer)
    assert "events" == chosen.timing
    assert why in chosen.fallback
    said = f"hw: op times are by CUDA events, not by CUPTI: {chosen.fallback}\n"
    assert said == capsys.readouterr().err


@pytest.mark.parametrize(("problem", "why"), PROBLEMS)
def test_cupti_asked_for_by_name_fails_with_the_reason(
    problem: Callable[[], Exception], why: str
) -> None:
    with pytest.raises((MissingPackageError, NotAvailableError), match=why.replace("*", ".")):
        choose("cupti", problem)


def test_events_asked_for_by_name_are_no_fallback() -> None:
    chosen = choose("events", taken)
    assert ("events", "") == (chosen.timing, chosen.fallback)


def test_another_tools_ranges_stay_its_own() -> None:
    choose(None, taken)
    assert "libToolsInjection64.so" == os.environ[NVTX_INJECTION]


def test_a_variable_that_was_not_set_is_not_set_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NVTX_INJECTION)
    choose(None, taken)
    assert NVTX_INJECTION not in os.environ


def test_missing_nvtx_gives_the_subscription_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("No module named 'nvtx'", name="nvtx")

    monkeypatch.setattr("layerwise.hw.instrument.tracing.NvtxRanges", missing)
    recorder: Any = Recorder()
    with pytest.raises(MissingPackageError, match="nvtx is not installed"):
        CuptiTracer(1, in_graph=False, make_recorder=lambda: recorder)
    assert not recorder.is_open


def test_the_cpu_times_by_the_hosts_clock() -> None:
    chosen = choose_tracer(None, 1, Session(0, 1, torch.device("cpu")), in_graph=False)
    assert isinstance(chosen.tracer, ClockTracer)
    assert ("clock", "") == (chosen.timing, chosen.fallback)
    assert ("cupti", "clock") == (default_timing("cuda"), default_timing("cpu"))


def test_none_traces_nothing() -> None:
    with pytest.raises(ValueError, match="traces nothing"):
        make_tracer("none", 1, in_graph=False)


def test_a_trace_says_who_timed_it() -> None:
    traced = measure(scenario(), device="cpu", traced_repeats=1)
    untraced = measure(scenario(), timing="none", device="cpu")
    assert traced is not None
    assert untraced is not None
    assert ("clock", "none") == (traced.timing, untraced.timing)
    assert ((), ()) == (untraced.rows, untraced.traced_step_s)
    assert "timing_fallback" not in traced.environment


def choose_on(session: Session) -> tuple[str, str, bool]:
    """On every rank: rank 1 cannot have CUPTI. Returns what was chosen, and what is still held."""
    recorder: Any = Recorder(taken if session.rank == 1 else None)
    on_gpu = Session(session.rank, session.world_size, torch.device("cuda", 0), session.store)
    chosen = choose_tracer(None, 1, on_gpu, in_graph=True, make_recorder=lambda: recorder)
    return chosen.timing, chosen.fallback, recorder.is_open


def test_ranks_fall_back_together() -> None:
    with local_ranks(2, "cpu") as ranks:
        found = ranks.call(choose_on, timeout_s=60)
    assert found[0] == found[1]
    timing, fallback, is_open = found[0]
    assert ("events", False) == (timing, is_open)
    assert fallback.startswith("rank 1: CUPTI refuses: CuptiError")

"""Whatever goes wrong: the run ends by itself, says which rank, op and why, and keeps its steps.

With real processes, on the CPU; on CUDA where two GPUs are seen (LAYERWISE_TEST_DEVICE decides).
"""

from __future__ import annotations

import multiprocessing.forkserver
import os
import re
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from layerwise.hw.engine.execute import Engine
from layerwise.hw.errors import ExecutionError, RankFailedError, RanOutOfMemoryError
from layerwise.hw.options import Options
from layerwise.hw.ranks.journal import folder_of, journal_of
from layerwise.hw.ranks.launch import launch
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.trace import Trace, read_trace
from tests.conftest import Ran
from tests.hw.faults import Fault, FaultyWeights
from tests.hw.scenes import scenario

DEVICE = os.environ.get(
    "LAYERWISE_TEST_DEVICE", "cuda" if torch.cuda.device_count() >= 2 else "cpu"
)
TIMING = "clock" if DEVICE == "cpu" else "events"
DTYPE = "float32" if DEVICE == "cpu" else "bfloat16"
# The bar of the issue; on the CPU what stalls is found much sooner.
BOUND_S = 60.0
# On a GPU the first ops of a run compile kernels.
STALL_S = 3.0 if DEVICE == "cpu" else 15.0
MARK = "LAYERWISE_TEST_RUN"
SCENARIO = f"""
[model]
num_layers = 4
hidden_size = 64
intermediate_size = 128
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 16
dtype = "{DTYPE}"
[placement]
strategy = "tensor-pipeline"
pipeline_parallel = 2
[workload]
batch_size = 4
context_tokens = 8
num_microbatches = 2
[run]
launch = "eager"
repeats = REPEATS
"""


def run_to_fault(out: Path, fault: Fault, **run: Any) -> str:
    """Measure on ranks started here; what the error says, with its notes."""
    asked = scenario(pipeline_parallel=2, repeats=8, **run)
    asked = replace(asked, model=replace(asked.model, dtype=DTYPE))
    options = Options(
        device=DEVICE,
        timing=TIMING,
        traced_repeats=4,
        out=out,
        stall_s=STALL_S,
        weights=FaultyWeights(asked.model, fault),
    )
    began_s = time.monotonic()
    with pytest.raises(RankFailedError) as raised:
        launch(asked, options)
    assert time.monotonic() - began_s < BOUND_S
    assert [] == processes_where(lambda pid: parent_of(pid) == forkserver_pid())
    return f"{raised.value}; {'; '.join(raised.value.__notes__)}"


def partial_trace(out: Path) -> Trace:
    assert not out.exists()
    assert not folder_of(out).exists()
    return read_trace(out.with_name("trace.partial.jsonl.gz"))


def forkserver_pid() -> int:
    return multiprocessing.forkserver._forkserver._forkserver_pid


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def processes_where(holds: Callable[[int], bool]) -> list[int]:
    return [pid for path in Path("/proc").glob("[0-9]*") if holds(pid := int(path.name))]


MESSAGES = {
    "kill": r"rank 1 failed.*died without a word \(killed by SIGKILL.*\) at "
    r"L02.mlp.down@m1 \(step 2 of the untraced run, repeat 3\)",
    "stop": rf"rank 1 failed.*rank 1 gave no sign of life for {STALL_S:.0f} s "
    r"\(its process was stopped\); "
    r"last seen at L02.mlp.down@m1 \(step 2 of the untraced run, repeat 3\)",
    "sleep": rf"rank 1 failed.*rank 1 made no progress for {STALL_S:.0f} s at "
    r"L02.mlp.down@m1 \(step 2 of the "
    r"untraced run, repeat 3\); rank 0 waits for it",
    "raise": r"rank 1 failed.*rank 1: L02.mlp.down@m1 failed: ValueError: out of ideas \(step 2 of "
    r"the untraced run, repeat 3\)",
    "oom": r"rank 1 failed.*rank 1: L02.mlp.down@m1 failed: OutOfMemoryError: CUDA out of memory. "
    r"Tried to allocate 2.00 GiB; the rank's own tensors take .* GiB \(.*weight .*\)",
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_fault_on_one_rank_is_told_and_the_steps_before_it_kept(
    kind: Any, tmp_path: Path
) -> None:
    out = tmp_path / "trace.jsonl.gz"
    told = run_to_fault(out, Fault(kind))
    assert re.search(MESSAGES[kind], told), told
    trace = partial_trace(out)
    assert told.startswith(trace.environment["ended_early"])
    assert "0, 1 of 2" == trace.environment["ranks_kept"]
    assert_steps(3, trace)
    assert f"{len(trace.untraced_step_s)} step times and 0 traced repeats are kept in" in told


def assert_steps(expected: int, trace: Trace) -> None:
    """On a GPU the host is ahead: a step is measured once the device has done it."""
    found = len(trace.untraced_step_s)
    assert found == expected if DEVICE == "cpu" else 0 <= found <= expected


def test_memory_that_runs_out_while_allocating_names_the_tensor_and_the_budget(
    tmp_path: Path,
) -> None:
    told = run_to_fault(tmp_path / "trace.jsonl", Fault("oom while allocating"))
    assert "rank 1: mlp.down.weight of layer 2 failed: OutOfMemoryError: CUDA out of memory" in told
    assert "weight 0.00" in told and told.count("(allocating)") == 1
    assert not (tmp_path / "trace.partial.jsonl").exists()


def test_rows_of_traced_repeats_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl.gz"
    run_to_fault(out, Fault("kill", phase="the traced run", repeat=2))
    trace = partial_trace(out)
    assert 8 == len(trace.untraced_step_s)
    assert {(repeat, rank) for repeat in (0, 1) for rank in (0, 1)} <= {
        (row.repeat, row.rank) for row in trace.rows
    }


def test_a_process_alone_keeps_its_steps_too(tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl.gz"
    asked = scenario(repeats=8)
    options = Options(
        device="cpu",
        timing="clock",
        out=out,
        weights=FaultyWeights(asked.model, Fault("oom", rank=0, phase="the traced run", repeat=1)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_perform", Engine._perform)  # what the trap replaces comes back
        with pytest.raises(RanOutOfMemoryError, match="L02.mlp.down@m1 failed") as raised:
            launch(asked, options)
    trace = partial_trace(out)
    assert isinstance(raised.value, ExecutionError)
    assert (8, 1, {0}) == (
        len(trace.untraced_step_s),
        len(trace.traced_step_s),
        {row.repeat for row in trace.rows},
    )
    assert ["8 step times and 1 traced repeats are kept in "] == [
        note.partition("/")[0] for note in raised.value.__notes__
    ]


ALONE = Options(device="cpu", timing="clock")


def test_a_trace_that_cannot_be_written_is_kept_beside(tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl.gz"
    out.mkdir()
    with pytest.raises(FileFormatError, match="is a folder") as raised:
        launch(scenario(), replace(ALONE, out=out))
    assert "4 step times and 5 traced repeats are kept in " in raised.value.__notes__[0]
    assert 4 == len(read_trace(tmp_path / "trace.partial.jsonl.gz").untraced_step_s)


def test_what_nobody_saved_is_saved_by_the_next_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trace.jsonl.gz"
    lost = journal_of(out, 0)
    header = Trace(source="measured", name="lost", scenario={}, kernel_set="k")
    lost.begin(header, num_ranks=1, timed_ranks=[0])
    lost.times("untraced_step_s", [1e-3])
    launch(scenario(), replace(ALONE, out=out))
    assert "an earlier run: 1 step times and 0 traced repeats are kept" in capsys.readouterr().err
    assert "lost" == read_trace(tmp_path / "trace.partial.jsonl.gz").name
    assert ("tiny", False) == (read_trace(out).name, folder_of(out).exists())


class Run:
    """A command line under way, in a process group and with a mark of its own."""

    def __init__(
        self,
        folder: Path,
        fault: Fault,
        *,
        launcher: tuple[str, ...] = (),
        repeats: int = 8,
        file_bytes: int = 0,
    ) -> None:
        self.out, self.mark = folder / "trace.jsonl.gz", uuid.uuid4().hex
        toml = folder / "tiny.toml"
        toml.write_text(SCENARIO.replace("REPEATS", str(repeats)))
        self.began_s = time.monotonic()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                *launcher,
                "tests.hw.faults",
                str(toml),
                "--out",
                str(self.out),
                "--device",
                DEVICE,
                "--timing",
                TIMING,
                "--stall-s",
                str(STALL_S),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | fault.to_environment() | {"OMP_NUM_THREADS": "1", MARK: self.mark},
        )
        if file_bytes:
            # What a full disk does to a file that grows, in this process and those it starts.
            limit = (file_bytes, file_bytes)
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, limit)

    def wait_for_steps(self, count: int) -> None:
        lines = folder_of(self.out) / "rank-1.jsonl"
        while not lines.exists() or lines.read_bytes().count(b"untraced_step_s") < count:
            assert self.process.poll() is None and time.monotonic() - self.began_s < BOUND_S
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        """Exit code and stderr, once nothing is left."""
        _, told = self.process.communicate(timeout=BOUND_S)
        deadline_s = time.monotonic() + 10
        while (left := self.left_behind()) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert [] == left, told
        return self.process.returncode, told

    def left_behind(self) -> list[int]:
        return processes_where(lambda pid: self.mark in environment_of(pid))


def after_the_beginning(told: str) -> list[str]:
    """Lines of stderr but for the one that says what a run begins."""
    begun, *lines = told.splitlines()
    assert "repeats untraced and" in begun
    return lines


def environment_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(fault: Fault, **how: Any) -> Run:
        runs.append(Run(tmp_path, fault, **how))
        return runs[-1]

    yield start
    for run in runs:
        for pid in run.left_behind():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_is_one_line(number: int, code: int, started: Callable[..., Run]) -> None:
    run = started(Fault("none"), repeats=100_000)
    run.wait_for_steps(3)
    # The terminal sends Ctrl-C to all; `kill` reaches the parent alone.
    send = os.killpg if number == signal.SIGINT else os.kill
    send(run.process.pid, number)
    found, told = run.end()
    assert (code, 1) == (found, len(after_the_beginning(told))), told
    assert f"ended by {signal.Signals(number).name}; " in told
    assert len(partial_trace(run.out).untraced_step_s) >= 3


def test_ranks_leave_when_whoever_started_them_is_killed(
    started: Callable[..., Run], layerwise: Callable[..., Ran]
) -> None:
    run = started(Fault("none"), repeats=100_000)
    run.wait_for_steps(3)
    run.process.kill()
    run.end()
    assert 0 == layerwise("recover", folder_of(run.out)).code
    trace = read_trace(run.out.with_name("trace.partial.jsonl.gz"))
    assert len(trace.untraced_step_s) >= 3
    assert "for a reason that nobody was left to tell" == trace.environment["ended_early"]


def test_a_full_disk_names_the_file_and_keeps_what_is_there(started: Callable[..., Run]) -> None:
    run = started(Fault("none"), repeats=5000, file_bytes=8192)
    code, told = run.end()
    assert (2, 1) == (code, len(after_the_beginning(told))), told
    assert "cannot be written: File too large; free space, or name another --out" in told
    assert f"{run.out}.partial/rank-" in told
    trace = partial_trace(run.out)
    assert len(trace.untraced_step_s) > 20
    assert "cannot be written: File too large" in trace.environment["ended_early"]


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


AT_FAULT = r"L02.mlp.down@m1 \(step 2 of the untraced run, repeat 3\)"
TORCHRUN_MESSAGES = {
    "kill": rf"rank 0: .*rank 1 died at {AT_FAULT} \(its process is gone\)",
    "stop": rf"rank 0: rank 1 gave no sign of life for {STALL_S:.0f} s "
    rf"\(its process was stopped\); last seen at {AT_FAULT}",
    "raise": r"rank 1: ExecutionError: rank 1: L02.mlp.down@m1 failed: ValueError: out of ideas",
}


@pytest.mark.parametrize("kind", TORCHRUN_MESSAGES)
def test_torchruns_ranks_end_by_themselves(kind: Any, started: Callable[..., Run]) -> None:
    run = started(Fault(kind), launcher=TORCHRUN)
    code, told = run.end()
    assert time.monotonic() - run.began_s < BOUND_S
    assert code != 0
    assert re.search(TORCHRUN_MESSAGES[kind], told), told
    trace = read_trace(run.out.with_name("trace.partial.jsonl.gz"))
    assert_steps(3, trace)
    assert "rank 1" in trace.environment["ended_early"]

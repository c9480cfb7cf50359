"""A rank's lines: written as they come, put together when the run has died, removed at its end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from layerwise.hw.ranks.journal import (
    Journal,
    StepTimes,
    assemble,
    folder_of,
    journal_of,
    note_reason,
    partial_trace_path,
    remove_own,
    salvage,
)
from layerwise.hw.ranks.progress import Progress
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.trace import Row, Trace, read_trace
from tests.conftest import Run
from tests.sim.test_imports import run_without

HEADER = Trace(
    source="measured",
    name="tiny",
    scenario={"name": "tiny"},
    kernel_set="k",
    timing="clock",
    environment={"torch": "2"},
)


def row(rank: int, repeat: int = 0) -> Row:
    return Row(
        repeat=repeat,
        step=2,
        rank=rank,
        op="L00.attn.qkv@m0",
        kind="Matmul",
        stream="compute",
        ready_s=0.0,
        start_s=0.0,
        end_s=1e-3,
    )


def write(out: Path, rank: int, seconds: Sequence[float], *, timed_ranks: Sequence[int]) -> None:
    journal = journal_of(out, rank)
    journal.begin(HEADER, num_ranks=2, timed_ranks=timed_ranks)
    for each in seconds:
        journal.times("untraced_step_s", [each])
    journal.rows([row(rank)])


def test_the_lines_of_all_ranks_are_a_trace_that_says_why_it_ended(tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl.gz"
    write(out, 0, [1e-3, 2e-3, 3e-3], timed_ranks=[0, 1])
    write(out, 1, [4e-3, 1e-3], timed_ranks=[0, 1])
    note_reason(folder_of(out), "rank 1 died")
    note_reason(folder_of(out), "rank 0 was told to go")
    saved = salvage(folder_of(out))
    assert saved is not None
    assert tmp_path / "trace.partial.jsonl.gz" == saved[0]
    trace = read_trace(saved[0])
    assert ((4e-3, 2e-3), (row(0), row(1))) == (trace.untraced_step_s, trace.rows)
    assert {"torch": "2", "ended_early": "rank 1 died", "ranks_kept": "0, 1 of 2"} == (
        trace.environment
    )


def test_of_a_stream_the_last_stage_alone_is_timed(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", 0, [9e-3], timed_ranks=[1])
    write(tmp_path / "t.jsonl", 1, [1e-3, 2e-3], timed_ranks=[1])
    trace = assemble(folder_of(tmp_path / "t.jsonl"))
    assert trace is not None
    assert (1e-3, 2e-3) == trace.untraced_step_s


def test_a_line_cut_short_is_left_out_and_all_before_it_kept(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    write(out, 0, [1e-3, 2e-3], timed_ranks=[0])
    path = folder_of(out) / "rank-0.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    trace = assemble(folder_of(out))
    assert trace is not None
    assert ((1e-3, 2e-3), ()) == (trace.untraced_step_s, trace.rows)
    assert "0 of 2" == trace.environment["ranks_kept"]


def test_a_spoiled_line_before_the_last_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    write(out, 0, [1e-3], timed_ranks=[0])
    path = folder_of(out) / "rank-0.jsonl"
    path.write_text("{" + path.read_text())
    with pytest.raises(FileFormatError, match="rank-0.jsonl: line 1 is not JSON"):
        assemble(folder_of(out))


def test_nothing_measured_is_no_trace(tmp_path: Path) -> None:
    journal_of(tmp_path / "t.jsonl", 0)
    assert salvage(folder_of(tmp_path / "t.jsonl")) is None


def test_a_full_disk_names_the_file() -> None:
    journal = Journal(Path("/dev/full"))
    with pytest.raises(FileFormatError, match="/dev/full: cannot be written: No space left"):
        journal.times("untraced_step_s", [1e-3])


def test_the_folder_goes_with_the_last_rank(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    for rank in (0, 1):
        write(out, rank, [1e-3], timed_ranks=[0])
    remove_own(out, 1)
    assert ["rank-0.jsonl"] == [path.name for path in folder_of(out).iterdir()]
    remove_own(out, 0)
    assert not folder_of(out).exists()


@pytest.mark.parametrize(
    ("out", "partial"),
    [("a.jsonl", "a.partial.jsonl"), ("a.jsonl.gz", "a.partial.jsonl.gz"), ("a", "a.partial")],
)
def test_a_partial_trace_has_a_name_of_its_own(out: str, partial: str) -> None:
    assert Path(partial) == partial_trace_path(Path(out))


def test_recover_saves_what_nobody_could(tmp_path: Path, layerwise: Run) -> None:
    out = tmp_path / "t.jsonl"
    write(out, 0, [1e-3], timed_ranks=[0])
    ran = layerwise("recover", folder_of(out))
    assert (0, f"1 step times and 1 traced repeats are kept in {tmp_path}/t.partial.jsonl\n") == (
        ran.code,
        ran.err,
    )


def test_recover_as_json_says_what_the_trace_holds(tmp_path: Path, layerwise: Run) -> None:
    out = tmp_path / "t.jsonl"
    write(out, 0, [1e-3, 2e-3], timed_ranks=[0])
    data = json.loads(layerwise("recover", folder_of(out), "--json").out)
    assert (f"{tmp_path}/t.partial.jsonl", 2) == (data["trace"], data["num_steps_timed"])


def test_recover_says_where_nothing_was_measured(tmp_path: Path, layerwise: Run) -> None:
    folder = folder_of(tmp_path / "t.jsonl")
    folder.mkdir()
    ran = layerwise("recover", folder)
    assert (0, f"{folder}: nothing was measured\n") == (ran.code, ran.err)


def test_recover_refuses_what_is_no_runs_folder(tmp_path: Path, layerwise: Run) -> None:
    ran = layerwise("recover", tmp_path / "t.jsonl.partial")
    assert (2, 1) == (ran.code, len(ran.err.splitlines()))
    assert "is no folder of a run's lines; name TRACE.partial" in ran.err


def test_recover_needs_no_torch(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    write(out, 0, [1e-3], timed_ranks=[0])
    code = f"from layerwise.scenarios.command_line import main; main(['recover', {str(folder_of(out))!r}])"
    assert 0 == run_without(("torch",), code).returncode


class Marks:
    """A stopwatch of which `done` repeats are over."""

    def __init__(self, done: int) -> None:
        self.seconds, self.done = [1.0, 2.0, 3.0], done

    def over(self, after: int, *, end_to_end: bool) -> list[float]:
        return self.seconds[after : self.done]

    def repeats(self, after: int, *, end_to_end: bool) -> Iterator[float]:
        yield from self.seconds[after:]


def kept_of(out: Path) -> tuple[float, ...]:
    trace = assemble(folder_of(out))
    assert trace is not None
    return trace.untraced_step_s


def test_repeats_are_written_once_each_when_they_are_over(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    journal = journal_of(out, 0)
    journal.begin(HEADER, num_ranks=1, timed_ranks=[0])
    times = StepTimes(
        journal, "untraced_step_s", Marks(done=2), end_to_end=True, steps_per_repeat=2
    )
    times.repeat_issued()
    assert (0.5, 1.0) == kept_of(out)
    assert [1.0, 2.0, 3.0] == times.rest(Progress())
    assert (0.5, 1.0, 1.5) == kept_of(out)


def test_what_was_over_when_a_repeat_broke_is_written(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    journal = journal_of(out, 0)
    journal.begin(HEADER, num_ranks=1, timed_ranks=[0])
    times = StepTimes(
        journal, "untraced_step_s", Marks(done=1), end_to_end=True, steps_per_repeat=1
    )
    with pytest.raises(ValueError, match="broken"), times.kept():
        raise ValueError("broken")
    assert (1.0,) == kept_of(out)

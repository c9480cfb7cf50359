"""`layerwise sweep`: rows for every point, whatever dies on the way, and none of them twice."""

from __future__ import annotations

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerwise.scenarios.rank.layouts import Layout
from layerwise.scenarios.sweep import tables as sweep_tables
from layerwise.scenarios.sweep.points import (
    COLUMNS,
    DEFAULT_COLUMNS,
    FAILED,
    OK,
    Result,
    Task,
    code_digest,
    predict_points,
)
from layerwise.scenarios.sweep.run import place_points, run_sweep
from layerwise.scenarios.sweep.spec import load_sweep
from layerwise.sim.plan.errors import FileFormatError, SpecError
from layerwise.sim.plan.scenario import paper_scenario
from layerwise.sim.plan.workload import Workload
from layerwise.sim.predict import predict
from layerwise.sim.profile import Profile
from tests.scenarios.conftest import Run

ROOT = Path(__file__).parents[3]
SMALL = """
[base]
scenario = "small.toml"
[axes]
"workload.batch_size" = [2, 4, 8]
"workload.context_tokens" = [500, 1_000]
"""
SCENARIO = """
[model]
preset = "paper-16"
num_layers = 2
[cluster]
num_gpus = 2
[workload]
num_microbatches = 2
"""
# A second or two of work, so that something can die in the middle of it.
LONG = """
[base]
paper = "layer-wise"
[axes]
"workload.num_microbatches" = [16]
"workload.context_tokens" = {from = 1_000, to = 1_399, step = 1}
"""
NUM_LONG = 400
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(SCENARIO)
    path = tmp_path / "sweep.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def long_file(tmp_path: Path) -> Path:
    path = tmp_path / "long.toml"
    path.write_text(LONG)
    return path


@pytest.fixture
def started(profile_file: Path) -> Iterator[Start]:
    """The command in a process of its own; what is left of it ends with the test."""
    running: list[subprocess.Popen[str]] = []

    def start(file: Path, out: Path, *options: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "layerwise.scenarios.command_line",
            "sweep",
            file,
            "--out",
            out,
            "--json",
            "--profile",
            profile_file,
            *options,
        ]
        running.append(
            subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def undisturbed(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What LONG gives where nothing dies, made in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "long.toml").write_text(LONG)
    sweep, out = load_sweep(folder / "long.toml"), folder / "rows.csv"
    run_sweep(sweep, out, {"h100-sxm": profile}, Deadly(0))
    return out.read_bytes()


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return json.loads(out)


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    until = time.monotonic() + 30
    while not happened():
        assert process is None or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


def has_rows(path: Path, number: int) -> Callable[[], bool]:
    return lambda: path.exists() and path.read_bytes().count(b"\n") > number


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def swept(layerwise: Run, *arguments: object) -> dict[str, Any]:
    ran = layerwise("sweep", *arguments, "--workers", 1, "--json")
    assert (0, "") == (ran.code, ran.err)
    return json.loads(ran.out)


def test_rows_are_what_predict_says(
    layerwise: Run, sweep_file: Path, profile: Profile, profile_file: Path
) -> None:
    out = sweep_file.with_name("rows.csv")
    said = swept(layerwise, sweep_file, "--out", out, "--profile", profile_file)
    sweep = load_sweep(sweep_file)
    rows = rows_of(out)

    assert {"ok": 6} == said["statuses"]
    assert [str(batch) for batch in (2, 2, 4, 4, 8, 8)] == [
        row["workload.batch_size"] for row in rows
    ]
    for row in rows:
        workload = replace(
            sweep.base.workload,
            batch_size=int(row["workload.batch_size"]),
            context_tokens=int(row["workload.context_tokens"]),
        )
        expected = predict(replace(sweep.base, workload=workload), profile)
        assert expected.tokens_per_s == float(row["tokens_per_s"])
        assert expected.peak_memory_bytes == int(row["peak_memory_bytes"])


def test_rows_of_neighbours_are_bit_for_bit_what_predict_says(
    sweep_file: Path, profile: Profile
) -> None:
    """Every column, over what neighbours share: contexts the L2 holds and not, kernels, layers."""
    sweep_file.write_text(
        '[base]\npaper = "layer-wise"\n[axes]\n'
        '"workload.context_tokens" = [40, 1_000, 5_000]\n'
        '"workload.phase" = ["decode", "prefill"]\n'
        '"workload.num_microbatches" = [0, 2]\n'
        'placement = [{strategy = "layer-wise"}, {strategy = "tensor-pipeline", tensor_parallel = 8, '
        'pipeline_parallel = 2}]\n"workload.batch_size" = [8, 32]\n'
    )
    sweep = load_sweep(sweep_file)
    placed = list(place_points(sweep, {"h100-sxm": profile}))
    points = tuple(one.point for one in placed if one.point)
    task = Task(
        points=points,
        profiles={"h100-sxm": pickle.dumps(profile)},
        columns=tuple(COLUMNS),
        code=code_digest(),
    )
    alone = [predict(point.scenario, profile) for point in points]

    assert 48 == len(points)
    assert [tuple(column(one) for column in COLUMNS.values()) for one in alone] == [
        result.values for result in predict_points(task, 600.0)
    ]


def test_a_refused_run_leaves_nothing_behind(
    sweep_file: Path, profile: Profile, tmp_path: Path
) -> None:
    """Neither the folders it made for its rows, nor a journal beside a result of another sweep."""
    sweep, out = load_sweep(sweep_file), tmp_path / "new" / "folder" / "rows.csv"

    class Refusing(Deadly):
        def submit(self, task: Task, budget_s: float) -> Future[list[Result]]:
            return super().submit(replace(task, code="0" * 12), budget_s)

    with pytest.raises(SpecError, match="runs on a worker"):
        run_sweep(sweep, out, {"h100-sxm": profile}, Refusing(0))
    assert not (tmp_path / "new").exists()

    other = tmp_path / "rows.parquet"
    run_sweep(sweep, other, {"h100-sxm": profile}, Deadly(0))
    sweep_file.write_text(SMALL.replace("[2, 4, 8]", "[2, 4]"))
    with pytest.raises(FileFormatError, match="2 of its rows are of points"):
        run_sweep(load_sweep(sweep_file), other, {"h100-sxm": profile}, Deadly(0))
    assert [other] == list(tmp_path.glob("*.parquet*"))


def test_rows_carry_the_ends_of_their_interval_unasked(
    layerwise: Run, sweep_file: Path, profile: Profile, profile_file: Path
) -> None:
    out = sweep_file.with_name("rows.csv")
    swept(layerwise, sweep_file, "--out", out, "--profile", profile_file)
    sweep, row = load_sweep(sweep_file), rows_of(out)[0]
    settings, _ = next(iter(sweep.points()))
    interval = predict(sweep.resolve(settings), profile).tokens_per_s_interval

    assert interval is not None
    assert (interval.low, interval.high) == (
        float(row["tokens_per_s_low"]),
        float(row["tokens_per_s_high"]),
    )


def test_a_belief_without_intervals_leaves_their_cells_empty(
    layerwise: Run, sweep_file: Path, profile_file: Path
) -> None:
    sweep_file.write_text(
        'beliefs = ["speed_of_light", "calibrated"]\n'
        'columns = ["tokens_per_s", "tokens_per_s_low", "tokens_per_s_high", "hbm_share"]\n' + SMALL
    )
    out = sweep_file.with_name("rows.csv")
    swept(layerwise, sweep_file, "--out", out, "--profile", profile_file)
    bound, calibrated = rows_of(out)[:2]

    assert ("speed_of_light", "", "") == (
        bound["belief"],
        bound["tokens_per_s_low"],
        bound["tokens_per_s_high"],
    )
    assert "calibrated" == calibrated["belief"]
    assert float(calibrated["tokens_per_s"]) < float(bound["tokens_per_s"])


@pytest.mark.parametrize("written", ["", 'all_reduce = "one_shot"'])
def test_a_placement_is_called_as_rank_calls_it(
    sweep_file: Path, profile: Profile, written: str
) -> None:
    four = SCENARIO.replace("num_layers = 2", "num_layers = 4").replace("gpus = 2", "gpus = 4")
    sweep_file.with_name("small.toml").write_text(f"{four}[kernels]\n{written}\n")
    sweep_file.write_text(
        '[base]\nscenario = "small.toml"\n[axes]\nplacement = [{strategy = "layer-wise"}, '
        '{strategy = "tensor-pipeline", tensor_parallel = 2, pipeline_parallel = 2}]\n'
    )
    sweep, out = load_sweep(sweep_file), sweep_file.with_name("rows.csv")
    run_sweep(sweep, out, {"h100-sxm": profile}, Deadly(0))
    layout = Layout(
        tensor_parallel=2,
        pipeline_parallel=2,
        data_parallel=1,
        all_reduce="one_shot" if written else "nccl",
    )

    assert ["layer-wise", layout.name] == [row["placement"] for row in rows_of(out)]


@pytest.mark.parametrize(("bubble", "written"), [(2.2e-16, 0.0), (1e-4, 1e-4)])
def test_the_rounding_of_a_sum_is_no_bubble(
    profile: Profile, bubble: float, written: float
) -> None:
    found = replace(predict(paper_scenario("layer-wise"), profile), bubble=bubble)

    assert written == COLUMNS["bubble_share"](found)


def test_rows_of_the_columns_that_were_the_default_before_are_refused(
    layerwise: Run, sweep_file: Path, profile_file: Path
) -> None:
    ends = ("tokens_per_s_low", "tokens_per_s_high")
    before = [name for name in DEFAULT_COLUMNS if name not in ends]
    out = sweep_file.with_name("rows.csv")
    sweep_file.write_text(f"columns = {before}\n{SMALL}")
    swept(layerwise, sweep_file, "--out", out, "--profile", profile_file)
    sweep_file.write_text(SMALL)
    ran = layerwise("sweep", sweep_file, "--out", out, "--profile", profile_file)

    assert 2 == ran.code
    assert "its columns differ: ['tokens_per_s_high', 'tokens_per_s_low']" in " ".join(
        ran.err.split()
    )


def test_a_point_that_fails_is_a_row_with_its_reason(
    layerwise: Run, sweep_file: Path, profile_file: Path
) -> None:
    sweep_file.write_text(
        '[base]\nscenario = "small.toml"\n[axes]\n'
        '"workload.context_tokens" = [1_000, 1_000_000]\n'
        'placement = [{strategy = "layer-wise"}, {strategy = "tensor-pipeline", tensor_parallel = 3}]'
    )
    out = sweep_file.with_name("rows.csv")
    said = swept(layerwise, sweep_file, "--out", out, "--profile", profile_file)
    short, refused, long, _ = rows_of(out)

    assert {"ok": 1, "does not fit": 1, "refused": 2} == said["statuses"]
    assert ("ok", "") == (short["status"], short["reason"])
    assert "does not fit" == long["status"]
    assert float(long["tokens_per_s"]) > 0
    assert "GB of 80.0 GB" in long["reason"]
    assert ("refused", "", "3") == (
        refused["status"],
        refused["tokens_per_s"],
        refused["placement.tensor_parallel"],
    )
    assert "placement.tensor_parallel=3 does not divide" in refused["reason"]


def test_a_gpu_without_a_profile_is_refused_and_the_rest_swept(
    layerwise: Run, sweep_file: Path, profile_file: Path
) -> None:
    sweep_file.write_text(
        '[base]\nscenario = "small.toml"\n[axes]\n"cluster.gpu" = ["h100-sxm", "h100-pcie"]\n'
    )
    out = sweep_file.with_name("rows.csv")
    swept(layerwise, sweep_file, "--out", out, "--profile", profile_file)

    assert ["ok", "refused"] == [row["status"] for row in rows_of(out)]
    assert "ask for 'uncalibrated'" in rows_of(out)[1]["reason"]


def test_a_profile_that_no_point_uses_is_an_error(
    layerwise: Run, sweep_file: Path, tmp_path: Path
) -> None:
    from layerwise.sim.profile import write_profile
    from tests.synthetic import synthetic_profile

    write_profile(synthetic_profile("h200"), tmp_path / "h200.json")
    out = tmp_path / "rows.csv"
    ran = layerwise("sweep", sweep_file, "--out", out, "--profile", tmp_path / "h200.json")

    assert 2 == ran.code
    assert "was measured on h200 and cluster.gpu is h100-sxm" in ran.err


def test_what_a_kill_left_is_taken_over_and_the_result_is_the_same(
    layerwise: Run, sweep_file: Path, profile_file: Path
) -> None:
    out = sweep_file.with_name("rows.csv")
    options = (sweep_file, "--out", out, "--profile", profile_file)
    swept(layerwise, *options)
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.rindex(b"ok")])
    said = swept(layerwise, *options)

    assert (1, 5) == (said["num_computed"], said["num_taken_over"])
    assert whole == out.read_bytes()


@pytest.mark.parametrize("length", [0, 7])
def test_a_header_cut_short_is_a_start(
    layerwise: Run, sweep_file: Path, profile_file: Path, length: int
) -> None:
    out = sweep_file.with_name("rows.csv")
    out.write_bytes(b"workload.batch_size"[:length])
    said = swept(layerwise, sweep_file, "--out", out, "--profile", profile_file)

    assert 6 == said["num_computed"]


def test_a_second_sweep_takes_over_what_the_first_has(
    layerwise: Run, sweep_file: Path, profile_file: Path, tmp_path: Path
) -> None:
    """Other axes in another order; the GPU's own L2 written out is the same scenario."""
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    swept(layerwise, sweep_file, "--out", first, "--profile", profile_file)
    sweep_file.write_text(
        '[base]\nscenario = "small.toml"\n[axes]\n"workload.context_tokens" = [1_000, 2_000]\n'
        '"workload.batch_size" = [8, 4]\n"cluster.gpu.l2_bytes" = ["50MiB"]\n'
    )
    said = swept(
        layerwise, sweep_file, "--out", second, "--profile", profile_file, "--reuse", first
    )
    known = {row["key"]: row["tokens_per_s"] for row in rows_of(first)}

    assert (2, 2) == (said["num_computed"], said["num_taken_over"])
    assert [True, True, False, False] == [row["key"] in known for row in rows_of(second)]
    assert all(
        known.get(row["key"], row["tokens_per_s"]) == row["tokens_per_s"] for row in rows_of(second)
    )


def test_another_profile_reuses_nothing(
    layerwise: Run, sweep_file: Path, profile: Profile, profile_file: Path, tmp_path: Path
) -> None:
    from layerwise.sim.profile import write_profile

    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    other = tmp_path / "other.json"
    write_profile(replace(profile, reserved_bytes=1), other)
    swept(layerwise, sweep_file, "--out", first, "--profile", profile_file)
    said = swept(layerwise, sweep_file, "--out", second, "--profile", other, "--reuse", first)

    assert 0 == said["num_taken_over"]


def test_a_file_with_other_rows_is_left_alone(
    layerwise: Run, sweep_file: Path, profile_file: Path
) -> None:
    out = sweep_file.with_name("rows.csv")
    options = ("sweep", sweep_file, "--out", out, "--profile", profile_file)
    layerwise(*options)
    before = out.read_bytes()
    for text, expected in (
        (
            SMALL.replace("[2, 4, 8]", "[2, 4]"),
            "2 of its rows are of points that this sweep does not",
        ),
        (SMALL + '"run.num_steps" = [4]\n', "(its columns differ: ['run.num_steps'])"),
    ):
        sweep_file.write_text(text)
        ran = layerwise(*options)
        assert 2 == ran.code
        assert expected in ran.err
        assert f"--reuse {out}" in ran.err
        assert before == out.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("notes.txt", None, "is neither .csv nor .parquet"),
        ("rows.csv", b"a,b\n1,2\n", "is not a result of `layerwise sweep`"),
        ("rows.csv", b"no line end", "is not a result of `layerwise sweep`"),
        ("rows.csv", b"\xff\xfe\n", "is not a CSV file"),
        ("rows.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_file_of_something_else_is_left_alone(
    layerwise: Run, sweep_file: Path, name: str, content: bytes | None, expected: str
) -> None:
    out = sweep_file.with_name(name)
    if content is not None:
        out.write_bytes(content)
    ran = layerwise("sweep", sweep_file, "--out", out)

    assert (2, "") == (ran.code, ran.out)
    assert expected in ran.err
    assert content == (out.read_bytes() if content is not None else None)


def test_one_process_writes_a_file(layerwise: Run, sweep_file: Path) -> None:
    import fcntl

    out = sweep_file.with_name("rows.csv")
    with out.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ran = layerwise("sweep", sweep_file, "--out", out)

    assert 2 == ran.code
    assert "another sweep is writing it" in ran.err


def test_reuse_of_a_file_without_the_columns(
    layerwise: Run, sweep_file: Path, profile_file: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    options = ("--profile", profile_file, "--reuse", first)
    swept(layerwise, sweep_file, "--out", first, *options[:2])
    sweep_file.write_text('columns = ["wire_bytes"]\n' + SMALL)
    ran = layerwise("sweep", sweep_file, "--out", second, *options)

    assert 2 == ran.code
    assert "lacks the columns ['wire_bytes']" in ran.err


def test_parquet_holds_the_same_rows_typed(
    layerwise: Run, sweep_file: Path, profile_file: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet

    plain, typed = tmp_path / "rows.csv", tmp_path / "rows.parquet"
    swept(layerwise, sweep_file, "--out", plain, "--profile", profile_file)
    swept(layerwise, sweep_file, "--out", typed, "--profile", profile_file)
    found = pyarrow.parquet.read_table(typed).to_pylist()
    again = swept(layerwise, sweep_file, "--out", typed, "--profile", profile_file)

    assert rows_of(plain) == [
        {name: "" if cell is None else str(cell) for name, cell in row.items()} for row in found
    ]
    assert (2, 500) == (found[0]["workload.batch_size"], found[0]["workload.context_tokens"])
    assert isinstance(found[0]["tokens_per_s"], float)
    assert [typed] == list(tmp_path.glob("*.parquet*"))
    assert (0, 6) == (again["num_computed"], again["num_taken_over"])


def test_kill_of_the_whole_sweep_loses_nothing(
    started: Start, long_file: Path, tmp_path: Path, undisturbed: bytes
) -> None:
    out = tmp_path / "rows.csv"
    process = started(long_file, out, "--workers", "2")
    wait_for(has_rows(out, 10), process)
    workers = children_of(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    kept = [row["key"] for row in rows_of(out) if row["key"]]
    said = ended(started(long_file, out, "--workers", "2"))

    assert 10 <= len(kept) < NUM_LONG
    assert (len(kept), NUM_LONG - len(kept)) == (said["num_taken_over"], said["num_computed"])
    assert undisturbed == out.read_bytes()


def test_an_interrupt_leaves_a_file_to_go_on_from(
    started: Start, long_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.csv"
    process = started(long_file, out, "--workers", "1")
    wait_for(has_rows(out, 5), process)
    process.send_signal(signal.SIGINT)
    said = ended(process)
    again = ended(started(long_file, out))

    assert 130 == process.returncode
    assert said["interrupted"]
    assert said["num_done"] == again["num_taken_over"] < NUM_LONG
    assert {"ok": NUM_LONG} == again["statuses"]


def test_a_killed_local_worker_is_replaced(started: Start, long_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    process = started(long_file, out, "--workers", "2")
    wait_for(has_rows(out, 10), process)
    # The last child to start is a worker; the first is multiprocessing's resource tracker.
    os.kill(children_of(process.pid)[-1], signal.SIGKILL)
    said = ended(process)

    assert {"ok": NUM_LONG} == said["statuses"]
    assert NUM_LONG == len({row["key"] for row in rows_of(out)}) == len(rows_of(out))


class Deadly:
    """Workers in this process; a task that holds `point` dies."""

    deaths = (BrokenExecutor,)

    def __init__(self, point: int) -> None:
        self.point, self.sent = point, []  # type: ignore[var-annotated]

    def window(self) -> int:
        return 3

    def submit(self, task: Task, budget_s: float) -> Future[list[Result]]:
        contexts = [point.scenario.workload.context_tokens for point in task.points]
        self.sent.append(contexts)
        future: Future[list[Result]] = Future()
        if self.point in contexts:
            future.set_exception(BrokenExecutor("gone"))
        else:
            future.set_result(predict_points(task, budget_s))
        return future


def test_a_point_that_kills_its_worker_is_found_and_tried_again_next_time(
    sweep_file: Path, profile: Profile, tmp_path: Path
) -> None:
    sweep_file.write_text(SMALL.replace("[500, 1_000]", "{from = 1, to = 8, step = 1}"))
    sweep, out = load_sweep(sweep_file), tmp_path / "rows.csv"
    workers = Deadly(5)
    died = run_sweep(sweep, out, {"h100-sxm": profile}, workers)
    rows = rows_of(out)
    again = run_sweep(sweep, out, {"h100-sxm": profile}, Deadly(0))

    assert {OK: 21, FAILED: 3} == died.statuses
    assert ["5"] * 3 == [row["workload.context_tokens"] for row in rows if row["status"] == FAILED]
    assert (3, 21) == (again.computed, again.taken_over)
    assert {OK: 24} == again.statuses


def test_workers_with_other_code_are_refused(profile: Profile) -> None:
    task = Task(points=(), profiles={}, columns=(), code="0" * 12)

    with pytest.raises(SpecError, match=code_digest()):
        predict_points(task, 1.0)


def test_a_fault_of_the_simulator_is_one_row(profile: Profile) -> None:
    """Nobody's input is wrong, and the sweep goes on."""
    from layerwise.scenarios.sweep.points import Point

    scenario = paper_scenario("layer-wise", workload=Workload(num_microbatches=16))
    broken = replace(scenario, kernels="not kernels")
    task = Task(
        points=(Point(key="k", scenario=broken, belief="calibrated"),),
        profiles={"h100-sxm": pickle.dumps(profile)},
        columns=("tokens_per_s",),
        code=code_digest(),
    )
    (found,) = predict_points(task, 1.0)

    assert (FAILED, ()) == (found.status, found.values)
    assert "Error: " in found.reason


DASK = """
import signal, sys
from distributed import LocalCluster
if __name__ == "__main__":
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    workers = [nanny.pid for nanny in cluster.workers.values()]
    print(cluster.scheduler_address, *workers, flush=True)
    sys.stdin.read()
    cluster.close()
"""


@pytest.fixture
def dask_cluster(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """A scheduler and two worker processes: its address, and their ids."""
    script = tmp_path / "cluster.py"
    script.write_text(DASK)
    paths = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        [sys.executable, script],
        env=paths,
        text=True,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout
        assert process.stdin
        address, *workers = process.stdout.readline().split()
        yield address, [int(worker) for worker in workers]
        process.stdin.close()
        process.wait(20)


def test_a_killed_dask_worker_loses_no_point_and_writes_none_twice(
    started: Start,
    long_file: Path,
    tmp_path: Path,
    dask_cluster: tuple[str, list[int]],
    undisturbed: bytes,
) -> None:
    address, workers = dask_cluster
    out = tmp_path / "rows.csv"
    process = started(long_file, out, "--dask", address)
    wait_for(has_rows(out, 10), process)
    os.kill(workers[0], signal.SIGKILL)
    journal = out.read_bytes().count(b"\n")
    said = ended(process)

    assert journal <= NUM_LONG
    assert ({"ok": NUM_LONG}, NUM_LONG) == (said["statuses"], said["num_computed"])
    assert undisturbed == out.read_bytes()


def test_dask_without_the_package(
    layerwise: Run, sweep_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    out = sweep_file.with_name("rows.csv")
    ran = layerwise("sweep", sweep_file, "--out", out, "--dask", "tcp://127.0.0.1:1")

    assert 2 == ran.code
    assert "pip install '.[cluster]'" in ran.err


def test_slurm_without_the_package(
    layerwise: Run, sweep_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    ran = layerwise("sweep", sweep_file, "--out", sweep_file.with_name("a.csv"), "--dask", "slurm")

    assert 2 == ran.code
    assert "pip install dask-jobqueue" in ran.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--workers", "-1"), "--workers=-1 is negative"),
        (("--dask", "tcp://127.0.0.1:1", "--workers", "2"), "--workers=2 has no meaning"),
        (("--dask", "nonsense://x"), "--dask='nonsense://x' does not answer"),
    ],
)
def test_bad_options(
    layerwise: Run, sweep_file: Path, options: tuple[str, ...], expected: str
) -> None:
    ran = layerwise("sweep", sweep_file, "--out", sweep_file.with_name("rows.csv"), *options)

    assert 2 == ran.code
    assert expected in ran.err


def test_progress_tells_rate_and_time_left(
    layerwise: Run, sweep_file: Path, profile_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_tables, "LINE_EVERY_S", 0.0)
    out = sweep_file.with_name("rows.csv")
    ran = layerwise("sweep", sweep_file, "--out", out, "--profile", profile_file, "--workers", 1)
    lines = ran.err.splitlines()

    assert "6 of 6 points, " in lines[-1]
    assert lines[-1].endswith("/s, 0 s left")
    assert "sweep: 6 points in" in ran.out


def test_the_example_spans_what_its_comment_says() -> None:
    sweep = load_sweep(ROOT / "scenarios" / "sweeps" / "batch-and-context.toml")

    assert 2 * 5 * 4 == sweep.num_points
    assert ["layer-wise", "tensor-pipeline"] == list(
        dict.fromkeys(str(sweep.written(settings)[0]) for settings, _ in sweep.points())
    )

"""Counters by Nsight Compute: its CSV, its errors, and the step that it profiles."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import torch

from layerwise.hw.counters.counting import Target, working_sets
from layerwise.hw.counters.ncu import CountersError, parse_kernels, parse_passes
from layerwise.hw.counters.op_counters import GROUPS, OpCounters, add_counters, join
from layerwise.hw.counters.profiled import (
    Window,
    check_scenario,
    choose_ops,
    read_buffers,
    run_scenario,
)
from layerwise.scenarios.commands.machines import COMMITTED_COUNTERS
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.files import load_scenario
from layerwise.sim.plan.scenario import compile_run
from layerwise.sim.plan.workload import Workload
from tests.conftest import Run
from tests.hw.fake_ncu import FIXED, RANGES, install, log, range_cell, table
from tests.hw.scenes import scenario

READS, HITS = GROUPS["memory"][:2]
DRAM, TIME = "dram__bytes_read.sum", "gpu__time_duration.sum"
FABRIC = GROUPS["partitions"][2]
QKV, ATTEND = "L00.attn.qkv@m0", "L00.attn.sdpa@m0"
KERNELS: list[tuple[str, str, dict[str, str]]] = [
    (QKV, "nvjet_hsh_64x8(T1 *, int)", {READS: "1,000", HITS: "750", DRAM: "16,000", TIME: "900"}),
    (ATTEND, "split_kernel", {READS: "200", HITS: "100", DRAM: "2000", TIME: "1500"}),
    (ATTEND, "merge_kernel", {READS: "50", HITS: "50", DRAM: "0", TIME: "500"}),
    ("", "memset", {READS: "7", HITS: "0", DRAM: "7", TIME: "1"}),
]
REPORT = {"ops": [QKV, ATTEND, "P0.act.send@m0"], "environment": {"gpu": "pretend H100"}}
PLAN = {"kernels": KERNELS, "report": REPORT}
SCENARIO = """
[model]
num_layers = 1
hidden_size = 64
intermediate_size = 128
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 16
[cluster]
num_gpus = 1
[workload]
batch_size = 2
context_tokens = 8
num_microbatches = 1
[run]
only_rank = 0
launch = "eager"
"""


@pytest.fixture
def scenario_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(SCENARIO)
    return path


def fake(tmp_path: Path, **plan: object) -> str:
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    return str(install(folder, PLAN | plan))


def calls(tmp_path: Path) -> list[list[str]]:
    return [
        json.loads(line) for line in (tmp_path / "bin" / "calls.jsonl").read_text().splitlines()
    ]


# --- the CSV


def test_kernels_are_joined_to_their_ops_and_numbers_lose_their_separators() -> None:
    found = list(parse_kernels(log(table(KERNELS, [READS])), [READS]))
    assert [QKV, ATTEND, ATTEND, ""] == [kernel.op for kernel in found]
    assert [1000.0, 200.0, 50.0, 7.0] == [kernel.metrics[READS] for kernel in found]
    assert "nvjet_hsh_64x8(T1 *, int)" == found[0].name


@pytest.mark.parametrize(
    ("unit", "factor"), [("byte", 1), ("Kbyte", 1e3), ("Mbyte", 1e6), ("Gbyte", 1e9)]
)
def test_bytes_come_in_any_unit(unit: str, factor: float) -> None:
    text = table([(QKV, "k", {DRAM: "1,024.5"})], [DRAM], {DRAM: unit})
    (kernel,) = parse_kernels(text, [DRAM])
    assert 1024.5 * factor == pytest.approx(kernel.metrics[DRAM])


@pytest.mark.parametrize(
    ("unit", "factor"), [("ns", 1e-9), ("usecond", 1e-6), ("ms", 1e-3), ("second", 1.0)]
)
def test_times_come_in_any_unit(unit: str, factor: float) -> None:
    text = table([(QKV, "k", {TIME: "2.5"})], [TIME], {TIME: unit})
    (kernel,) = parse_kernels(text, [TIME])
    assert 2.5 * factor == pytest.approx(kernel.metrics[TIME])


def test_columns_may_come_in_any_order() -> None:
    order = [DRAM, *reversed(FIXED), READS]
    text = table([(QKV, "k", {READS: "3", DRAM: "5"})], [READS, DRAM], columns=order)
    (kernel,) = parse_kernels(log(text), [READS, DRAM])
    assert (QKV, {READS: 3.0, DRAM: 5.0}) == (kernel.op, kernel.metrics)


def test_innermost_range_of_our_domain_names_the_op() -> None:
    outer = ("<default domain>:layerwise:none:none:none:none:none:none", "layerwise:step:none:none")
    rows = [(QKV, "k", {READS: "1", RANGES: range_cell(QKV, *outer)})]
    (kernel,) = parse_kernels(table(rows, [READS]), [READS])
    assert QKV == kernel.op


def test_ranges_of_others_name_nothing() -> None:
    cell = range_cell("", "<default domain>:layerwise:none:none", "cudnn:layerwise:none:none")
    (kernel,) = parse_kernels(table([("", "k", {READS: "1", RANGES: cell})], [READS]), [READS])
    assert "" == kernel.op


@pytest.mark.parametrize(
    ("units", "value", "message"),
    [
        ({READS: "furlong"}, "1", "comes in the unit 'furlong'"),
        ({}, "n/a", f"{READS}='n/a' of kernel k is not a number"),
    ],
)
def test_what_cannot_be_read_is_refused(units: dict[str, str], value: str, message: str) -> None:
    with pytest.raises(CountersError, match=message):
        list(parse_kernels(table([(QKV, "k", {READS: value})], [READS], units), [READS]))


def test_a_metric_without_a_column_is_refused() -> None:
    with pytest.raises(CountersError, match=f"no column {DRAM}"):
        list(parse_kernels(table([(QKV, "k", {READS: "1"})], [READS]), [DRAM]))


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        (log("", passes=1), 1),
        (log("", passes=3), 3),
        ('==PROF== Profiling "k" - 0: 0%....50%....100% - 2 passes', 2),
        ("==PROF== Disconnected", 0),
    ],
)
def test_passes_are_read_from_the_log(text: str, passes: int) -> None:
    assert passes == parse_passes(text)


def test_counters_add_up_over_kernels_of_an_op_and_over_groups() -> None:
    groups = {
        group: list(parse_kernels(table(KERNELS, metrics), metrics))
        for group, metrics in {"lookups": [READS, HITS], "times": [TIME]}.items()
    }
    qkv, attend = join(groups)
    assert (QKV, ATTEND) == (qkv.op, attend.op)
    assert ("split_kernel", "merge_kernel") == attend.kernels
    assert {READS: 250.0, HITS: 150.0, TIME: 2e-6} == pytest.approx(attend.metrics)
    assert {READS: 1250.0, HITS: 900.0, TIME: 2.9e-6} == pytest.approx(
        add_counters("both", [qkv, attend]).metrics
    )


def test_shares_of_hits() -> None:
    asked, near, far = GROUPS["partitions"]
    one = OpCounters(
        op=QKV,
        kernels=("k",),
        metrics={READS: 150.0, HITS: 120.0, asked: 100.0, near: 40.0, far: 45.0},
    )
    assert (150 * 32, 0.8, 0.85) == (one.l2_lookup_bytes, one.lookup_hit_share, one.served_share)
    without = OpCounters(op=QKV, kernels=("k",), metrics={READS: 0.0, HITS: 0.0})
    assert (0.0, None) == (without.lookup_hit_share, without.served_share)


# --- running ncu


def test_a_scenario_is_counted_and_written(
    tmp_path: Path, scenario_file: Path, layerwise: Run
) -> None:
    out = tmp_path / "counters.json"
    ran = layerwise(
        "counters", scenario_file, "--out", out, "--ncu", fake(tmp_path), "--ops", QKV, "--json"
    )
    assert (0, (str(out), 2)) == (
        ran.code,
        tuple(json.loads(ran.out)[key] for key in ("counters", "num_ops")),
    )
    data = json.loads(out.read_text())
    assert ("layerwise-counters", 1) == (data["format"], data["version"])
    assert [QKV, ATTEND] == [op["op"] for op in data["ops"]]
    assert {"memory": 1, "partitions": 1} == data["passes"]
    assert ([*REPORT["ops"]], 1, 5) == (data["ops_run"], data["num_outside"], data["warm_ups"])
    assert "Version 2025.3.1.0" == data["environment"]["ncu"]
    assert 64 == data["scenario"]["model"]["hidden_size"]


def test_each_group_is_a_run_of_its_own_that_leaves_caches_and_clocks_alone(
    tmp_path: Path, scenario_file: Path, layerwise: Run
) -> None:
    asked = ("--out", tmp_path / "c.json", "--ncu", fake(tmp_path), "--steps", "7")
    assert 0 == layerwise("counters", scenario_file, *asked).code
    ran = calls(tmp_path)
    assert len(GROUPS) == len(ran)
    for call, metrics in zip(ran, GROUPS.values(), strict=True):
        options = dict(zip(call, call[1:], strict=False))
        assert ",".join(metrics) == options["--metrics"]
        assert ("none", "none") == (options["--cache-control"], options["--clock-control"])
        assert ("application", "off") == (options["--replay-mode"], options["--profile-from-start"])
        target = json.loads(call[-1])
        assert (7, str(scenario_file)) == (target["warm_ups"], target["scenario"])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"say": "ERR_NVGPUCTRPERM - The user does not have permission"}, "run as root"),
        ({"say": "Failed to initialize the profiler: LibraryNotLoaded"}, "gVisor"),
        ({"say": "Failed to find metric regex:^lts__t_x.sum(\\.x)?$"}, "no metric lts__t_x.sum"),
        (
            {"say": "The application returned an error code (2).", "target_said": "hw: too large"},
            "ncu ended with code 1: The application returned an error code (2).; hw: too large",
        ),
        ({"kernels": []}, "no kernel ran between cudaProfilerStart and cudaProfilerStop"),
        ({"kernels": KERNELS[3:]}, "1 kernels were profiled and none is in an NVTX range"),
        ({"sleep_s": 30}, "took longer than 1 s"),
    ],
)
def test_what_goes_wrong_is_one_line(
    tmp_path: Path, scenario_file: Path, layerwise: Run, plan: dict[str, object], message: str
) -> None:
    limit = ("--timeout-s", "1") if "sleep_s" in plan else ()
    ncu, begun_s = fake(tmp_path, **plan), time.monotonic()
    out = tmp_path / "c.json"
    ran = layerwise("counters", scenario_file, "--out", out, "--ncu", ncu, *limit)
    begun, said = ran.err.splitlines()
    assert (2, "") == (ran.code, ran.out)
    assert begun.startswith("counters: tiny: ncu counts memory")
    assert said.startswith("layerwise: ") and message in said
    assert not out.exists()
    assert time.monotonic() - begun_s < 20


def test_without_ncu_is_one_line(
    tmp_path: Path, scenario_file: Path, layerwise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = layerwise("counters", scenario_file, "--out", tmp_path / "c.json")
    assert (2, 1) == (ran.code, len(ran.err.splitlines()))
    assert "ncu is not on the PATH" in ran.err


@pytest.mark.parametrize(
    ("plan", "note"),
    [
        ({"by_metric": {FABRIC: f"Failed to find metric {FABRIC}"}}, f"no metric {FABRIC}"),
        ({"other_kernels_for": FABRIC}, "other kernels than that of 'memory'"),
    ],
)
def test_an_optional_group_that_fails_is_a_note(
    tmp_path: Path, scenario_file: Path, layerwise: Run, plan: dict[str, object], note: str
) -> None:
    out, ncu = tmp_path / "c.json", fake(tmp_path, **plan)
    assert 0 == layerwise("counters", scenario_file, "--out", out, "--ncu", ncu).code
    data = json.loads(out.read_text())
    assert {"memory": 1} == data["passes"]
    assert [True] == [note in each for each in data["notes"]]
    assert all(FABRIC not in op["metrics"] for op in data["ops"])


def test_all_goes_on_after_a_failure(tmp_path: Path, scenario_file: Path, layerwise: Run) -> None:
    folder, out = tmp_path / "scenarios", tmp_path / "out"
    folder.mkdir()
    (folder / "a-graph.toml").write_text(SCENARIO.replace("eager", "graph"))
    (folder / "b-fine.toml").write_text('name = "b-fine"\n' + SCENARIO)
    options = ("--all", "--folder", folder, "--out-dir", out, "--ncu", fake(tmp_path), "--json")
    ran = layerwise("counters", *options)
    assert (1, 4) == (ran.code, len(json.loads(ran.out)["files"]))
    found = {path.name for path in out.glob("*.json")}
    assert {"b-fine.json", "reads-32MB.json", "reads-48MB.json"} == found
    logs = {path.name for path in (out / "logs").iterdir()}
    assert {f"{p[:-5]}.{group}.log" for p in found for group in GROUPS} == logs
    assert "a-graph: SpecError: run.launch='graph'" in ran.err
    assert "3 of 4 written" in ran.err


def test_committed_scenarios_can_be_counted() -> None:
    files = sorted(COMMITTED_COUNTERS.glob("*.toml"))
    assert ["h1024-cold", "h1024-warm", "h4096-paper"] == [path.stem for path in files]
    for path in files:
        check_scenario(load_scenario(path))


def test_working_sets_have_units() -> None:
    assert {"read.32MB": 32_000_000, "read.48MiB": 48 * 2**20} == working_sets("32MB, 48MiB")
    with pytest.raises(SpecError, match="--working-set='24B' is not a positive multiple"):
        working_sets("24B")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--out", "c.json"), "is not one thing to profile"),
        (
            ("--out", "c.json", "--working-set", "32MB", "--steps", "0"),
            "--steps=0 warms nothing up",
        ),
        ((), "--out=None is missing"),
        (("--all",), "--out-dir=None is missing"),
    ],
)
def test_a_question_that_lacks_something_is_refused(
    layerwise: Run, options: tuple[str, ...], says: str
) -> None:
    ran = layerwise("counters", *options)
    assert (2, 1) == (ran.code, len(ran.err.splitlines()))
    assert says in ran.err


def test_a_target_without_a_gpu_is_one_line(scenario_file: Path, tmp_path: Path) -> None:
    target = Target(
        report=str(tmp_path / "r.json"),
        warm_ups=1,
        scenario=str(scenario_file),
        ops=(),
        working_sets_bytes={},
    )
    result = subprocess.run(
        target.command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert (2, 1) == (result.returncode, len(result.stderr.strip().splitlines()))
    assert "CUDA GPUs are needed" in result.stderr


# --- what runs under ncu


class Steps:
    """Notes when the window opens and closes, and every op's range in between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        monkeypatch.setattr("layerwise.hw.instrument.observe.NvtxRanges.begin", self._begin)
        monkeypatch.setattr("layerwise.hw.instrument.observe.NvtxRanges.end", self._end)
        self.window = Window(lambda: self.seen.append("start"), lambda: self.seen.append("stop"))

    def _begin(self, placed, lane) -> None:
        self.seen.append(f"push {placed.name}")

    def _end(self, placed, lane) -> None:
        self.seen.append("pop")


CPU = torch.device("cpu")


def test_last_step_alone_is_profiled_op_by_op(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, asked = Steps(monkeypatch), scenario(pipeline_parallel=2, only_rank=1)
    names = run_scenario(asked, CPU, steps.window, warm_ups=2, only=())
    program = compile_run(asked)[2].programs[1]
    assert tuple(placed.name for placed in program) == names
    pushed = [each for each in steps.seen if each.startswith("push")]
    assert ("start", "stop") == (steps.seen[0], steps.seen[-1])
    assert sorted(f"push {name}" for name in names) == sorted(pushed)


def test_window_opens_for_chosen_ops_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    asked = scenario(workload=Workload(batch_size=4, context_tokens=8, num_microbatches=2))
    names = run_scenario(asked, CPU, steps.window, warm_ups=1, only=["L01.attn.qkv"])
    assert ("L01.attn.qkv@m0", "L01.attn.qkv@m1") == names
    opened = [steps.seen[i - 1] for i, each in enumerate(steps.seen) if each == "start"]
    assert [f"push {name}" for name in names] == opened
    assert 2 == steps.seen.count("stop")


def test_reads_are_profiled_one_pass_each() -> None:
    seen: list[str] = []
    window = Window(lambda: seen.append("start"), lambda: seen.append("stop"))
    names = read_buffers({"read.32KB": 32_000, "read.64KB": 64_000}, CPU, window, warm_ups=3)
    assert ("read.32KB", "read.64KB") == names
    assert ["start", "stop", "start", "stop"] == seen


def test_an_op_that_is_not_there_is_named() -> None:
    with pytest.raises(SpecError, match="--ops='L09.attn.qkv' is no op of this scenario"):
        choose_ops([QKV], ["L09.attn.qkv"])


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"launch": "graph"}, "run.launch='graph'"),
        ({"context_growth_tokens": 1}, "run.context_growth_tokens=1"),
        ({"persisting_weights": True}, "run.persisting_weights=True"),
    ],
)
def test_what_cannot_be_profiled_op_by_op_is_refused(run: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_scenario(scenario(**run))


def test_several_ranks_are_refused() -> None:
    with pytest.raises(SpecError, match="run.only_rank=-1 runs 2 ranks and ncu profiles one"):
        check_scenario(scenario(pipeline_parallel=2))

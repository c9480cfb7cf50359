"""`python -m layerwise.hw`: a trace, or exit code 2 and one line."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.hw import beginning
from layerwise.hw.beginning import beginning_of
from layerwise.hw.ranks.session import alone
from layerwise.hw.streams import plan_stream
from layerwise.sim.plan.files import load_scenario
from layerwise.sim.plan.scenario import RunSpec, compile_run
from layerwise.sim.trace import read_trace

SCENARIO = """
[model]
num_layers = 2
hidden_size = 64
intermediate_size = 128
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 16
dtype = "float32"
[placement]
strategy = "tensor-pipeline"
pipeline_parallel = 2
[workload]
batch_size = 2
context_tokens = 8
num_microbatches = 2
[run]
launch = "eager"
repeats = 3
"""


def run(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    scenario, out = tmp_path / "tiny.toml", tmp_path / "trace.jsonl"
    scenario.write_text(SCENARIO)
    return subprocess.run(
        [sys.executable, "-m", *command, str(scenario), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_it_starts_its_own_ranks(tmp_path: Path) -> None:
    result = run(tmp_path, "layerwise.hw", "--device", "cpu")
    assert 0 == result.returncode, result.stderr
    assert {0, 1} == {row.rank for row in read_trace(tmp_path / "trace.jsonl").rows}


def test_it_is_a_rank_under_torchrun(tmp_path: Path) -> None:
    torchrun = (
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "layerwise.hw",
    )
    result = run(tmp_path, *torchrun, "--device", "cpu")
    assert 0 == result.returncode, result.stderr
    assert {0, 1} == {row.rank for row in read_trace(tmp_path / "trace.jsonl").rows}


def test_a_wrong_world_size_is_one_line(tmp_path: Path) -> None:
    torchrun = (
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "1",
        "-m",
        "layerwise.hw",
    )
    result = run(tmp_path, *torchrun, "--device", "cpu")
    assert 0 != result.returncode
    assert "WORLD_SIZE=1; start 2 processes" in result.stderr


def test_of_too_many_processes_the_first_says_so_and_the_others_nothing(tmp_path: Path) -> None:
    torchrun = (
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "3",
        "-m",
        "layerwise.hw",
    )
    result = run(tmp_path, *torchrun, "--device", "cpu")
    said = [line for line in result.stderr.splitlines() if line.startswith("hw: ")]
    assert (1, True) == (len(said), "WORLD_SIZE=3; start 2 processes" in said[0])


def test_it_says_what_it_begins(tmp_path: Path) -> None:
    result = run(tmp_path, "layerwise.hw", "--device", "cpu")
    lines = [line for line in result.stderr.splitlines() if line.startswith("hw: ")]
    assert 1 == len(lines), result.stderr
    assert lines[0].endswith(
        "GB on rank 0, one of 2 (cpu); then 3 repeats untraced and 5 traced, of 1 step each"
    )


def test_much_memory_on_a_cpu_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.toml").write_text(SCENARIO)
    scenario = load_scenario(tmp_path / "tiny.toml")
    scenario = replace(scenario, run=RunSpec(launch="eager", only_rank=1))
    plan, session = plan_stream(compile_run(scenario), alone=True), alone("cpu", 1)
    assert 1 == len(beginning_of(scenario, session, plan, 5))
    monkeypatch.setattr(beginning, "MUCH_ON_A_CPU_BYTES", 1)
    assert beginning_of(scenario, session, plan, 5)[1].startswith("hw: warning: about 0 GB on the")


def test_a_missing_gpu_is_exit_code_2(tmp_path: Path) -> None:
    result = run(tmp_path, "layerwise.hw", "--device", "cuda")
    assert (2, 1) == (result.returncode, len(result.stderr.strip().splitlines()))
    assert "CUDA GPUs are needed" in result.stderr


def test_a_time_carries_a_unit_or_none(tmp_path: Path) -> None:
    result = run(tmp_path, "layerwise.hw", "--device", "cpu", "--timeout-s", "10GB")
    assert 2 == result.returncode
    assert "'10GB' has the unit 'GB'" in result.stderr

"""`python -m hw`: a trace, or exit code 2 and one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sim.trace import read_trace

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
        capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_it_starts_its_own_ranks(tmp_path: Path) -> None:
    result = run(tmp_path, "hw", "--device", "cpu")
    assert 0 == result.returncode, result.stderr
    assert {0, 1} == {row.rank for row in read_trace(tmp_path / "trace.jsonl").rows}


def test_it_is_a_rank_under_torchrun(tmp_path: Path) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hw")
    result = run(tmp_path, *torchrun, "--device", "cpu")
    assert 0 == result.returncode, result.stderr
    assert {0, 1} == {row.rank for row in read_trace(tmp_path / "trace.jsonl").rows}


def test_a_wrong_world_size_is_one_line(tmp_path: Path) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "hw")
    result = run(tmp_path, *torchrun, "--device", "cpu")
    assert 0 != result.returncode
    assert "WORLD_SIZE=1; start 2 processes" in result.stderr


def test_a_missing_gpu_is_exit_code_2(tmp_path: Path) -> None:
    result = run(tmp_path, "hw", "--device", "cuda")
    assert (2, 1) == (result.returncode, len(result.stderr.strip().splitlines()))
    assert "CUDA GPUs are needed" in result.stderr

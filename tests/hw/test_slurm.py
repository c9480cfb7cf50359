"""The batch file for two nodes: its shell, its directives, and a run under a stand-in for srun."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from layerwise.sim.trace import read_trace
from tests.hw.test_main import SCENARIO

ROOT = Path(__file__).parents[2]
BATCH = ROOT / "hw" / "slurm" / "two-nodes.sbatch"
JOB_ID = 123_457
PORT = 10_000 + JOB_ID % 20_000

# Starts its command once per node, as srun does with one task a node, and fails when one fails.
SRUN = """#!{bash}
printf '%s\\0' "$@" >>"$RECORD/srun"; printf '\\n' >>"$RECORD/srun"
while [[ $1 == --* ]]; do shift; done
pids=()
for ((node = 0; node < SLURM_NNODES; node++)); do
  SLURM_NODEID=$node "$@" & pids+=($!)
done
code=0
for pid in "${{pids[@]}}"; do wait "$pid" || code=$?; done
exit "$code"
"""
SCONTROL = """#!{bash}
[[ "$*" == "show hostnames pair" ]] || exit 9
printf 'localhost\\n127.0.0.1\\n'
"""
DOCTOR = """#!{bash}
echo "$SLURM_NODEID $*" >>"$RECORD/doctor"; exit "${{DOCTOR_CODE:-0}}"
"""
TORCHRUN = """#!{bash}
exec {python} -m torch.distributed.run "$@"
"""
NO_TORCHRUN = """#!{bash}
echo "torchrun $*"
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@dataclass(frozen=True)
class Job:
    """A folder with stand-ins on PATH, and what they wrote down."""

    folder: Path

    def stand_in(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script.format(bash=shutil.which("bash"), python=sys.executable))
        path.chmod(0o755)

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        slurm = {
            "SLURM_JOB_ID": str(JOB_ID),
            "SLURM_NNODES": "2",
            "SLURM_JOB_NODELIST": "pair",
            "SLURM_GPUS_ON_NODE": "1",
            "RECORD": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }
        return subprocess.run(
            ["bash", str(BATCH), *arguments],
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
            cwd=self.folder,
            env=os.environ | slurm | settings,
        )

    def calls_of_srun(self) -> list[list[str]]:
        lines = (self.folder / "srun").read_text().splitlines()
        return [line.split("\0")[:-1] for line in lines]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = Job(tmp_path)
    for name, script in (
        ("srun", SRUN),
        ("scontrol", SCONTROL),
        ("layerwise", DOCTOR),
        ("torchrun", NO_TORCHRUN),
    ):
        job.stand_in(name, script)
    return job


def option(call: list[str], name: str) -> str:
    return next(word.partition("=")[2] for word in call if word.startswith(f"--{name}="))


def test_bash_can_parse_it() -> None:
    result = subprocess.run(["bash", "-n", str(BATCH)], capture_output=True, text=True, check=False)
    assert (0, "") == (result.returncode, result.stderr)


def test_it_asks_for_two_whole_nodes_of_eight_and_one_task_each() -> None:
    directives = re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", BATCH.read_text(), re.MULTILINE)
    assert {
        "job-name": "layerwise",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "8",
        "exclusive": "",
        "mem": "0",
        "time": "00:30:00",
        "output": "layerwise-%j.log",
    } == dict(directives)


def test_directives_come_before_the_first_command() -> None:
    lines = BATCH.read_text().splitlines()
    first = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_every_node_is_examined_before_the_ranks_start(job: Job) -> None:
    job.run("scenario.toml", "trace.jsonl")
    doctor, torchrun = job.calls_of_srun()
    assert ["layerwise", "doctor"] == doctor[-2:]
    assert "torchrun" in torchrun
    assert {"0 doctor", "1 doctor"} == set((job.folder / "doctor").read_text().splitlines())


def test_a_node_that_cannot_be_examined_ends_the_job(job: Job) -> None:
    assert 3 == job.run("scenario.toml", "trace.jsonl", DOCTOR_CODE="3").returncode
    assert 1 == len(job.calls_of_srun())


def test_srun_starts_one_task_a_node_unbound_and_ends_all_with_the_first(job: Job) -> None:
    job.run("scenario.toml", "trace.jsonl")
    expected = [
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--cpu-bind=none",
        "--label",
        "--unbuffered",
        "--kill-on-bad-exit=1",
        "--wait=60",
    ]
    for call in job.calls_of_srun():
        assert expected == call[: len(expected)]


def test_ranks_meet_at_the_first_node_under_the_jobs_id(job: Job) -> None:
    job.run("scenario.toml", "trace.jsonl")
    call = job.calls_of_srun()[1]
    assert f"localhost:{PORT}" == option(call, "rdzv-endpoint")
    assert ("c10d", str(JOB_ID)) == (option(call, "rdzv-backend"), option(call, "rdzv-id"))
    assert ("2", "1", "0") == tuple(
        option(call, name) for name in ("nnodes", "nproc-per-node", "max-restarts")
    )


def test_options_after_the_trace_go_to_the_engine(job: Job) -> None:
    job.run("a scenario.toml", "trace.jsonl", "--timing", "events")
    expected = [
        "-m",
        "layerwise.hw",
        "a scenario.toml",
        "--out",
        "trace.jsonl",
        "--timing",
        "events",
    ]
    assert expected == job.calls_of_srun()[1][-7:]


def test_settings_of_nccl_are_printed_and_left_alone(job: Job) -> None:
    result = job.run("scenario.toml", "trace.jsonl", NCCL_IB_HCA="mlx5_0", NCCL_DEBUG="WARN")
    assert "NCCL's variables:\nNCCL_DEBUG=WARN\nNCCL_IB_HCA=mlx5_0\n" in result.stdout
    assert not re.search(r"^\s*(export )?NCCL_\w+=", BATCH.read_text(), re.MULTILINE)


def test_a_trace_that_is_not_there_is_a_failure(job: Job) -> None:
    result = job.run("scenario.toml", "trace.jsonl")
    assert (1, True) == (result.returncode, "there is no trace.jsonl" in result.stderr)


def test_a_missing_argument_is_a_usage_line(job: Job) -> None:
    result = job.run("scenario.toml")
    assert (2, True) == (result.returncode, result.stderr.startswith("usage: sbatch"))


def test_another_number_of_nodes_than_the_list_is_refused(job: Job) -> None:
    result = job.run("scenario.toml", "trace.jsonl", SLURM_NNODES="3")
    assert (2, "scontrol names 2 nodes and the job has 3\n") == (result.returncode, result.stderr)


def test_two_nodes_of_one_rank_yield_one_trace(job: Job) -> None:
    job.stand_in("torchrun", TORCHRUN)
    (job.folder / "tiny.toml").write_text(SCENARIO)
    result = job.run("tiny.toml", "trace.jsonl", "--device", "cpu", NCCL_DEBUG="WARN")
    assert 0 == result.returncode, result.stderr
    trace = read_trace(job.folder / "trace.jsonl")
    assert {0, 1} == {row.rank for row in trace.rows}
    # Both stand-in nodes are this machine, and the trace says so.
    told = {key: trace.environment[key] for key in ("rendezvous", "num_hosts")}
    assert {
        "rendezvous": "torchrun: 2 ranks of 2 agents, Slurm: 2 nodes",
        "num_hosts": "1",
    } == told
    assert "NCCL_DEBUG=WARN" in trace.environment["communication_settings"]
    assert os.uname().nodename not in json.dumps(trace.environment)


def test_the_documented_command_names_the_file_that_is_there() -> None:
    line = next(line for line in BATCH.read_text().splitlines() if line.startswith("#   sbatch"))
    assert (ROOT / shlex.split(line[1:].replace("`", ""))[1]).samefile(BATCH)

"""`layerwise links` on two gloo ranks: the file, its marks, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerwise.calibration.links import read_links
from layerwise.hw.links.measuring import measure_links
from layerwise.hw.links.series import Request
from layerwise.hw.ranks.local import local_ranks
from tests.conftest import Run

Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def measure(layerwise: Run, tmp_path: Path) -> Measure:
    """Time two ranks at a few payloads; what the file holds."""

    def run(*options: str) -> dict[str, Any]:
        out = tmp_path / "links.json"
        ran = layerwise("links", "--out", out, "--device", "cpu", "--sizes", "512..1KiB", *options)
        assert 0 == ran.code, ran.err
        return json.loads(out.read_text())

    return run


def test_every_op_is_timed_at_every_payload(measure: Measure, tmp_path: Path) -> None:
    data = measure()

    ops = ("send", "bidirectional", "all_reduce", "all_gather", "reduce_scatter")
    sizes = ((512, "fit"), (768, "score"), (1024, "fit"))
    assert [(op, size, use) for op in ops for size, use in sizes] == [
        (timing["op"], timing["payload_bytes"], timing["use"]) for timing in data["timings"]
    ]
    assert all(0 < t["min_s"] <= t["median_s"] <= t["max_s"] for t in data["timings"])
    assert all(t["median_s"] <= t["slowest_rank_s"] for t in data["timings"])
    assert (2, [[0, 1]]) == (data["num_ranks"], [pair["ranks"] for pair in data["pairs"]])
    assert "cpu" == data["environment"]["device"]
    # calibration reads what this writes
    found = read_links(tmp_path / "links.json", mode="eager")
    assert ["all_gather.nccl.2", "all_reduce.nccl.2", "send.nvlink4"] == list(found)
    assert [768] == [size for size, _ in found["send.nvlink4"].score]


COMMAND = (sys.executable, "-m", "layerwise.scenarios.command_line", "links")
TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run"),
    *("--standalone", "--nproc-per-node", "2", "--no-python"),
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, "--device", "cpu", "--sizes", "512..512"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_the_command_starts_ranks_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "links.json"
    ran = run(*COMMAND, "--out", out, "--ops", "send,all_gather,reduce_scatter", "--json")

    said = json.loads(ran.stdout)

    assert (0, "layerwise-timings", 1) == (ran.returncode, said.pop("format"), said.pop("version"))
    assert {"timings": str(out), "num_timings": 3} == said
    assert "FutureWarning" not in ran.stderr


def test_each_series_is_told_when_it_begins(tmp_path: Path) -> None:
    ran = run(*COMMAND, "--out", tmp_path / "links.json", "--ops", "send,all_reduce")

    told = [line for line in ran.stderr.splitlines() if line.startswith("links: ")]
    assert [
        "links: 1 of 2: send of ranks 0, 1, eager",
        "links: 2 of 2: all_reduce of ranks 0, 1, eager",
    ] == [line.rpartition(",")[0] for line in told]


def test_it_is_a_rank_under_torchrun(tmp_path: Path) -> None:
    out = tmp_path / "links.json"
    ran = run(*TORCHRUN, *COMMAND, "--out", out, "--ops", "send")

    assert 0 == ran.returncode, ran.stderr
    assert 1 == ran.stderr.count(f"{out}: 1 timings")
    assert 2 == json.loads(out.read_text())["num_ranks"]


def test_a_rank_of_torchrun_that_fails_says_why_in_a_line(tmp_path: Path) -> None:
    ran = run(*TORCHRUN, *COMMAND, "--out", tmp_path / "links.json", "--ops", "one_shot")

    said = [line for line in ran.stderr.splitlines() if line.startswith("layerwise: ")]
    assert ran.returncode
    assert said and all("'one_shot' is not available on the cpu" in line for line in said)


def test_a_spent_budget_leaves_a_readable_file(measure: Measure) -> None:
    data = measure("--budget-s", "0")

    assert ([], 0, 5) == (data["timings"], data["num_series_done"], data["num_series"])


def test_all_links_at_once_are_timed_around_a_ring(measure: Measure) -> None:
    data = measure("--ranks", "3", "--ops", "ring")

    assert [[0, 1, 2]] * 3 == [timing["ranks"] for timing in data["timings"]]
    assert all(timing["median_s"] > 0 for timing in data["timings"])


def test_what_a_file_holds_is_not_timed_again_where_it_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "links.json"
    asked = Request(
        out=out,
        device="cpu",
        ops=("send", "all_reduce"),
        modes=("eager",),
        sizes_bytes=(512,),
        score_bytes=(),
        budget_s=60.0,
        goes_on=True,
    )
    with local_ranks(2, "cpu") as ranks:
        ranks.call(measure_links, replace(asked, ops=("send",)))
        first = json.loads(out.read_text())["timings"]
        ranks.call(measure_links, asked)
    data = json.loads(out.read_text())

    assert first == data["timings"][:1]
    assert (["send", "all_reduce"], 2) == (
        [timing["op"] for timing in data["timings"]],
        data["num_series_done"],
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--ops", "one_shot"), "'one_shot' is not available on the cpu"),
        (("--ops", "broadcast"), "--ops broadcast is unknown"),
        (("--modes", "graph"), "--modes graph needs CUDA"),
        (("--modes", "lazy"), "--modes lazy is unknown"),
        (("--ranks", "1"), "1 ranks have no link"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, layerwise: Run, options: tuple[str, ...], says: str
) -> None:
    out = tmp_path / "links.json"

    ran = layerwise("links", "--out", out, "--device", "cpu", *options)
    assert (2, 1) == (ran.code, len(ran.err.splitlines()))
    assert says in ran.err
    assert not out.exists()

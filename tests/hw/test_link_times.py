"""`python -m layerwise.hw.links` on two gloo ranks: the file, its marks, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerwise.calibration.links import read_links
from layerwise.hw.links.__main__ import main
from layerwise.hw.links.measuring import measure_links
from layerwise.hw.links.series import Request
from layerwise.hw.ranks.local import local_ranks


def measure(folder: Path, *options: str) -> dict[str, Any]:
    out = folder / "links.json"
    assert 0 == main(["--out", str(out), "--device", "cpu", "--sizes", "512..1KiB", *options])
    return json.loads(out.read_text())


def test_every_op_is_timed_at_every_payload(tmp_path: Path) -> None:
    data = measure(tmp_path)

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


def test_the_command_starts_ranks_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "links.json"
    ran = subprocess.run(
        [sys.executable, "-m", "layerwise.hw.links", "--out", str(out), "--device", "cpu", "--sizes",
         "512..512", "--ops", "send,all_gather,reduce_scatter"],
        capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    assert (0, f"{out}: 3 timings\n") == (ran.returncode, ran.stdout), ran.stderr
    assert "FutureWarning" not in ran.stderr


def test_a_spent_budget_leaves_a_readable_file(tmp_path: Path) -> None:
    data = measure(tmp_path, "--budget-s", "0")

    assert ([], 0, 5) == (data["timings"], data["num_series_done"], data["num_series"])


def test_all_links_at_once_are_timed_around_a_ring(tmp_path: Path) -> None:
    data = measure(tmp_path, "--ranks", "3", "--ops", "ring")

    assert [[0, 1, 2]] * 3 == [timing["ranks"] for timing in data["timings"]]
    assert all(timing["median_s"] > 0 for timing in data["timings"])


def test_what_a_file_holds_is_not_timed_again_where_it_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "links.json"
    asked = Request(
        out=out, device="cpu", ops=("send", "all_reduce"), modes=("eager",), sizes_bytes=(512,),
        score_bytes=(), budget_s=60.0, goes_on=True,
    )  # fmt: skip
    with local_ranks(2, "cpu") as ranks:
        ranks.call(measure_links, replace(asked, ops=("send",)))
        first = json.loads(out.read_text())["timings"]
        ranks.call(measure_links, asked)
    data = json.loads(out.read_text())

    assert first == data["timings"][:1]
    assert (["send", "all_reduce"], 2) == (
        [timing["op"] for timing in data["timings"]], data["num_series_done"]
    )  # fmt: skip


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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], says: str
) -> None:
    out = tmp_path / "links.json"

    assert 2 == main(["--out", str(out), "--device", "cpu", *options])
    assert says in capsys.readouterr().err
    assert not out.exists()

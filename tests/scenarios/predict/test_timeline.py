"""The timeline: it parses, arrows join sends with their receives, slices do not overlap."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from sim.plan.scenario import compile_run, paper_scenario
from sim.predict import cost_model
from sim.simulate import simulate
from sim.trace_export import Timeline, export, message_pairs


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory, profile_file: Path) -> list[dict[str, Any]]:
    from scenarios.command_line import main

    path = tmp_path_factory.mktemp("timeline") / "paper.json.gz"
    with pytest.raises(SystemExit) as end:
        main(["paper", "--json", "--profile", str(profile_file), "--trace", str(path)])
    assert end.value.code == 0
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def test_both_placements_have_processes_of_their_own(events: list[dict[str, Any]]) -> None:
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert len(names) == len(set(names)) == 32
    assert "layer-wise, rank 15" in names
    assert "TP=8 x PP=2, rank 0" in names


def test_slices_of_a_thread_do_not_overlap(events: list[dict[str, Any]]) -> None:
    threads: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            threads[event["pid"], event["tid"]].append((event["ts"], event["dur"]))
    for slices in threads.values():
        slices.sort()
        for (start, length), (following, _) in zip(slices, slices[1:], strict=False):
            assert start + length <= following + 1e-5


def test_every_arrow_starts_at_a_send_and_ends_at_a_receive(events: list[dict[str, Any]]) -> None:
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert starts
    assert {e["tid"] for e in starts.values()} == {1}
    assert {e["tid"] for e in ends.values()} == {2}
    assert all(starts[i]["ts"] <= ends[i]["ts"] for i in starts)


def test_tokens_go_to_the_next_step() -> None:
    run = compile_run(paper_scenario("layer-wise").with_microbatches(2))
    pairs = message_pairs(run)
    assert pairs[0, 15, "P15.token.send@m1"] == (1, 0, "P0.token.recv@m1")
    assert pairs[2, 3, "P3.act.send@m0"] == (2, 4, "P4.act.recv@m0")


def test_what_is_left_out_is_said() -> None:
    scenario = paper_scenario("layer-wise").with_microbatches(2)
    run = compile_run(scenario)
    rows = simulate(run, cost_model(scenario.cluster, None), scenario.cluster).rows
    exported = export([Timeline(name="x", rows=rows, messages={})], max_slices=100)
    assert exported.num_slices == 100
    assert exported.num_left_out == len(rows) - 100
    assert exported.data["otherData"]["num_slices_left_out"] == len(rows) - 100

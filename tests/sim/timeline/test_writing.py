"""A timeline in its file: the format, who stands beside whom, arrows, counters, what is left out."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.sim.plan.errors import FileFormatError, SpecError
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.program import StepPrograms
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario, compile_run
from layerwise.sim.plan.workload import Workload
from layerwise.sim.simulate import Simulation, simulate_scenario
from layerwise.sim.timeline.chosen import Panel
from layerwise.sim.timeline.sides import MeasuredSide, PredictedSide
from layerwise.sim.timeline.writing import Written, write_timeline
from layerwise.sim.trace import Row
from layerwise.sim.traffic import walk_rank
from tests.sim.scenes import TINY, calibrated
from tests.sim.timeline.viewer import Viewed, view

STEADY = 2
PIPELINE = Scenario(
    name="pipeline",
    model=replace(TINY, num_layers=4, hidden_size=1024, intermediate_size=4096, head_dim=128),
    cluster=dgx_cluster(GPUS["h100-sxm"], 4),
    placement=PlacementSpec(),
    workload=Workload(batch_size=16, context_tokens=500, num_microbatches=4),
    run=RunSpec(num_steps=4),
)
TENSOR = replace(
    PIPELINE,
    placement=PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2, pipeline_parallel=2),
)


def simulated(scenario: Scenario = PIPELINE) -> Simulation:
    return simulate_scenario(scenario, compile_run(scenario), calibrated(scenario.cluster))


def measured(side: PredictedSide, slower: float = 1.1) -> MeasuredSide:
    """The steady step, every op slower, each rank on a clock that starts with its first op."""
    rows: list[Row] = []
    for rank in side.ranks:
        of_step = [r for r in side.simulation.rows if (r.step, r.rank) == (STEADY, rank)]
        first_s = min(row.start_s for row in of_step)
        rows += [
            replace(
                row,
                ready_s=(row.start_s - first_s) * slower,
                bound="",
                start_s=(row.start_s - first_s) * slower,
                end_s=(row.end_s - first_s) * slower,
            )
            for row in of_step
        ]
    return MeasuredSide(rows=rows, predicted=side)


def written(tmp_path: Path, *panels: Panel, max_slices: int = 300_000) -> tuple[Written, Viewed]:
    path = tmp_path / "timeline.json.gz"
    return write_timeline(panels, path, max_slices), view(path)


@pytest.fixture(scope="module")
def side() -> PredictedSide:
    return PredictedSide(simulated())


@pytest.fixture(scope="module")
def both(side: PredictedSide, tmp_path_factory: pytest.TempPathFactory) -> Viewed:
    panel = Panel(name="", sides=[side, measured(side)])
    return written(tmp_path_factory.mktemp("both"), panel)[1]


def test_predicted_and_measured_ranks_stand_in_turn(both: Viewed) -> None:
    expected = [f"rank {r} {name}" for r in range(4) for name in ("predicted", "measured")]
    assert expected == both.processes


def test_every_row_is_a_slice_of_its_own_length(side: PredictedSide, both: Viewed) -> None:
    rows = {(r.step, r.op): r.duration_s for r in side.simulation.rows if r.rank == 1}
    drawn = {
        (e["args"]["step"], e["name"]): e["dur"]
        for lane in ("compute", "send", "recv")
        for e in both.slices["rank 1 predicted", lane]
        if e["name"] != "wait"
    }
    assert rows.keys() == drawn.keys()
    for key, seconds in rows.items():
        assert drawn[key] == pytest.approx(seconds * 1e9, abs=1.01)


def test_waits_are_slices_of_one_name_and_colour_before_their_receive(both: Viewed) -> None:
    lane = both.slices["rank 1 predicted", "recv"]
    waits = [
        (one, after) for one, after in zip(lane, lane[1:], strict=False) if one["cat"] == "wait"
    ]
    assert waits
    for one, after in waits:
        assert ("wait", "grey", after["name"]) == (one["name"], one["cname"], one["args"]["op"])
        assert one["ts"] + one["dur"] == after["ts"]


def test_every_arrow_leaves_in_a_send_and_arrives_in_its_receive(both: Viewed) -> None:
    for start, end in both.arrows:
        send = both.under(start["process"], start["lane"], start["ts"])
        receive = both.under(end["process"], end["lane"], end["ts"])
        assert ("Send", "Recv") == (send["cat"], receive["cat"])
        assert start["ts"] <= end["ts"]
        kind = send["name"].split(".")[1:2]
        assert kind == receive["name"].split(".")[1:2]


def test_every_message_of_the_prediction_has_its_arrow(side: PredictedSide, both: Viewed) -> None:
    sends = sum(row.kind == "Send" for row in side.simulation.rows)
    drawn = [s for s, _ in both.arrows if s["process"].endswith("predicted")]
    # The last step's tokens are received by nobody.
    lost = sum(1 for e in both.slices["rank 3 predicted", "send"] if e["args"]["step"] == 3)
    assert sends - lost == len(drawn)


def test_hbm_counter_adds_up_to_the_traffic(side: PredictedSide, both: Viewed) -> None:
    for rank in side.ranks:
        steps = walk_rank(side.simulation.machine, rank)
        expected = sum(moved.traffic.hbm_bytes for step in steps for moved in step.values())
        assert both.area(f"rank {rank} predicted", "HBM") == pytest.approx(expected, rel=2e-3)


def test_link_counter_adds_up_to_what_the_rank_sends(side: PredictedSide, both: Viewed) -> None:
    for rank in side.ranks:
        sent = sum(
            side.simulation.account(rank, step).wire_bytes.get("nvlink4", 0)
            for step in range(len(side.run))
        )
        area = both.area(f"rank {rank} predicted", "nvlink4 out")
        assert area == pytest.approx(sent, rel=2e-3)


def test_l2_never_holds_more_than_there_is(both: Viewed) -> None:
    held = [value for _, value in both.counters["rank 0 predicted", "L2 held"]]
    assert 0 < max(held) <= GPUS["h100-sxm"].l2_bytes


def test_measured_side_has_links_and_no_memory(both: Viewed) -> None:
    found = {name for process, name in both.counters if process == "rank 0 measured"}
    assert {"nvlink4 out"} == found


def test_measured_clocks_are_explained(both: Viewed) -> None:
    assert "each rank's own clock" in both.other["clocks"]


def test_prediction_alone_needs_no_word_about_clocks(tmp_path: Path, side: PredictedSide) -> None:
    _, viewed = written(tmp_path, Panel(name="", sides=[side]))
    assert "clocks" not in viewed.other


def test_symmetric_ranks_are_all_drawn(tmp_path: Path) -> None:
    _, viewed = written(tmp_path, Panel(name="", sides=[PredictedSide(simulated(TENSOR))]))
    assert [f"rank {rank} predicted" for rank in range(4)] == viewed.processes

    def times(rank: int) -> list[tuple[str, int, int]]:
        lane = viewed.slices[f"rank {rank} predicted", "compute"]
        return [(e["name"], e["ts"], e["dur"]) for e in lane]

    assert times(0) == times(1) != times(2)


def test_panels_have_processes_of_their_own(tmp_path: Path, side: PredictedSide) -> None:
    panels = [Panel(name=name, sides=[side]) for name in ("one", "two")]
    _, viewed = written(tmp_path, *panels)
    assert [
        f"{n}, rank {r} predicted" for n in ("one", "two") for r in range(4)
    ] == viewed.processes


def steps_drawn(viewed: Viewed) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for (process, _), slices in viewed.slices.items():
        found.setdefault(process, set()).update(e["args"]["step"] for e in slices)
    return found


def num_slices_of(viewed: Viewed) -> int:
    return sum(map(len, viewed.slices.values()))


def test_whole_steps_are_left_out_and_the_steady_one_kept(
    tmp_path: Path, side: PredictedSide
) -> None:
    everything, full = written(tmp_path, Panel(name="", sides=[side]))
    limit = everything.num_slices * 6 // 10
    fewer, viewed = written(tmp_path, Panel(name="", sides=[side]), max_slices=limit)

    assert {f"rank {r} predicted": {0, STEADY} for r in side.ranks} == steps_drawn(viewed)
    assert fewer.num_slices == num_slices_of(viewed) == viewed.other["num_slices"] <= limit
    assert fewer.left_out == ("predicted: steps 1 and 3",)
    assert list(fewer.left_out) == viewed.other["left_out"]
    for (process, lane), slices in viewed.slices.items():
        assert [
            e
            for e in full.slices[process, lane]
            if e["args"]["step"] != 1 and e["args"]["step"] != 3
        ] == slices


def test_ranks_are_left_out_where_one_step_is_too_much(tmp_path: Path, side: PredictedSide) -> None:
    full, _ = written(tmp_path, Panel(name="", sides=[side]))
    some, viewed = written(tmp_path, Panel(name="", sides=[side]), max_slices=full.num_slices // 6)

    assert {"rank 0 predicted": {STEADY}, "rank 1 predicted": {STEADY}} == steps_drawn(viewed)
    assert some.left_out == ("predicted: steps 0, 1 and 3", "predicted: ranks 2 and 3")


def test_fewer_than_one_step_of_one_rank_are_refused(tmp_path: Path, side: PredictedSide) -> None:
    with pytest.raises(SpecError, match=r"trace_slices=5 is fewer than the \d+ slices .* use \d+"):
        written(tmp_path, Panel(name="", sides=[side]), max_slices=5)
    assert [] == list(tmp_path.iterdir())


def test_compressed_file_holds_what_the_plain_one_holds(
    tmp_path: Path, side: PredictedSide
) -> None:
    panels = [Panel(name="", sides=[side])]
    for name in ("plain.json", "packed.json.gz"):
        write_timeline(panels, tmp_path / name)
    packed = gzip.decompress((tmp_path / "packed.json.gz").read_bytes())
    assert (tmp_path / "plain.json").read_bytes() == packed


def test_equal_timelines_have_equal_bytes(tmp_path: Path, side: PredictedSide) -> None:
    for name in ("one.json.gz", "two.json.gz"):
        write_timeline([Panel(name="", sides=[side])], tmp_path / name)
    assert (tmp_path / "one.json.gz").read_bytes() == (tmp_path / "two.json.gz").read_bytes()


def test_names_are_only_text(tmp_path: Path, side: PredictedSide) -> None:
    hostile = 'a"b\\</script>\n\x1b\u202e'
    rows = [replace(measured(side).rows[0], op=hostile, kind="Norm", stream="compute")]
    own = MeasuredSide(rows=rows, predicted=side)
    _, viewed = written(tmp_path, Panel(name=hostile, sides=[side, own]))
    (drawn,) = viewed.slices[f"{hostile}, rank 0 measured", "compute"]
    assert hostile == drawn["name"]


def test_folder_is_no_file_to_write(tmp_path: Path, side: PredictedSide) -> None:
    with pytest.raises(FileFormatError, match="is a folder"):
        write_timeline([Panel(name="", sides=[side])], tmp_path)


def test_file_is_an_object_with_its_events(tmp_path: Path, side: PredictedSide) -> None:
    write_timeline([Panel(name="", sides=[side])], tmp_path / "t.json")
    data = json.loads((tmp_path / "t.json").read_text())
    assert ["displayTimeUnit", "traceEvents", "otherData"] == list(data)


def test_messages_of_a_rank_alone_are_not_drawn(tmp_path: Path) -> None:
    alone = replace(PIPELINE, run=replace(PIPELINE.run, only_rank=2))
    _, viewed = written(tmp_path, Panel(name="", sides=[PredictedSide(simulated(alone))]))
    assert [("rank 2 predicted", "compute")] == list(viewed.slices)
    assert [] == viewed.arrows


def test_prefill_begins_with_its_first_chunk() -> None:
    chunks = replace(
        PIPELINE,
        workload=Workload(
            phase="prefill",
            batch_size=4,
            context_tokens=1024,
            num_microbatches=2,
            prefill_chunk_tokens=256,
        ),
    )
    run: list[StepPrograms] = compile_run(chunks)
    assert len(run) > 2
    assert 0 == PredictedSide(simulated(chunks)).steady.step

"""One call for a whole host: what it asks, predicts, keeps, measures on gloo ranks, and scores."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.calibration.data import FOLDER
from layerwise.hw.errors import RankFailedError
from layerwise.hw.pool import RankPool
from layerwise.scenarios.command_line import main
from layerwise.scenarios.whole_host import driving
from layerwise.scenarios.whole_host.asked import HostRun, asked_of, host_runs
from layerwise.scenarios.whole_host.driving import HostRequest, runs_of
from layerwise.scenarios.whole_host.effects import effects_of
from layerwise.scenarios.whole_host.journal import open_journal, read_stages
from layerwise.scenarios.whole_host.machine import machine_lines
from layerwise.scenarios.whole_host.op_times import kind_of_op
from layerwise.scenarios.whole_host.predictions import (
    HostPrediction,
    check_runs,
    predict_host,
    read_prediction,
    write_prediction,
)
from layerwise.scenarios.whole_host.reporting import surveyed_pairs, write_report
from layerwise.scenarios.whole_host.scoring import HostScore, RunScore, rank, score_host
from layerwise.scenarios.whole_host.settling import gpu_of, settle
from layerwise.sim.plan.errors import FileFormatError, SpecError
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.plan.scenario import place
from layerwise.sim.profile import Profile
from layerwise.sim.trace import write_trace
from tests.conftest import Run
from tests.scenarios.fakes import trace_of
from tests.synthetic import synthetic_profile

QUICK = ["--gpus", "2", "--device", "cpu"]
LARGEST_PREDICTION_BYTES = 300_000
NUM_QUICK_RUNS = 11


@pytest.fixture(scope="module")
def profile() -> Profile:
    return synthetic_profile()


@pytest.fixture(scope="module")
def runs(profile: Profile) -> tuple[HostRun, ...]:
    """Those of two GPUs that a score needs: cheap to predict."""
    return host_runs("h100-sxm", 2, kernels=profile.kernels)


@pytest.fixture(scope="module")
def prediction(profile: Profile, runs: tuple[HostRun, ...]) -> HostPrediction:
    return replace(predict_host(runs, profile), links={})


def test_eight_gpus_run_every_placement_in_every_question() -> None:
    questions: dict[str, set[str]] = {}
    for run in host_runs("h200", 8):
        questions.setdefault(run.question, set()).add(run.placement)

    every = {"tp8pp1", "tp4pp2", "tp2pp4", "layers"}
    assert questions == dict.fromkeys(
        (
            "paper.decode",
            "small.2048",
            "paper.prefill",
            "small.2048.windows",
            "small.10000.windows",
            "small.10000",
        ),
        every,
    )


@pytest.mark.parametrize("num_gpus", [2, 4, 8])
def test_every_run_takes_all_gpus_and_one_layer_each(num_gpus: int) -> None:
    runs = host_runs("h200", num_gpus)

    assert {num_gpus} == {place(run.scenario).num_ranks for run in runs}
    assert {num_gpus} == {run.scenario.model.num_layers for run in runs}
    assert len(runs) == len({run.name for run in runs})


def test_the_headline_of_each_placement_comes_first() -> None:
    assert ["paper.decode.tp4pp1.m1", "paper.decode.tp2pp2.m2", "paper.decode.layers.m4"] == [
        run.name for run in host_runs("h200", 4)[:3]
    ]


def test_microbatches_go_from_one_to_sixteen_where_there_are_stages() -> None:
    found = [
        run.scenario.workload.num_microbatches
        for run in host_runs("h200", 8)
        if run.question == "paper.decode" and run.placement == "layers"
    ]

    assert [1, 2, 4, 8, 16] == sorted(found)


def test_the_small_model_caches_what_leaves_room_in_the_l2_and_what_does_not() -> None:
    small = [run.scenario for run in host_runs("h100-sxm", 8) if run.is_small]
    l2_bytes = small[0].cluster.gpu.l2_bytes
    used = {
        one.workload.batch_size * one.workload.context_tokens * 4 * one.model.hidden_size
        + one.model.layer_weight_bytes
        < l2_bytes
        for one in small
    }

    assert {True, False} == used
    assert 2500 >= min(s.workload.batch_size * s.workload.context_tokens for s in small)


@pytest.mark.parametrize("num_gpus", [1, 3, 16])
def test_other_hosts_are_refused(num_gpus: int) -> None:
    with pytest.raises(SpecError, match=f"--gpus={num_gpus} .*use 2, 4 or 8"):
        host_runs("h200", num_gpus)


def test_what_decides_a_run_names_no_default_and_no_repeats() -> None:
    run = host_runs("h200", 2)[0].scenario
    asked = asked_of(run)

    assert {} == asked["run"]
    assert asked == asked_of(replace(run, name="other", run=replace(run.run, repeats=3)))
    assert asked != asked_of(run.with_microbatches(7))


def test_a_prediction_comes_back_as_it_was_written(
    tmp_path: Path, prediction: HostPrediction
) -> None:
    write_prediction(prediction, tmp_path / "p.json")

    assert prediction == read_prediction(tmp_path / "p.json")


def test_a_prediction_is_never_overwritten(tmp_path: Path, prediction: HostPrediction) -> None:
    write_prediction(prediction, tmp_path / "p.json")

    with pytest.raises(FileFormatError, match="never overwritten"):
        write_prediction(prediction, tmp_path / "p.json")


def test_a_prediction_of_another_run_is_refused(
    prediction: HostPrediction, runs: tuple[HostRun, ...]
) -> None:
    other = replace(
        runs[0],
        scenario=replace(
            runs[0].scenario, workload=replace(runs[0].scenario.workload, context_tokens=9)
        ),
    )
    unknown = replace(runs[0], scenario=replace(runs[0].scenario, name="new"))

    with pytest.raises(
        SpecError, match=r"p.json: runs\..*\.workload=.*was predicted and.*would run"
    ):
        check_runs(prediction, [other], Path("p.json"))
    with pytest.raises(SpecError, match="p.json: runs='new' was not predicted"):
        check_runs(prediction, [unknown], Path("p.json"))


@pytest.mark.parametrize("path", sorted((FOLDER / "predictions").glob("host-*.json")), ids=str)
def test_committed_predictions_are_of_what_would_run(path: Path) -> None:
    found = read_prediction(path)
    assert found is not None
    runs = runs_of(
        HostRequest(out=path, num_gpus=found.num_gpus, gpu=found.gpu),
        driving.host_profile(found.gpu),
    )

    check_runs(found, runs, path)
    assert {run.name for run in runs} == set(found.runs)
    assert path.stat().st_size < LARGEST_PREDICTION_BYTES


def test_ops_of_all_layers_and_microbatches_are_of_one_kind() -> None:
    assert ["attn.qkv", "act.send", "sample"] == [
        kind_of_op(name) for name in ("L07.attn.qkv@m3", "P0.act.send@m1", "sample")
    ]


def measured(
    folder: Path, runs: tuple[HostRun, ...], profile: Profile, slower: dict[str, float]
) -> None:
    """Traces as predicted, the steps of a placement slower by a factor."""
    for run in runs:
        trace = trace_of(run.scenario, profile, num_repeats=2)
        factor = slower.get(run.placement, 1.0)
        steps = tuple(factor * seconds for seconds in trace.untraced_step_s)
        write_trace(
            replace(trace, untraced_step_s=steps), folder / "traces" / f"{run.name}.jsonl.gz"
        )


def scored(
    folder: Path,
    prediction: HostPrediction,
    runs: tuple[HostRun, ...],
    profile: Profile,
    **slower: float,
) -> HostScore:
    measured(folder, runs[:6], profile, slower)
    return score_host(folder, prediction, runs, profile)


def test_what_is_measured_as_predicted_passes_every_bar_it_reaches(
    tmp_path: Path, prediction: HostPrediction, runs: tuple[HostRun, ...], profile: Profile
) -> None:
    score = scored(tmp_path, prediction, runs, profile)

    assert [0.0] * 6 == [round(run.error, 4) for run in score.runs]
    assert [0.0] * 6 == [round(run.median_op_error or 0.0, 4) for run in score.runs]
    assert [True] * 4 + [None] == [bar.passes for bar in score.bars]
    assert tuple(run.name for run in runs[6:]) == score.missing


def test_a_placement_that_is_slower_than_predicted_misses(
    tmp_path: Path, prediction: HostPrediction, runs: tuple[HostRun, ...], profile: Profile
) -> None:
    score = scored(tmp_path, prediction, runs, profile, layers=1.5, tp2pp1=1.1)

    by_what = {bar.what: bar for bar in score.bars}
    assert round(1 - 1 / 1.5, 4) == round(
        by_what["steps at the paper's dimensions, worst error"].figure or 0.0, 4
    )
    assert by_what["steps at the paper's dimensions, worst error"].passes is False
    assert by_what["tensor-parallel steps at hidden 1024, worst error"].passes is True


def run_score(placement: str, predicted_s: float, measured_s: float) -> RunScore:
    return RunScore(
        name=placement,
        question="q",
        placement=placement,
        is_small=False,
        reduces=False,
        predicted_s=predicted_s,
        half_width=0.1,
        speed_of_light_s=0.0,
        uncalibrated_s=0.0,
        measured_s=measured_s,
        traced_ratio=1.0,
    )


def test_a_ranking_asks_of_pairs_that_lie_apart() -> None:
    (found,) = rank([run_score("a", 1.0, 2.0), run_score("b", 1.1, 1.0), run_score("c", 3.0, 1.05)])

    # b and c lie closer than their intervals: only b before a and c before a are asked.
    assert (2, 0) == (found.pairs_asked, found.pairs_right)
    assert (["a", "b", "c"], ["b", "c", "a"]) == (list(found.predicted), list(found.measured))
    assert found.best_is_right is False


def test_a_placement_is_ranked_by_its_best_run() -> None:
    (found,) = rank([run_score("a", 1.0, 9.0), run_score("a", 2.0, 1.0), run_score("b", 1.5, 2.0)])

    assert ({"a": 1.0, "b": 1.5}, {"a": 1.0, "b": 2.0}) == (found.predicted, found.measured)


def test_effects_are_ratios_of_runs_that_differ_in_one_thing() -> None:
    weights = dict.fromkeys(("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down"), (1.0, 2.0))
    base = replace(run_score("layers", 4.0, 4.0), is_small=True, ops=weights)
    named = [
        replace(base, name="small.10.layers.m2", question="small.10"),
        replace(
            base,
            name="small.20.layers.m2",
            question="small.20",
            ops=dict.fromkeys(weights, (1.5, 5.0)),
        ),
        replace(
            base, name="small.10.windows.layers.m2", question="small.10.windows", measured_s=3.0
        ),
    ]

    assert [
        ("weights", "small.20.layers.m2", 1.5, 2.5),
        ("step", "small.10.windows.layers.m2", 1.0, 0.75),
    ] == [(e.what, e.name, e.predicted, e.measured) for e in effects_of(named)]


def test_pairs_are_told_where_all_were_given_a_payload(tmp_path: Path) -> None:
    def sent(first: int, second: int, seconds: float, use: str) -> dict[str, object]:
        return {
            "op": "send",
            "mode": "graph",
            "ranks": [first, second],
            "use": use,
            "payload_bytes": 4096,
            "median_s": seconds,
        }

    (tmp_path / "links.json").write_text(
        json.dumps(
            {
                "timings": [
                    sent(0, 1, 1e-6, "fit"),
                    sent(0, 2, 3e-6, "survey"),
                    sent(0, 3, 2e-6, "fit"),
                ]
            }
        )
    )
    (found,) = surveyed_pairs(tmp_path)

    assert (3, 1e-6, 3e-6, (0, 2)) == (
        found.num_pairs,
        found.fastest_s,
        found.slowest_s,
        found.slowest_pair,
    )


def test_a_machine_with_a_slow_pair_says_which() -> None:
    def copied(first: int, second: int, rate: float) -> dict[str, object]:
        return {
            "first": first,
            "second": second,
            "there_bytes_per_s": rate,
            "back_bytes_per_s": rate,
            "intact": True,
            "problem": "",
        }

    lines = machine_lines(
        {
            "machine": {
                "driver": "1",
                "cuda": "2",
                "nccl": "3",
                "versions": {"torch": "4"},
                "gpus": [],
                "pairs": [],
                "copies": [copied(0, 1, 400e9), copied(0, 2, 100e9)],
            }
        }
    )

    assert ["copies between GPUs: 100 to 400 GB/s", "  GPUs 0 and 2: slow"] == lines[-2:]


def test_a_stage_that_fails_is_noted_and_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "stages.json"
    with open_journal(path, 10.0).stage("links", 1.0):
        raise FileFormatError("broken")
    again = open_journal(path, 10.0)

    assert ["FileFormatError: broken"] == [stage.problem for stage in read_stages(path)]
    assert 2 == again.call


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole call on two gloo ranks."""
    out = tmp_path_factory.mktemp("host")
    with suppress(SystemExit):  # what it left is looked at below
        main(["host", *QUICK, "--out", str(out)])
    return out


def test_a_call_leaves_every_file_and_a_score_of_every_run(done: Path) -> None:
    report = json.loads((done / "report.json").read_text())

    assert ({"failed.jsonl"}, set()) == (
        {"failed.jsonl"} - {path.name for path in done.iterdir()},
        {"predictions.json", "machine.json", "links.json", "report.txt", "stages.json"}
        - {path.name for path in done.iterdir()},
    )
    assert [] == report["missing"]
    assert NUM_QUICK_RUNS == len(report["runs"])
    assert all(run["ops"] and run["measured_s"] > 0 for run in report["runs"])
    assert {"send.nvlink4", "all_reduce.nccl.2", "reduce_scatter.nccl.2"} <= {
        link["name"] for link in report["links"]
    }


def test_predictions_are_older_than_the_first_measurement(done: Path) -> None:
    ages = [
        (done / name).stat().st_mtime_ns
        for name in ("predictions.json", "machine.json", "links.json")
    ]

    assert ages == sorted(ages)


def test_a_second_call_measures_nothing_again(
    done: Path, layerwise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was measured again")

    monkeypatch.setattr(RankPool, "call", refuse)
    monkeypatch.setattr(driving, "check_machine", refuse)
    before = len(read_stages(done / "stages.json"))

    assert 0 == layerwise("host", *QUICK, "--out", done).code
    assert before == len(read_stages(done / "stages.json"))


def test_a_spent_budget_leaves_a_report_of_what_is_missing(tmp_path: Path, layerwise: Run) -> None:
    assert 1 == layerwise("host", *QUICK, "--out", tmp_path, "--budget-s", "0.1").code
    report = json.loads((tmp_path / "report.json").read_text())

    assert (NUM_QUICK_RUNS, []) == (len(report["missing"]), report["runs"])


def test_a_run_that_fails_is_tried_once_more_and_costs_no_other(
    tmp_path: Path, layerwise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def fail(self: RankPool, scenario: object, **_: object) -> None:
        tried.append(getattr(scenario, "name", ""))
        raise RankFailedError("rank 1 failed")

    monkeypatch.setattr(RankPool, "measure", fail)
    monkeypatch.setattr(driving, "_time_links", lambda *_: None)
    monkeypatch.setattr(driving, "check_machine", lambda *_: None)
    monkeypatch.setattr(driving, "runs_of", lambda *_: host_runs("h200", 2, "quick")[:2])

    assert 1 == layerwise("host", *QUICK, "--out", tmp_path).code
    assert ["paper.decode.tp2pp1.m1", "paper.decode.layers.m2"] * 2 == tried


def test_a_prediction_of_another_host_is_refused_before_anything_runs(
    tmp_path: Path, layerwise: Run, done: Path
) -> None:
    data = json.loads((done / "predictions.json").read_text())
    data["runs"]["paper.decode.layers.m2"]["asked"]["workload"]["batch_size"] = 99
    (tmp_path / "predictions.json").write_text(json.dumps(data))

    ran = layerwise("host", *QUICK, "--out", tmp_path)
    assert 2 == ran.code
    assert "runs.paper.decode.layers.m2.workload" in ran.err
    assert not (tmp_path / "machine.json").exists()


def test_op_tables_need_traces_of_gpus(done: Path, layerwise: Run) -> None:
    ran = layerwise("host", *QUICK, "--out", done, "--report-only", "--level", "run")
    assert 2 == ran.code
    assert "--level='run' needs traces of GPUs" in ran.err


def test_a_report_takes_device_and_gpu_from_its_folder(done: Path, layerwise: Run) -> None:
    def names() -> set[str]:
        return {run["name"] for run in json.loads((done / "report.json").read_text())["runs"]}

    before = names()
    assert 0 == layerwise("host", "--out", done, "--report-only").code
    assert (NUM_QUICK_RUNS, before) == (len(before), names())


@pytest.mark.parametrize(
    ("option", "given", "holds"),
    [("--device", "cuda", "cpu"), ("--gpu", "h100-sxm", "h200"), ("--gpus", "4", "2")],
)
def test_what_contradicts_a_folder_is_refused_and_its_report_stays(
    done: Path, layerwise: Run, option: str, given: str, holds: str
) -> None:
    before = (done / "report.txt").read_bytes()
    ran = layerwise("host", "--out", done, "--report-only", option, given)
    assert (2, 1) == (ran.code, len(ran.err.splitlines()))
    assert f"contradicts {done}, which holds a run with {holds}" in ran.err
    assert before == (done / "report.txt").read_bytes()


H200 = ("NVIDIA H200",)


def test_the_gpu_is_the_one_that_is_here() -> None:
    found = settle(None, None, "", 2, names=("NVIDIA H100 80GB HBM3",))
    assert ("cuda", "h100-sxm") == (found.device, found.gpu)
    assert "predicted as h100-sxm: NVIDIA H100 80GB HBM3" == found.said


def test_only_where_no_gpu_is_seen_one_is_guessed_and_it_is_said() -> None:
    found = settle(None, None, "", 2, names=())
    assert ("h200", True) == (found.gpu, "no GPU is seen here: taken to be h200" in found.said)
    assert ("b200", "") == gpu_of("b200", ())


@pytest.mark.parametrize(
    ("asked", "names", "says"),
    [
        ("h100-sxm", H200, "--gpu='h100-sxm' is not what is here: NVIDIA H200"),
        ("", ("NVIDIA L40S",), "NVIDIA L40S is not a known name"),
        ("h200", (*H200, "NVIDIA B200"), "are not alike"),
    ],
)
def test_another_gpu_than_the_one_here_is_refused(
    asked: str, names: tuple[str, ...], says: str
) -> None:
    with pytest.raises(SpecError, match=says):
        settle(None, None, asked, 2, names=names)


def test_a_folder_of_other_gpus_is_not_gone_on_with(
    tmp_path: Path, prediction: HostPrediction
) -> None:
    write_prediction(prediction, tmp_path / "predictions.json")
    with pytest.raises(SpecError, match="--gpu='h100-sxm' is not what is here: NVIDIA H200"):
        settle(tmp_path, None, "", 0, names=H200)
    assert "h100-sxm" == settle(tmp_path, None, "", 0, measures=False, names=H200).gpu


def test_windows_run_where_the_l2_can_be_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(run.part == "windows" for run in host_runs("h100-sxm", 2))
    without = replace(GPUS["h100-sxm"], persisting_l2_bytes=0)
    monkeypatch.setitem(GPUS, "h100-sxm", without)
    assert not any(run.part == "windows" for run in host_runs("h100-sxm", 2))


def test_a_report_says_that_windows_were_left_out(
    tmp_path: Path, prediction: HostPrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prediction(
        replace(prediction, links={"send.nvlink4": {"512": 1e-6}}), tmp_path / "predictions.json"
    )
    request = HostRequest(out=tmp_path, num_gpus=2, gpu="h100-sxm")
    assert "windows were left out" not in write_report(request)
    spec = replace(GPUS["h100-sxm"], persisting_l2_bytes=0)
    monkeypatch.setitem(GPUS, "h100-sxm", spec)
    assert "runs with persisting windows were left out: how much of its L2" in write_report(request)


def test_a_table_of_steps_names_its_unit(done: Path) -> None:
    assert "Steps, no tracer attached: predicted before beside measured (ms)" in (
        (done / "report.txt").read_text().splitlines()
    )


def test_a_gpu_that_is_not_there_is_named(tmp_path: Path, layerwise: Run) -> None:
    import torch

    if torch.cuda.device_count() >= 2:
        pytest.skip("this machine has GPUs")
    ran = layerwise("host", "--gpus", "2", "--out", tmp_path)
    assert 2 == ran.code
    assert "2 CUDA GPUs are needed" in ran.err
    assert [] == list(tmp_path.iterdir())


def test_it_needs_a_folder_or_a_file_to_write(layerwise: Run) -> None:
    ran = layerwise("host", "--gpus", "2")
    assert (2, 1) == (ran.code, len(ran.err.splitlines()))
    assert "--out=None is missing; give --out DIR, or --predict-only FILE" in ran.err


def test_predictions_alone_are_written_to_be_committed(tmp_path: Path, layerwise: Run) -> None:
    path = tmp_path / "p.json"
    ran = layerwise("host", *QUICK, "--predict-only", path, "--json")
    said = json.loads(ran.out)

    assert ("layerwise-host", 1) == (said.pop("format"), said.pop("version"))
    assert {"predictions": str(path), "num_runs": NUM_QUICK_RUNS, "profile": None} == said
    assert [path] == list(tmp_path.iterdir())

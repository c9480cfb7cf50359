"""Traces that cannot be believed: named by row or line, and refused or shown as not scored."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerwise.hw.ranks.journal import Journal, salvage
from layerwise.scenarios.compare.joined import compare
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.profile import Profile, write_profile
from layerwise.sim.trace import COLUMNS, Trace, as_data, write_trace
from tests.scenarios.conftest import Run, fake_trace, stage_scenario


@pytest.fixture(scope="module")
def trace(profile: Profile) -> Trace:
    return fake_trace(profile)


@pytest.fixture
def said(layerwise: Run, profile_file: Path) -> Callable[..., str]:
    """What `compare` says of a trace it refuses, in one line."""

    def refused(path: Path, *more: object) -> str:
        ran = layerwise("compare", *more, "--measured", path, "--profile", profile_file)
        assert (2, "", 1) == (ran.code, ran.out, ran.err.count("\n"))
        return ran.err

    return refused


def edited(trace: Trace, path: Path, line: int, change: Callable[[dict[str, Any]], object]) -> Path:
    """The trace's file with one row's fields changed, as another program might have written it."""
    write_trace(trace, path)
    lines = path.read_text().splitlines()
    row = dict(zip(COLUMNS, json.loads(lines[line - 1]), strict=True))
    change(row)
    lines[line - 1] = json.dumps(list(row.values()))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"end_s": float("nan")}, "has a time that is not finite or negative"),
        ({"start_s": -1.0}, "has a time that is not finite or negative"),
        ({"ready_s": -1e-9}, "has a time that is not finite or negative"),
        ({"end_s": 0.0}, "before it starts"),
        ({"rank": "five"}, "rank='five' is not a int"),
    ],
)
def test_bad_times_are_named_by_line(
    said: Callable[..., str], trace: Trace, tmp_path: Path, values: dict[str, Any], expected: str
) -> None:
    path = edited(trace, tmp_path / "bad.jsonl", 7, lambda row: row.update(values))
    message = said(path)
    assert "bad.jsonl: line 7 is not a row" in message
    assert expected in message


def test_reading_that_is_no_number(said: Callable[..., str], trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    write_trace(replace(trace, measured={"mean_power_w": float("nan")}), path)
    assert "line 1: measured.mean_power_w is nan" in said(path)


def test_cut_in_the_middle_of_a_line(
    said: Callable[..., str], trace: Trace, tmp_path: Path
) -> None:
    path = tmp_path / "cut.jsonl"
    write_trace(trace, path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:20]) + lines[20][:30])
    assert "cut.jsonl: line 21 is not a row" in said(path)
    path.write_text("".join(lines[:20]))
    assert f"cut.jsonl: 19 rows where the header promises {len(trace.rows)}" in said(path)


def test_missing_op_is_named(said: Callable[..., str], trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = tuple(row for row in trace.rows if row.op != "L05.mlp.down@m2")
    write_trace(replace(trace, rows=rows), path)
    assert "predicted and not measured: step 2 rank 5 L05.mlp.down@m2" in said(path)


def test_op_missing_from_one_repeat_is_named(
    said: Callable[..., str], trace: Trace, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    gone = next(r for r in trace.rows if r.repeat == 3 and r.op == "L05.mlp.down@m2")
    write_trace(replace(trace, rows=tuple(r for r in trace.rows if r is not gone)), path)
    assert "repeat 3 lacks step 2 rank 5 L05.mlp.down@m2, which line" in said(path)


def test_row_that_is_there_twice_is_named(
    said: Callable[..., str], trace: Trace, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    write_trace(replace(trace, rows=(*trace.rows, trace.rows[1])), path)
    message = said(path)
    assert f"line {len(trace.rows) + 2}: repeat 0 step 2 rank 5 {trace.rows[1].op}" in message
    assert "stands in line 3 already" in message


def test_missing_rank_is_named(said: Callable[..., str], profile: Profile, tmp_path: Path) -> None:
    from tests.scenarios.fakes import LAYER_WISE, trace_of, two_gpus

    both, path = trace_of(two_gpus(profile, LAYER_WISE), profile), tmp_path / "two.jsonl"
    write_trace(replace(both, rows=tuple(row for row in both.rows if row.rank == 0)), path)
    assert "predicted and not measured: step 2 rank 1" in said(path)


def test_op_that_hides_as_a_replaced_message(
    said: Callable[..., str], trace: Trace, tmp_path: Path
) -> None:
    line = next(n for n, row in enumerate(trace.rows, 2) if row.kind == "Matmul")
    path = edited(trace, tmp_path / "t.jsonl", line, lambda row: row.update(replaced=True))
    assert f"line {line}: " in said(path)
    assert "is no message and cannot have been replaced" in said(path)


def test_another_kind_of_op_under_the_same_name(
    said: Callable[..., str], trace: Trace, tmp_path: Path
) -> None:
    line = next(n for n, row in enumerate(trace.rows, 2) if row.kind == "Matmul")
    path = edited(trace, tmp_path / "t.jsonl", line, lambda row: row.update(kind="Norm"))
    assert "is a Norm and its scenario has a Matmul there" in said(path)


def test_rows_of_another_model(said: Callable[..., str], trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    other = json.loads(json.dumps(trace.scenario))
    other["run"]["only_rank"] = 4  # its GPU has layer 4
    write_trace(replace(trace, scenario=other), path)
    assert "measured and not predicted: step 2 rank 5 L05.attn.norm@m0 (line" in said(path)


def test_another_model_than_the_scenario_file(
    said: Callable[..., str], trace: Trace, tmp_path: Path
) -> None:
    path, asked = tmp_path / "trace.jsonl", tmp_path / "asked.toml"
    write_trace(trace, path)
    asked.write_text('[model]\npreset = "paper-30b"\n')
    message = said(path, asked)
    assert "another scenario" in message
    assert "model.name='paper-16' where the scenario has 'paper-30b'" in message


def test_another_gpu_than_the_profile(
    said: Callable[..., str], profile: Profile, trace: Trace, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    scenario = replace(stage_scenario(profile), cluster=dgx_cluster(GPUS["h200"], 16))
    write_trace(replace(trace, scenario=as_data(scenario)), path)
    assert "cluster.gpu='h200' and profile 'synthetic' is of h100-sxm" in said(path)


def test_another_gpu_than_its_scenario_says(
    said: Callable[..., str], trace: Trace, tmp_path: Path
) -> None:
    path, l2 = tmp_path / "trace.jsonl", {"gpu": "NVIDIA H200", "l2_bytes": "62914560"}
    write_trace(replace(trace, environment=l2), path)
    assert "environment.l2_bytes='62914560' on NVIDIA H200 and a h100-sxm has 52428800" in said(
        path
    )


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"throttled": "software thermal"}, "throttled in the timed repeats: software thermal"),
        ({"throttled_after": "hardware slowdown"}, "at the end of the run: hardware slowdown"),
        ({"ended_early": "rank 1 died"}, "the run ended early: rank 1 died"),
        ({"device": "cpu"}, "it was measured on a CPU"),
    ],
)
def test_shown_and_not_scored(
    layerwise: Run,
    trace: Trace,
    profile_file: Path,
    tmp_path: Path,
    environment: dict[str, str],
    reason: str,
) -> None:
    path = tmp_path / "stage.jsonl"
    # Far off, so that it would fail the gate if it counted.
    slow = tuple(1.5 * seconds for seconds in trace.untraced_step_s)
    write_trace(replace(trace, environment=environment, untraced_step_s=slow), path)
    ran = layerwise("compare", "--measured", path, "--profile", profile_file)
    words = " ".join(ran.out.split())
    assert 0 == ran.code
    assert reason in words
    assert "stage: not scored:" in words
    assert "Median error over all ops" not in words
    data = json.loads(
        layerwise("compare", "--measured", path, "--profile", profile_file, "--json").out
    )
    assert (False, None) == (data["traces"][0]["is_scored"], data["median_op_error"])


def test_what_a_dying_run_left_behind(
    layerwise: Run, trace: Trace, profile_file: Path, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "run.jsonl.partial" / "rank-5.jsonl")
    journal.begin(replace(trace, rows=()), num_ranks=6, timed_ranks=(5,))
    journal.times("untraced_step_s", trace.untraced_step_s)
    journal.rows(row for row in trace.rows if row.repeat < 2)
    saved = salvage(tmp_path / "run.jsonl.partial")
    assert saved is not None
    ran = layerwise("compare", "--measured", saved[0], "--profile", profile_file)
    assert 0 == ran.code
    assert "stage: not scored: the run ended early" in ran.out
    journal.rows(row for row in trace.rows if row.repeat == 2 and row.op.endswith("@m0"))
    saved = salvage(tmp_path / "run.jsonl.partial")
    assert saved is not None
    half = layerwise("compare", "--measured", saved[0], "--profile", profile_file)
    assert (2, True) == (half.code, "repeat 2 lacks step 2 rank 5" in half.err)


def test_all_shapes_fitted_is_no_validation(
    layerwise: Run, trace: Trace, profile: Profile, tmp_path: Path
) -> None:
    from layerwise.sim.cost.kinds import kind_of
    from layerwise.sim.plan.ops import LocalOp
    from layerwise.sim.plan.scenario import compile_run
    from layerwise.sim.residuals import ResidualPoint

    fits = dict(profile.fits)
    for placed in compile_run(stage_scenario(profile))[2].programs[5]:
        if isinstance(placed.op, LocalOp):
            kind = kind_of(placed.op)
            point = ResidualPoint(
                place=kind.place_of(kind.features_of(placed.op), 1.0), log_ratio=0.0
            )
            fit = fits[kind.name]
            fits[kind.name] = replace(fit, residuals=(*fit.residuals, point))
    seen = replace(profile, fits=fits)
    found = compare(trace, seen)
    assert ("9 of 9 op shapes were fitted", False) == (found.fitted.told, found.stage.is_scored)
    one = replace(profile, fits=profile.fits | {"norm": fits["norm"]})
    assert ("norm tokens=32 hidden_size=4096",) == compare(trace, one).fitted.names
    write_trace(trace, tmp_path / "trace.jsonl")
    write_profile(seen, tmp_path / "profile.json")
    ran = layerwise(
        "compare", "--measured", tmp_path / "trace.jsonl", "--profile", tmp_path / "profile.json"
    )
    assert "stage: not scored: all of its 9 op shapes were fitted" in ran.out


def test_a_prediction_is_earlier_than_a_run_by_its_commit(tmp_path: Path) -> None:
    from layerwise.scenarios.predict.committed import earlier_than

    path = tmp_path / "repo" / "stage.json"
    path.parent.mkdir()
    path.write_text("{}")

    def told(run_date: str, created: str = "2026-01-01T00:00:00+00:00") -> str:
        return earlier_than(run_date, path, created).told

    assert "by its own date (2026-01-01 00:00 UTC; no git" in told("2026-01-02T00:00:00+00:00")
    assert "not committed before: made 2026-01-01" in told("2025-12-31T00:00:00+00:00")
    assert "not committed before" == told("2026-01-02T00:00:00+00:00", "")
    assert "does not say when it ran" in told("")
    _git(path.parent, "init", "-q")
    # An installed copy in an ignored folder of a checkout: git does not know the file.
    assert "no git history here" in told("2026-01-02T00:00:00+00:00")
    _git(path.parent, "add", ".")
    assert "stage.json is as in no commit" in told("2026-01-02T00:00:00+00:00")
    _git(path.parent, "commit", "-q", "-m", "predict", at="2026-01-01T12:00:00+00:00")
    assert "predicted before the run (commit " in told("2026-01-02T00:00:00+00:00")
    assert "2026-01-01 12:00 UTC)" in told("2026-01-02T00:00:00+00:00")
    assert "is later" in told("2026-01-01T11:00:00+00:00")
    path.write_text('{"changed": 1}')
    assert "stage.json is as in no commit" in told("2026-01-02T00:00:00+00:00")


def _git(folder: Path, *arguments: str, at: str = "") -> None:
    known = {"GIT_AUTHOR_DATE": at, "GIT_COMMITTER_DATE": at} if at else {}
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    subprocess.run(
        ["git", *who, "-c", "commit.gpgsign=false", *arguments],
        cwd=folder,
        check=True,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", **known},
    )


def test_a_committed_prediction_of_other_ops_is_not_this_runs(
    layerwise: Run,
    trace: Trace,
    profile: Profile,
    profile_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("layerwise.calibration.data.FOLDER", tmp_path)
    committed = {
        "format": "layerwise-prediction",
        "version": 1,
        "name": "stage",
        "created": "2026-01-01",
        "profile_digest": profile.digest,
        "predicted_step_s": 0.5,
        "ops": {"L07.mlp.down": 0.1},
    }
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "stage.json").write_text(json.dumps(committed))
    write_trace(trace, tmp_path / "trace.jsonl")
    ran = layerwise(
        "compare",
        "--measured",
        tmp_path / "trace.jsonl",
        "--profile",
        profile_file,
        "--level",
        "run",
    )
    assert "stage: not committed before: stage.json is of other ops" in ran.out

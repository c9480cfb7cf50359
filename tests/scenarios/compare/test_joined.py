"""`layerwise compare`: joins, scores, refusals, the gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.calibration.data import file_hash
from layerwise.scenarios.compare.joined import compare, op_label, require_unseen
from layerwise.scenarios.compare.scores import Times
from layerwise.sim.plan.errors import TraceMismatchError
from layerwise.sim.profile import Profile, write_profile
from layerwise.sim.residuals import ErrorScale
from layerwise.sim.trace import Trace, write_trace
from tests.scenarios.conftest import Run, fake_trace


@pytest.fixture(scope="module")
def trace(profile: Profile) -> Trace:
    return fake_trace(profile)


def test_signed_errors_of_ops_and_stage(trace: Trace, profile: Profile) -> None:
    found = compare(trace, profile)
    assert all(score.error == pytest.approx(1 / 1.02 - 1, abs=1e-6) for score in found.ops)
    assert found.median_op_error == pytest.approx(1 / 1.02 - 1, abs=1e-6)
    assert found.stage.error == pytest.approx(1 / 1.02 - 1)
    assert found.stage.passes
    assert found.stage.traced_ratio == pytest.approx(1.01)
    assert not found.trace.is_disturbed


def test_microbatches_of_one_op_are_one_line(trace: Trace, profile: Profile) -> None:
    found = compare(trace, profile)
    assert {score.count for score in found.ops} == {4}
    assert [score.op for score in found.ops][:2] == ["L05.attn.norm", "L05.attn.qkv"]
    assert op_label("L07.attn.qkv@m3") == "L07.attn.qkv"


def test_replaced_messages_are_counted_and_not_scored(trace: Trace, profile: Profile) -> None:
    found = compare(trace, profile)
    assert found.num_replaced == 8
    assert not [score for score in found.ops if "act." in score.op and "send" in score.op]


def test_shares_and_gap_add_up(trace: Trace, profile: Profile) -> None:
    lines = compare(trace, profile).of("op")
    assert 1 == pytest.approx(sum(line.share for line in lines if line.part != "step"))


@pytest.mark.parametrize("side", ["measured", "predicted"])
def test_an_unmatched_row_is_named(trace: Trace, profile: Profile, side: str) -> None:
    renamed = tuple(
        replace(row, op="L05.surprise@m0") if row.op == "L05.attn.qkv@m0" else row
        for row in trace.rows
    )
    dropped = tuple(row for row in trace.rows if row.op != "L05.attn.qkv@m0")
    rows, name = (renamed, "surprise") if side == "measured" else (dropped, "L05.attn.qkv@m0")
    with pytest.raises(TraceMismatchError, match=name):
        compare(replace(trace, rows=rows), profile)


def test_other_kernels_are_refused(trace: Trace, profile: Profile) -> None:
    with pytest.raises(TraceMismatchError, match="kernel set"):
        compare(replace(trace, kernel_set="0123"), profile)


def test_a_step_the_scenario_does_not_have_is_refused(trace: Trace, profile: Profile) -> None:
    rows = tuple(replace(row, step=99) for row in trace.rows)
    with pytest.raises(TraceMismatchError, match="step 99"):
        compare(replace(trace, rows=rows), profile)


def test_an_untraced_run_is_compared_as_a_whole(trace: Trace, profile: Profile) -> None:
    found = compare(replace(trace, rows=(), traced_step_s=()), profile)
    assert found.ops == ()
    assert ["step, no tracer attached"] == [score.name for score in found.scores]
    assert found.stage.passes


def test_fit_data_is_no_validation(trace: Trace, profile: Profile) -> None:
    fitted = replace(trace, purpose="fit")
    assert not compare(fitted, profile).stage.validation
    with pytest.raises(TraceMismatchError, match="purpose='fit'"):
        require_unseen(fitted, "0", profile)


def test_a_run_for_another_purpose_is_shown_and_not_scored(
    layerwise: Run, trace: Trace, profile_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.jsonl"
    slow = tuple(1.1 * seconds for seconds in trace.untraced_step_s)
    write_trace(replace(trace, purpose="other", untraced_step_s=slow), path)
    ran = layerwise("compare", "--measured", path, "--profile", profile_file)
    assert ran.code == 0
    assert "not scored" in ran.out
    assert "FAIL" not in ran.out


def test_a_validation_trace_that_the_fit_has_read_is_refused(
    layerwise: Run, trace: Trace, profile: Profile, tmp_path: Path
) -> None:
    path, fitted = tmp_path / "stage.jsonl", tmp_path / "fitted.json"
    write_trace(trace, path)
    write_profile(replace(profile, data_hashes={"fit-8.jsonl": file_hash(path)}), fitted)
    ran = layerwise("compare", "--measured", path, "--profile", fitted)
    assert ran.code == 2
    assert "was fitted to the same file, as fit-8.jsonl" in ran.err


def test_hash_of_a_file_is_the_one_that_profiles_record(tmp_path: Path) -> None:
    from layerwise.calibration.build import file_hash as recorded

    path = tmp_path / "file"
    path.write_text("content")
    assert recorded(path) == file_hash(path)


def test_what_ran_beside_other_ops_is_a_line_below_zero(trace: Trace, profile: Profile) -> None:
    # Every op twice as long from where it started: consecutive ones now overlap.
    longer = tuple(replace(r, end_s=r.end_s + r.duration_s) for r in trace.rows)
    parts = {line.part: line for line in compare(replace(trace, rows=longer), profile).of("run")}
    total = sum(parts[part].measured_s for part in ("work", "between", "overlapped"))
    assert parts["overlapped"].measured_s < 0
    assert 0 < parts["work"].measured_s
    assert total == pytest.approx(
        sum(
            line.measured_s
            for line in compare(replace(trace, rows=longer), profile).of("op")
            if line.part != "step"
        )
    )


def test_absolute_errors_do_not_cancel(trace: Trace, profile: Profile) -> None:
    found = compare(trace, profile)
    errors = (0.1, -0.2, 0.3, -0.4)
    ops = tuple(replace(found.ops[0], times=Times(0, 0, 1 + error, 1.0)) for error in errors)
    made = replace(found, scores=ops)
    assert made.median_op_error == pytest.approx(-0.05)
    assert made.median_absolute_op_error == pytest.approx(0.25)


def test_gate(layerwise: Run, trace: Trace, profile_file: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl.gz", tmp_path / "bad.jsonl"
    write_trace(trace, good)
    slow = tuple(1.1 * seconds for seconds in trace.untraced_step_s)
    write_trace(replace(trace, untraced_step_s=slow), bad)
    passed = layerwise("compare", "--measured", good, "--profile", profile_file)
    failed = layerwise("compare", "--measured", bad, "--profile", profile_file)
    assert (passed.code, failed.code) == (0, 1)
    assert "PASS" in passed.out
    assert "FAIL" in failed.out
    assert max(len(line) for line in passed.out.splitlines()) <= 100


def test_all_committed_traces_with_predictions_made_before(
    layerwise: Run,
    trace: Trace,
    profile: Profile,
    profile_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("layerwise.calibration.data.FOLDER", tmp_path)
    dated = replace(trace, environment=trace.environment | {"date_utc": "2026-01-02T00:00:00"})
    write_trace(dated, tmp_path / "traces" / "validation" / "stage.jsonl.gz")
    committed = {
        "format": "layerwise-prediction",
        "version": 1,
        "name": "stage",
        "profile_digest": profile.digest,
        "predicted_step_s": 0.5,
        "created": "2026-01-01",
        "ops": {op.op: 1e-3 for op in compare(trace, profile).ops},
    }
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "stage.json").write_text(json.dumps(committed))
    ran = layerwise("compare", "--all", "--json", "--profile", profile_file)
    data = json.loads(ran.out)
    assert ran.code == 0
    assert data["passes"]
    assert data["traces"][0]["predicted_before_the_run"]["predicted_step_s"] == 0.5
    assert data["traces"][0]["committed_before_the_run"]["is_before"]
    paper = json.loads(layerwise("paper", "--json", "--profile", profile_file).out)
    assert paper["measured_stages"][0]["name"] == "stage"
    assert paper["measured_stages"][0]["passes"]


def test_whole_stage_and_each_op_say_whether_the_measurement_is_inside(
    trace: Trace, profile: Profile
) -> None:
    fits = {
        kind: replace(fit, error_scale=ErrorScale.constant(0.05))
        for kind, fit in profile.fits.items()
    }
    slower = tuple(1.05 * seconds for seconds in trace.untraced_step_s)
    measured = replace(trace, untraced_step_s=slower)
    found = compare(measured, replace(profile, fits=fits, step_factor=0.1))
    down = next(score for score in found.ops if score.op.endswith("mlp.down"))

    assert 0.05 == pytest.approx(down.half_width)
    assert down.is_inside
    assert not found.stage.is_inside

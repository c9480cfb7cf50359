"""The four levels of a comparison: what they add up to, over ranks and growing steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.scenarios.compare.joined import compare
from layerwise.scenarios.compare.scores import LEVELS, Comparison, Level
from layerwise.sim.plan.errors import TraceMismatchError
from layerwise.sim.plan.scenario import PlacementSpec
from layerwise.sim.profile import Profile
from layerwise.sim.trace import Trace, write_trace
from tests.scenarios.conftest import Run
from tests.scenarios.fakes import GROWING_STEPS, LAYER_WISE, TENSORS, growing, trace_of, two_gpus


@pytest.fixture(scope="module")
def layer_wise(profile: Profile) -> Trace:
    return trace_of(two_gpus(profile, LAYER_WISE), profile)


@pytest.fixture(scope="module")
def compared(layer_wise: Trace, profile: Profile) -> Comparison:
    return compare(layer_wise, profile)


@pytest.mark.parametrize(
    ("placement", "microbatches"), [(LAYER_WISE, 4), (LAYER_WISE, 1), (TENSORS, 1)]
)
def test_the_prediction_itself_has_no_error_on_any_level(
    profile: Profile, placement: PlacementSpec, microbatches: int
) -> None:
    found = compare(trace_of(two_gpus(profile, placement, microbatches), profile), profile)
    for score in found.scores:
        if score.part in ("between", "overlapped", "step") and microbatches > 1:
            continue  # these traces have a message that was on its way before its step began
        assert score.measured_s == pytest.approx(score.predicted_s, abs=2e-9), (
            score.level,
            score.name,
        )


@pytest.mark.parametrize("level", ["op", "layer", "stage"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("side", ["predicted_s", "measured_s"])
def test_lines_add_up_to_the_step_of_each_rank(
    compared: Comparison, level: Level, rank: int, side: str
) -> None:
    lines = [line for line in compared.of(level) if line.ranks == (rank,)]
    step = next(line for line in lines if line.part == "step")
    total = sum(getattr(line, side) for line in lines if line.part != "step")
    assert getattr(step, side) == pytest.approx(total)


def test_every_belief_has_a_column(compared: Comparison) -> None:
    light, uncalibrated, calibrated, measured = compared.of("run")[-1].times.values
    assert 0 < light < uncalibrated
    assert calibrated == pytest.approx(measured)
    assert light < calibrated


def test_ops_are_of_the_ranks_that_run_them(compared: Comparison, profile: Profile) -> None:
    ranks = {score.op: score.ranks for score in compared.ops}
    assert ((0,), (1,)) == (ranks["L00.attn.qkv"], ranks["L01.attn.qkv"])
    tensors = compare(trace_of(two_gpus(profile, TENSORS, 1), profile), profile)
    assert {(0, 1)} == {score.ranks for score in tensors.ops}


def test_the_rank_that_computes_longest_paces(layer_wise: Trace, profile: Profile) -> None:
    slow = tuple(
        replace(row, end_s=row.end_s + 1e-5) if row.rank == 1 and row.op.endswith("qkv@m0") else row
        for row in layer_wise.rows
    )
    found = compare(replace(layer_wise, rows=slow), profile)
    assert found.pacing is not None
    assert 1 == found.pacing.measured
    assert found.of("run")[0].name.startswith("rank 1, traced")


def test_sums_have_narrower_intervals_than_their_widest_op(compared: Comparison) -> None:
    widest = max(score.half_width or 0.0 for score in compared.ops)
    sums = [score for score in compared.of("stage") if score.part == "work"]
    assert all(score.half_width is not None and score.half_width <= widest for score in sums)
    assert {None} == {s.half_width for s in compared.scores if s.part in ("wait", "between")}


def test_growing_steps_show_their_median_and_their_trend(profile: Profile) -> None:
    found = compare(trace_of(growing(profile), profile), profile)
    attention = next(score for score in found.ops if score.op.endswith("sdpa"))
    qkv = next(score for score in found.ops if score.op.endswith("qkv"))
    assert attention.first is not None
    assert attention.last is not None
    assert attention.first.measured_s < attention.measured_s < attention.last.measured_s
    assert attention.last.error == pytest.approx(0, abs=1e-4)
    assert qkv.first is not None
    assert qkv.last is not None
    assert qkv.first.values == pytest.approx(qkv.last.values)
    whole = found.of("run")[-1]
    assert whole.first is not None
    assert whole.first.measured_s == pytest.approx(whole.first.predicted_s)


def test_growing_run_without_a_step_is_refused(profile: Profile) -> None:
    trace = trace_of(growing(profile), profile)
    rows = tuple(row for row in trace.rows if row.step != GROWING_STEPS - 2)
    with pytest.raises(TraceMismatchError, match=f"not measured: step {GROWING_STEPS - 2} rank 0"):
        compare(replace(trace, rows=rows), profile)


def test_growing_run_with_half_a_repeat_is_refused(profile: Profile) -> None:
    trace = trace_of(growing(profile), profile)
    cut = replace(trace, untraced_step_s=trace.untraced_step_s[:-1])
    with pytest.raises(TraceMismatchError, match="its last repeat is not whole"):
        compare(cut, profile)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("which", ["two", "growing"])
def test_every_level_fits_a_terminal(
    layerwise: Run,
    profile: Profile,
    tmp_path_factory: pytest.TempPathFactory,
    level: str,
    which: str,
) -> None:
    from layerwise.sim.profile import write_profile

    folder = tmp_path_factory.mktemp("level")
    scenario = two_gpus(profile, LAYER_WISE) if which == "two" else growing(profile)
    write_trace(trace_of(scenario, profile), folder / "trace.jsonl")
    write_profile(profile, folder / "profile.json")
    ran = layerwise(
        "compare",
        "--measured",
        folder / "trace.jsonl",
        "--level",
        level,
        "--profile",
        folder / "profile.json",
    )
    assert 0 == ran.code
    assert 100 >= max(len(line) for line in ran.out.splitlines())
    assert ("from the first step to the last" in ran.out) == (which == "growing")
    assert ("paced by rank" in ran.out) == (which == "two")

"""A kernel, head size or dtype that no fit has seen: said, wide or without interval, on every page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerwise.scenarios.compare.joined import compare
from layerwise.scenarios.predict.alone import predict_run
from layerwise.scenarios.predict.beliefs import (
    OTHER_BELIEFS,
    predict_all,
    prediction_as_data,
    warnings_of,
)
from layerwise.scenarios.rank.as_data import ranking_as_data
from layerwise.scenarios.rank.ranking import rank
from layerwise.scenarios.report.answers import Explorer
from layerwise.scenarios.report.of_ranking import ranking_section
from layerwise.scenarios.report.timelines import Lanes, timeline
from layerwise.scenarios.sweep.points import COLUMNS
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import UnknownKindError
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.overrides import with_values
from layerwise.sim.plan.scenario import PlacementSpec, Scenario
from layerwise.sim.plan.workload import Workload
from layerwise.sim.predict import Prediction, predict
from layerwise.sim.profile import Profile, write_profile
from layerwise.sim.residuals import ErrorScale
from layerwise.sim.resolve import resolve
from layerwise.sim.trace import Row, Trace, as_data
from layerwise.sim.uncertainty import BETWEEN_GPUS
from tests.scenarios.conftest import Run
from tests.synthetic import synthetic_profile

SMALL = ModelSpec(
    name="small",
    num_layers=4,
    hidden_size=1024,
    intermediate_size=4096,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=128,
)
FITTED = KernelChoice(
    decode_attention="cudnn", prefill_attention="cudnn", chunked_prefill_attention="flash"
)
FP8 = "float8_e4m3fn"


def measured_profile() -> Profile:
    """Intervals of 5 % around every kind of op, fitted to the kernels of the shipped profiles."""
    made = synthetic_profile()
    fits = {
        kind: replace(fit, error_scale=ErrorScale.constant(0.05)) for kind, fit in made.fits.items()
    }
    return replace(made, kernels=FITTED, fits=fits)


PROFILE = measured_profile()
DECODE = Scenario(
    name="asked",
    model=SMALL,
    cluster=dgx_cluster(GPUS["h100-sxm"], 1),
    placement=PlacementSpec(strategy="layer-wise"),
    workload=Workload(batch_size=8, context_tokens=1000, num_microbatches=1),
    kernels=FITTED,
)
PROMPT = replace(
    DECODE, workload=replace(DECODE.workload, phase="prefill", prefill_chunk_tokens=500)
)
# What is asked, the change, and the aspect under which it is told.
CHANGES = {
    "decode kernel": (DECODE, {"kernels.decode_attention": "flash"}, "kernel"),
    "prompt kernel": (PROMPT, {"kernels.prefill_attention": "flash"}, "kernel"),
    "chunk kernel": (PROMPT, {"kernels.chunked_prefill_attention": "cudnn"}, "kernel"),
    "head size": (
        DECODE,
        {"model.head_dim": 64, "model.num_attention_heads": 16, "model.num_key_value_heads": 16},
        "head_dim",
    ),
    "float32": (DECODE, {"model.dtype": "float32"}, "dtype"),
    "fp8 weights": (DECODE, {"model.weight_dtype": FP8}, "stored_dtype"),
    "fp8 KV": (DECODE, {"model.kv_dtype": FP8}, "stored_dtype"),
}

# Attention in float32 runs the `math` kernel, which no form describes.
NO_WIDTH = ("float32", "fp8 weights", "fp8 KV")


def pair(name: str) -> tuple[Scenario, Prediction, Prediction]:
    """The changed scenario, and what is predicted before and after the change."""
    before, values, _ = CHANGES[name]
    after = with_values(before, values)
    return after, predict(before, PROFILE), predict(after, PROFILE)


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_flagged_and_said(name: str) -> None:
    scenario, before, after = pair(name)

    assert (0, False) == (before.num_extrapolated_ops, after.num_extrapolated_ops == 0)
    assert () == before.unfitted
    assert any("; " in said for said in warnings_of(scenario, after)[1:])


@pytest.mark.parametrize("name", CHANGES)
def test_json_carries_it(name: str) -> None:
    _, _, after = pair(name)
    found = prediction_as_data(after)["unfitted"]

    assert {CHANGES[name][2]} == {one["aspect"] for one in found}
    assert [] == [one for one in found if not one["said"]]


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in NO_WIDTH])
def test_its_interval_is_wider_than_the_fitted_one(name: str) -> None:
    _, before, after = pair(name)
    assert before.uncertainty
    assert after.uncertainty

    assert before.uncertainty.half_width < after.uncertainty.half_width


@pytest.mark.parametrize("name", NO_WIDTH)
def test_what_nobody_knows_the_width_of_has_no_interval(name: str) -> None:
    _, before, after = pair(name)

    assert (True, None) == (before.interval is not None, after.interval)


@pytest.mark.parametrize("name", ["decode kernel", "prompt kernel", "chunk kernel"])
def test_another_kernel_changes_no_time(name: str) -> None:
    _, before, after = pair(name)

    assert before.step_s == after.step_s


def test_the_step_factor_narrows_nothing_that_no_fit_has_seen() -> None:
    scenario, _, after = pair("decode kernel")
    narrow = predict(scenario, replace(PROFILE, step_factor=1e-9))
    assert after.uncertainty
    assert narrow.uncertainty
    unseen = {kind: part for kind, part in after.uncertainty.by_kind.items() if "unfitted" in kind}

    of_gpus = narrow.uncertainty.by_kind[BETWEEN_GPUS]
    expected = math.hypot(unseen["decode_attention, unfitted"], of_gpus)
    assert expected == pytest.approx(narrow.uncertainty.half_width)


def test_the_other_beliefs_know_no_kernel_and_say_so() -> None:
    scenario, _, after = pair("decode kernel")
    beliefs = predict_all(resolve(scenario, PROFILE))

    assert [["flash"], ["flash"], ["flash"]] == [
        [one.used for one in each.unfitted] for each in beliefs.shown
    ]
    assert warnings_of(scenario, after)[-1].endswith(f"{OTHER_BELIEFS}.")


def test_uncalibrated_a_kernel_is_told_where_one_was_named() -> None:
    unnamed = replace(DECODE, kernels=None)
    named, silent = (
        warnings_of(each, predict(each, None, "uncalibrated")) for each in (DECODE, unnamed)
    )

    assert () == silent
    assert "the published constants are of 'FlashAttention-3'" in named[0]


def test_a_gpu_of_ones_own_without_a_float32_peak_is_asked_for_it() -> None:
    cluster = replace(DECODE.cluster, gpu=replace(GPUS["h100-sxm"], peak_float32_flops_per_s=0.0))
    scenario = replace(DECODE, cluster=cluster, model=replace(SMALL, dtype="float32"))
    told = warnings_of(scenario, predict(scenario, None))

    assert ["give cluster.gpu.peak_float32_flops_per_s" in each for each in told].count(True) == 1


def test_predict_prints_and_writes_it(tmp_path: Path, layerwise: Run) -> None:
    path, base = tmp_path / "asked.toml", tmp_path / "profile.json"
    write_profile(PROFILE, base)
    path.write_text(
        '[model]\npreset = "paper-16"\n[cluster]\nnum_gpus = 1\n[workload]\nbatch_size = 4\n'
        'num_microbatches = 1\n[kernels]\ndecode_attention = "flash"\n'
        'prefill_attention = "cudnn"\nchunked_prefill_attention = "flash"\n'
    )
    printed = layerwise("predict", str(path), "--profile", str(base)).out
    written = layerwise("predict", str(path), "--profile", str(base), "--json").out

    assert "decode attention runs 'flash'" in " ".join(printed.split())
    assert ["flash"] == [one["used"] for one in json.loads(written)["predicted"]["unfitted"]]


def heads_of_64() -> ModelSpec:
    return replace(SMALL, num_attention_heads=16, num_key_value_heads=16, head_dim=64)


def ranked(model: ModelSpec) -> dict[str, Any]:
    work = Workload(batch_size=8, context_tokens=1000)
    return ranking_as_data(rank(model, dgx_cluster(GPUS["h100-sxm"], 4), work, PROFILE))


def test_a_ranking_carries_it_row_by_row_and_says_it_once() -> None:
    found = ranked(heads_of_64())
    aspects = {one["aspect"] for row in found["candidates"] for one in row["unfitted"]}
    (said,) = [each for each in found["what_is_unfitted"] if "decode attention" in each]

    assert {"head_dim"} == aspects
    assert "heads of 64 dimensions; the profile was fitted to 128" in said


def test_a_ranking_of_what_was_fitted_says_nothing() -> None:
    assert [] == ranked(SMALL)["what_is_unfitted"]


def test_rows_of_unknown_width_are_all_tied() -> None:
    found = ranked(replace(SMALL, weight_dtype=FP8))
    rest = [row for row in found["candidates"] if row["placement"] != found["winner"]["placement"]]

    assert {row["placement"] for row in rest} == set(found["tied"])
    assert "nobody measured how far off the kernels are" in found["verdict"]


def test_a_ranking_prints_its_caution(tmp_path: Path, layerwise: Run) -> None:
    path, base = tmp_path / "config.json", tmp_path / "profile.json"
    write_profile(PROFILE, base)
    path.write_text(
        json.dumps(
            {
                "model_type": "llama",
                "num_hidden_layers": 4,
                "hidden_size": 1024,
                "vocab_size": 0,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_key_value_heads": 16,
            }
        )
    )
    out = layerwise(
        "rank",
        "--model",
        str(path),
        "--gpu",
        "h100-sxm",
        "--gpus",
        "2",
        "--batch",
        "8",
        "--context",
        "1000",
        "--profile",
        str(base),
    ).out

    assert "heads of 64 dimensions; the profile was fitted to 128" in " ".join(out.split())


def test_the_page_of_a_ranking_says_it() -> None:
    found = json.loads(json.dumps(ranked(heads_of_64())))
    section = ranking_section(Path("rank.json"), found, "r")

    assert "heads of 64 dimensions" in "".join(map(str, section.parts))


def test_the_explorer_says_it() -> None:
    model = replace(heads_of_64(), num_layers=8)
    explorer = Explorer(profiles=lambda _: PROFILE, models={"small": model}, start="small")
    answer = explorer.answer({"model": "small", "gpus": "8", "batch": "8", "context": "1000"})

    assert any("heads of 64 dimensions" in note for note in answer["notes"]), answer


def test_a_sweep_may_ask_for_it() -> None:
    _, before, after = pair("decode kernel")

    assert ("", True) == (COLUMNS["unfitted"](before), "'flash'" in str(COLUMNS["unfitted"](after)))


def measured(scenario: Scenario) -> Trace:
    """The prediction's own middle step, as if measured."""
    scenario = replace(scenario, run=replace(scenario.run, only_rank=0, num_steps=4))
    run = predict_run(scenario, PROFILE)
    rows = tuple(replace(row, bound="") for row in run.rows if row.step in run.repeated_steps)
    return Trace(
        source="measured",
        name="run",
        scenario=as_data(scenario),
        rows=rows,
        timing="cupti",
        kernel_set=run.kernel_set(0, run.repeated_steps),
        untraced_step_s=(run.step_s,) * 3,
        traced_step_s=(run.step_s,) * 3,
        environment={"gpu": "pretend H100"},
    )


def test_a_comparison_flags_the_ops_and_says_that_no_fit_has_seen_the_kernel() -> None:
    found = compare(measured(with_values(DECODE, CHANGES["decode kernel"][1])), PROFILE)
    flagged = {score.name.partition(".")[2] for score in found.ops if score.unfitted}

    assert {"attn.sdpa"} == flagged
    assert all(score.extrapolated for score in found.ops if score.unfitted)
    assert any("decode attention runs 'flash'" in each for each in found.cautions)


def test_a_comparison_of_fitted_kernels_has_no_such_caution() -> None:
    assert () == compare(measured(DECODE), PROFILE).cautions


def test_a_comparison_without_an_interval_is_neither_inside_nor_outside() -> None:
    found = compare(measured(replace(DECODE, model=replace(SMALL, kv_dtype=FP8))), PROFILE)

    assert (None, None) == (found.stage.interval, found.stage.is_inside)


def test_an_op_of_unknown_width_has_no_interval_beside_its_measurement() -> None:
    found = compare(measured(replace(DECODE, model=replace(SMALL, kv_dtype=FP8))), PROFILE)
    without = {s.name.partition(".")[2] for s in found.ops if s.interval is None}

    assert {"attn.sdpa", "attn.rope"} == without


def test_a_timeline_refuses_a_kind_of_op_without_a_colour() -> None:
    row = Row(
        repeat=0,
        step=0,
        rank=0,
        op="x",
        kind="Strange",
        stream="compute",
        ready_s=0.0,
        start_s=0.0,
        end_s=1.0,
        bound="hbm",
    )

    with pytest.raises(UnknownKindError, match=r"'Strange' is not listed in timelines.GROUPS"):
        timeline("", [Lanes(side="predicted", rows=[row])])

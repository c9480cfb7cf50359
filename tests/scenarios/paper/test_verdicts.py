"""Verdicts on made-up predictions: each rule at both sides of its edge."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.scenarios.paper import mechanism
from layerwise.scenarios.paper import verdicts as claims
from layerwise.scenarios.paper.verdicts import Beliefs, Reading, Verdict
from layerwise.sim.memory import MemoryBudget
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.workload import Phase
from layerwise.sim.predict import Prediction

GPU = GPUS["h100-sxm"]
BUDGET = MemoryBudget(
    rank=0,
    weight_bytes=10**9,
    kv_bytes=10**9,
    activation_bytes=0,
    communication_bytes=0,
    slack_bytes=0,
    reserved_bytes=0,
    capacity_bytes=80 * 10**9,
)


def prediction(tokens_per_s: float, **changes: object) -> Prediction:
    step_s = 128 / tokens_per_s
    made = Prediction(
        belief="calibrated",
        placement="made up",
        phase="decode",
        num_stages=2,
        num_microbatches=1,
        tokens_per_s=tokens_per_s,
        step_s=step_s,
        from_idle_s=2 * step_s,
        bubble=0.0,
        share={"hbm": 1.0, "l2": 0.0, "compute": 0.0, "link": 0.0, "launch": 0.0},
        wire_bytes={"nvlink4": 10**6},
        memory=(BUDGET,),
        busy_share_by_rank=(1.0, 1.0),
        is_steady=True,
    )
    return replace(made, **changes)  # pyright: ignore[reportArgumentType]


def beliefs(light: float, calibrated: float | None) -> Beliefs:
    return Beliefs(
        speed_of_light=prediction(light),
        uncalibrated=prediction(light),
        calibrated=prediction(calibrated) if calibrated else None,
    )


def reading(
    name: str, baseline: float, layer_wise: float, *, phase: Phase = "decode", fits: bool = True
) -> Reading:
    return Reading(
        name=name,
        phase=phase,
        context_tokens=10,
        baseline_tokens_per_s=baseline,
        layer_wise_tokens_per_s=layer_wise,
        fits=fits,
        is_asked=name == "asked",
    )


ASKED = (reading("asked", 100.0, 90.0),)


@pytest.mark.parametrize(
    ("light", "calibrated", "expected"),
    [
        (200.0, 109.0, "holds"),
        (200.0, 92.0, "holds"),
        (200.0, 111.0, "does not hold"),
        (200.0, 90.0, "does not hold"),
        (99.0, 95.0, "cannot hold"),
        (99.0, None, "cannot hold"),
        (200.0, None, "not decided"),
    ],
)
def test_rate_and_its_inverse_get_the_same_verdict(
    light: float, calibrated: float | None, expected: Verdict
) -> None:
    believed = beliefs(light, calibrated)
    rate = claims.judge_rate("k", "baseline", 100.0, believed, GPU, ASKED)
    inverse = claims.judge_rate("k", "baseline", 1 / 100.0, believed, GPU, ASKED, inverse=True)
    assert (rate.verdict, rate.reading) == (expected, "asked")
    assert (inverse.verdict, inverse.reading) == (expected, "asked")
    assert ("in this reading" in rate.figure) == (expected == "cannot hold")


@pytest.mark.parametrize(("pinned_share", "expected"), [(0.9, "cannot hold"), (1.1, "not decided")])
def test_a_bound_that_pinning_could_lift_forbids_nothing(
    pinned_share: float, expected: Verdict
) -> None:
    saved_s = 15 * GPU.l2_bytes / GPU.hbm_bytes_per_s
    claimed_step_s = 8e-3
    light = prediction(128 / (claimed_step_s + saved_s / pinned_share), num_microbatches=16)
    believed = Beliefs(speed_of_light=light, uncalibrated=light, calibrated=None)
    judged = claims.judge_rate("k", "layer-wise", 128 / claimed_step_s, believed, GPU, ASKED)
    assert judged.verdict == expected


def test_no_rate_holds_where_memory_does_not_suffice() -> None:
    full = replace(BUDGET, kv_bytes=100 * 10**9)
    believed = Beliefs(
        speed_of_light=prediction(200.0, memory=(full,)),
        uncalibrated=prediction(150.0, memory=(full,)),
        calibrated=prediction(100.0, memory=(full,)),
    )
    judged = claims.judge_rate("k", "baseline", 100.0, believed, GPU, ASKED)
    assert judged.verdict == "cannot hold"
    assert "101.0 GB on a GPU of 80 GB" in judged.figure


def test_a_rate_out_of_reach_names_the_readings_that_reach_it() -> None:
    readings = (
        *ASKED,
        reading("half", 200.0, 150.0),
        reading("large", 1.0, 150.0, fits=False),
        reading("prompts", 9e3, 9e3, phase="prefill"),
        reading("slow", 100.0, 80.0),
    )
    judged = claims.judge_rate("k", "layer-wise", 120.0, beliefs(100.0, 90.0), GPU, readings)
    assert judged.verdict == "cannot hold"
    assert judged.remark == "would hold in: half (150 tokens/s)"


def test_a_rate_that_is_exceeded_holds_elsewhere_only_within_its_tolerance() -> None:
    readings = (*ASKED, reading("half", 200.0, 0.0), reading("prompts", 52.0, 0.0, phase="prefill"))
    judged = claims.judge_rate("k", "baseline", 50.0, beliefs(200.0, 100.0), GPU, readings)
    assert judged.verdict == "does not hold"
    assert judged.remark == "would hold in: prompts (52 tokens/s)"


@pytest.mark.parametrize(
    ("light", "calibrated", "expected"),
    [
        (200.0, 116.0, "holds"),
        (200.0, 150.0, "holds"),
        (200.0, 110.0, "does not hold"),
        (114.0, 110.0, "cannot hold"),
    ],
)
def test_gain_is_over_the_best_baseline(light: float, calibrated: float, expected: Verdict) -> None:
    baselines = (beliefs(200.0, 100.0), beliefs(190.0, 80.0))
    judged = claims.judge_gain(baselines, beliefs(light, calibrated), GPU, ASKED)
    assert judged.verdict == expected
    assert ("in this reading" in judged.figure) == (expected == "cannot hold")


def test_a_gain_that_does_not_hold_names_the_readings_where_it_would() -> None:
    readings = (*ASKED, reading("half", 100.0, 90.0), reading("prompts", 100.0, 159.0))
    judged = claims.judge_gain((beliefs(200.0, 100.0),), beliefs(200.0, 90.0), GPU, readings)
    assert judged.remark.endswith("; would hold in: prompts (+59.0%)")


def test_cache_is_decided_by_capacity() -> None:
    claimed, weights = mechanism.judge_cache(MODELS["paper-16"], GPU, prediction(1.0))
    assert (claimed.verdict, weights.verdict) == ("cannot hold", "cannot hold")
    assert "210 times the 52.4 MB L2" in claimed.figure
    assert "536.9 MB, are 10.2 times the 52.4 MB L2" in weights.figure


def test_a_layer_that_fits_holds_whatever_the_paper_s_size() -> None:
    small = replace(
        MODELS["paper-16"],
        hidden_size=1024,
        num_attention_heads=8,
        num_key_value_heads=8,
        intermediate_size=4096,
    )
    claimed, weights = mechanism.judge_cache(small, GPU, prediction(1.0))
    assert (claimed.verdict, weights.verdict) == ("cannot hold", "holds")
    assert "33.6 MB, are 0.64 times" in weights.figure


@pytest.mark.parametrize(
    ("model", "expected", "total"),
    [("paper-16", "cannot hold", "4.30 B"), ("paper-30b", "holds", "30.07 B")],
)
def test_parameters_are_counted(model: str, expected: Verdict, total: str) -> None:
    judged = mechanism.judge_parameters(MODELS[model])
    assert judged.verdict == expected
    assert total in judged.figure


@pytest.mark.parametrize(("idlest", "expected"), [(0.995, "holds"), (0.9, "does not hold")])
def test_equal_load_is_a_spread(idlest: float, expected: Verdict) -> None:
    ours = prediction(1.0, busy_share_by_rank=(1.0, idlest))
    assert mechanism.judge_equal_load("asked", prediction(1.0), ours).verdict == expected


def test_waits_for_messages_count_as_communication() -> None:
    waiting = prediction(1.0, bubble=0.2, num_microbatches=2)
    assert mechanism.link_share(waiting) == pytest.approx(0.2)
    judged = mechanism.judge_communication("asked", GPU, prediction(2.0), waiting)
    assert judged.verdict == "does not hold"


def test_the_schedule_s_own_bubble_is_not_communication() -> None:
    # One microbatch over two stages leaves half of a steady stream idle, links or not.
    assert mechanism.link_share(prediction(1.0, bubble=0.5, num_microbatches=1)) == pytest.approx(
        0.0
    )


def test_a_batch_from_idle_fills_and_drains_its_pipeline() -> None:
    # Two microbatches through four stages of a prefill: 3 of 5 slots are idle.
    prefill = prediction(1.0, bubble=0.7, phase="prefill", num_stages=4, num_microbatches=2)
    assert mechanism.link_share(prefill) == pytest.approx(0.1)

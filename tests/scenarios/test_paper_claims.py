"""Verdicts on made-up predictions: each rule at both sides of its edge."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scenarios import paper_claims as claims
from scenarios.paper_claims import Beliefs, Verdict
from sim.memory import MemoryBudget
from sim.plan.hardware import GPUS
from sim.plan.model import MODELS
from sim.predict import Prediction

BUDGET = MemoryBudget(
    rank=0, weight_bytes=10**9, kv_bytes=10**9, activation_bytes=0, communication_bytes=0,
    reserved_bytes=0, capacity_bytes=80 * 10**9,
)  # fmt: skip


def prediction(tokens_per_s: float, **changes: object) -> Prediction:
    step_s = 128 / tokens_per_s
    made = Prediction(
        belief="calibrated", placement="made up", num_microbatches=2, tokens_per_s=tokens_per_s,
        step_s=step_s, from_idle_s=2 * step_s, bubble=0.0,
        share={"hbm": 1.0, "l2": 0.0, "compute": 0.0, "link": 0.0, "launch": 0.0},
        wire_bytes={"nvlink4": 10**6}, memory=(BUDGET,), busy_share_by_rank=(1.0, 1.0),
        is_steady=True,
    )  # fmt: skip
    return replace(made, **changes)  # pyright: ignore[reportArgumentType]


def beliefs(light: float, calibrated: float | None) -> Beliefs:
    return Beliefs(
        speed_of_light=prediction(light),
        calibrated=prediction(calibrated) if calibrated else None,
    )


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
    assert claims.judge_rate("k", "who", 100.0, believed).verdict == expected
    inverse = claims.judge_inverse("k", "who", 1 / 100.0, believed, decoding=True)
    assert inverse.verdict == expected


def test_no_rate_holds_where_memory_does_not_suffice() -> None:
    full = replace(BUDGET, kv_bytes=100 * 10**9)
    believed = Beliefs(
        speed_of_light=prediction(200.0, memory=(full,)),
        calibrated=prediction(100.0, memory=(full,)),
    )
    judged = claims.judge_rate("k", "who", 100.0, believed)
    assert judged.verdict == "cannot hold"
    assert "101.0 GB on a GPU of 80 GB" in judged.figure


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
    assert claims.judge_gain(baselines, beliefs(light, calibrated)).verdict == expected


def test_cache_is_decided_by_capacity() -> None:
    judged = claims.judge_cache(MODELS["paper-16"], GPUS["h100-sxm"], prediction(1.0))
    assert judged.verdict == "cannot hold"
    assert "536.9 MB, are 10.2 times the 52.4 MB L2" in judged.figure


@pytest.mark.parametrize(
    ("model", "expected", "total"),
    [("paper-16", "cannot hold", "4.30 B"), ("paper-30b", "holds", "30.07 B")],
)  # fmt: skip
def test_parameters_are_counted(model: str, expected: Verdict, total: str) -> None:
    judged = claims.judge_parameters(MODELS[model])
    assert judged.verdict == expected
    assert total in judged.figure


@pytest.mark.parametrize(("idlest", "expected"), [(0.995, "holds"), (0.9, "does not hold")])
def test_equal_load_is_a_spread(idlest: float, expected: Verdict) -> None:
    ours = prediction(1.0, busy_share_by_rank=(1.0, idlest))
    assert claims.judge_equal_load(prediction(1.0), ours).verdict == expected


def test_waits_for_messages_count_as_communication() -> None:
    waiting = prediction(1.0, bubble=0.2)
    assert claims.link_share(waiting) == pytest.approx(0.2)
    judged = claims.judge_communication(GPUS["h100-sxm"], prediction(2.0), waiting)
    assert judged.verdict == "does not hold"


def test_the_schedule_s_own_bubble_is_not_communication() -> None:
    # One microbatch over two stages leaves half of a steady stream idle, links or not.
    assert claims.link_share(prediction(1.0, bubble=0.5, num_microbatches=1)) == pytest.approx(0.0)

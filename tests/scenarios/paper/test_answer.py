"""The two sentences with which `layerwise paper` begins."""

from __future__ import annotations

import json

import pytest

from layerwise.scenarios.paper.answer import PREFILL_CAUTION, answer_of
from layerwise.scenarios.paper.experiment import Question, ask
from layerwise.sim.profile import Profile
from tests.scenarios.conftest import Run


def answered(profile: Profile | None, **question: object) -> tuple[str, str]:
    return answer_of(ask(Question(**question), profile))


def test_it_comes_first_and_stands_in_the_json(layerwise: Run) -> None:
    first = layerwise("paper").out.split("The paper's experiment")[0]
    said = json.loads(layerwise("paper", "--json").out)["answer"]

    assert " ".join(said) == " ".join(first.split())
    assert 2 == len(said)


def test_a_slower_placement_is_a_no_with_both_rates(profile: Profile) -> None:
    report = ask(Question(), profile)
    ours, theirs = report.layer_wise.best.tokens_per_s, report.best_baseline.best.tokens_per_s
    which, why = answer_of(report)

    assert which.startswith(f"No: layer-wise is {1 - ours / theirs:.1%} slower than TP=8 x PP=2")
    assert f"{ours:,.0f} against {theirs:,.0f} tokens/s" in which
    assert "537 MB) are 10.2 times the L2 of one h100-sxm, so nothing lives on chip" in why


def test_a_gain_as_large_as_the_claim_is_a_yes_and_in_prefill_a_caution(profile: Profile) -> None:
    which, why = answered(profile, phase="prefill")

    assert which.startswith("Yes: layer-wise is ")
    assert why.endswith(PREFILL_CAUTION)


def test_what_does_not_fit_has_no_gain(profile: Profile) -> None:
    which, why = answered(profile, model="paper-30b")

    assert which.startswith("It cannot be run: TP=8 x PP=2 and layer-wise need ")
    assert why.startswith("The KV cache alone takes 147 GB of each GPU")


@pytest.mark.parametrize("size", ["600MB", "2GB"])
def test_weights_that_fit_alone_are_told_with_the_kv_that_competes(
    size: str, profile: Profile
) -> None:
    _, why = answered(profile, changes={"cluster.gpu.l2_bytes": size})

    assert "but each microbatch reads 1,311 MB of KV cache between two uses" in why


def test_without_a_profile_it_says_on_which_belief_it_rests() -> None:
    which, _ = answered(None)

    assert "(speed of light: " in which

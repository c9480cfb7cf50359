"""Predictions that share what they have in common are those that share nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario, paper_scenario
from layerwise.sim.plan.workload import Workload
from layerwise.sim.predict import Prediction, predict, predict_plan
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import cost_model, resolve
from layerwise.sim.shared import Shared
from tests.synthetic import synthetic_profile

TENSOR = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=8, pipeline_parallel=2)
# Caches that the L2 holds, that it holds a part of, and that outgrew it, there and back.
CONTEXTS = (10_000, 16, 700, 2_500, 64_000, 700, 10_000)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return synthetic_profile()


def decoding(context_tokens: int, **changes: object) -> Scenario:
    workload = Workload(batch_size=32, context_tokens=context_tokens, num_microbatches=4)
    return replace(paper_scenario("layer-wise", workload=workload), **changes)  # type: ignore[arg-type]


def shared_and_own(
    scenarios: Iterable[Scenario], profile: Profile
) -> tuple[list[object], list[object]]:
    """All that is said of each: with what the ones before worked out, and by itself."""
    scenarios = list(scenarios)
    shared = Shared(cost_model(scenarios[0].cluster, profile))
    together = [predict_plan(resolve(one, profile, cost=shared.cost), shared) for one in scenarios]
    alone = [predict(one, profile) for one in scenarios]
    return list(map(_said, together)), list(map(_said, alone))


def _said(prediction: Prediction) -> object:
    return prediction, prediction.uncertainty


@pytest.mark.parametrize("placement", [PlacementSpec(), TENSOR], ids=["layer-wise", "tensor"])
@pytest.mark.parametrize(
    "run",
    [
        RunSpec(),
        RunSpec(context_growth_tokens=3),
        RunSpec(launch="eager"),
        RunSpec(persisting_weights=True),
    ],
    ids=["graph", "growing", "eager", "windows"],
)
def test_contexts_share_their_programs(
    profile: Profile, placement: PlacementSpec, run: RunSpec
) -> None:
    points = [decoding(context, placement=placement, run=run) for context in CONTEXTS]
    together, alone = shared_and_own(points, profile)

    assert alone == together


def test_whatever_differs_shares_no_more_than_it_has_in_common(profile: Profile) -> None:
    """Batches, microbatches, models, placements, phases and searches, one after the other."""
    base = decoding(1_000)
    narrow = replace(MODELS["paper-16"], num_key_value_heads=8)
    points = [
        base,
        base.with_microbatches(8),
        replace(base, workload=replace(base.workload, batch_size=64)),
        replace(base, model=narrow),
        replace(base, model=narrow, placement=TENSOR),
        replace(base, placement=TENSOR),
        replace(base, workload=replace(base.workload, phase="prefill", context_tokens=2_000)),
        replace(base, workload=replace(base.workload, phase="prefill", prefill_chunk_tokens=600)),
        replace(base, workload=replace(base.workload, num_microbatches=0)),
        base,
    ]
    together, alone = shared_and_own(points, profile)

    assert alone == together


def test_layers_of_other_contexts_are_walked_once(profile: Profile) -> None:
    shared = Shared(cost_model(decoding(1).cluster, profile))
    predict_plan(resolve(decoding(10_000), profile, cost=shared.cost), shared)
    before = len(shared.blocks.blocks)
    predict_plan(resolve(decoding(20_000), profile, cost=shared.cost), shared)

    assert before == len(shared.blocks.blocks)

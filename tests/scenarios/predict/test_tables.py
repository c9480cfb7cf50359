"""A prediction as people read it: its placement has the name that a ranking gives it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.scenarios.predict.tables import placement_name
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.scenario import PlacementSpec, paper_scenario
from layerwise.sim.resolve import resolve
from tests.synthetic import synthetic_profile

SCENARIO = paper_scenario("tensor-pipeline")
ONE_SHOT, NCCL = KernelChoice(all_reduce="one_shot"), KernelChoice()


@pytest.mark.parametrize(
    ("spec", "kernels", "expected"),
    [
        (
            PlacementSpec(strategy="tensor-pipeline", tensor_parallel=8, data_parallel=2),
            NCCL,
            "TP=8 x DP=2",
        ),
        (
            PlacementSpec(strategy="tensor-pipeline", tensor_parallel=8, data_parallel=2),
            ONE_SHOT,
            "TP=8 x DP=2, 1-shot",
        ),
        (
            PlacementSpec(strategy="tensor-pipeline", tensor_parallel=8, pipeline_parallel=2),
            NCCL,
            "TP=8 x PP=2",
        ),
        (PlacementSpec(strategy="layer-wise"), ONE_SHOT, "layer-wise PP=16"),
        (PlacementSpec(strategy="tensor-pipeline"), ONE_SHOT, "one GPU"),
    ],
)
def test_a_placement_is_called_what_a_ranking_calls_it(
    spec: PlacementSpec, kernels: KernelChoice, expected: str
) -> None:
    assert expected == placement_name(
        resolve(replace(SCENARIO, placement=spec, kernels=kernels), None)
    )


def test_a_profile_chooses_the_all_reduce_that_a_scenario_leaves_open() -> None:
    profile = replace(synthetic_profile(), kernels=ONE_SHOT)

    assert "TP=8 x PP=2, 1-shot" == placement_name(resolve(SCENARIO, profile))
    assert "TP=8 x PP=2" == placement_name(resolve(SCENARIO, None))
    assert "TP=8 x PP=2" == placement_name(resolve(replace(SCENARIO, kernels=NCCL), profile))

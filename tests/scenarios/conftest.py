"""A synthetic profile on disk, and traces that look measured: simulated, then disturbed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.scenarios.predict.alone import predict_run
from layerwise.sim.plan.scenario import Scenario, paper_scenario
from layerwise.sim.plan.workload import Workload
from layerwise.sim.profile import Profile, write_profile
from layerwise.sim.trace import Trace, as_data
from tests.conftest import Ran, Run
from tests.synthetic import synthetic_profile

__all__ = ["Ran", "Run", "fake_trace", "stage_scenario"]


@pytest.fixture(scope="session")
def profile() -> Profile:
    return synthetic_profile()


@pytest.fixture(scope="session")
def profile_file(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "synthetic.json"
    write_profile(profile, path)
    return path


def stage_scenario(profile: Profile) -> Scenario:
    """One GPU of a small layer-wise decode: quick to simulate."""
    scenario = paper_scenario("layer-wise", workload=Workload(context_tokens=1000))
    scenario = scenario.with_microbatches(4).with_kernels(profile.kernels)
    return replace(scenario, name="stage", run=replace(scenario.run, only_rank=5))


def fake_trace(profile: Profile, *, slower: float = 1.02) -> Trace:
    """A 'measured' trace: the prediction's own middle step, every op `slower` times as long."""
    scenario = stage_scenario(profile)
    predicted = predict_run(scenario, profile)
    steps = predicted.repeated_steps
    rows = tuple(
        replace(row, repeat=repeat, end_s=row.start_s + row.duration_s * slower, bound="")
        for repeat in range(5)
        for row in predicted.rows
        if row.step in steps
    )
    return Trace(
        source="measured",
        name="stage",
        scenario=as_data(scenario),
        rows=rows,
        kernel_set=predicted.kernel_set(5, steps),
        timing="cupti",
        purpose="validation",
        untraced_step_s=(predicted.step_s * slower,) * 3,
        traced_step_s=(predicted.step_s * slower * 1.01,) * 3,
        measured={"hbm_floor_fraction": 0.93},
        environment={"gpu": "pretend H100"},
    )

"""How long a ranking takes: 16 GPUs and a 32-layer model in 20 s on two cores."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from layerwise.calibration.data import profile_path
from layerwise.scenarios.rank.ranking import rank
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.workload import Workload
from layerwise.sim.profile import load_profile
from tests.benchmarks.test_scale import (
    BARE_EVENTS,
    REFERENCE_TIMEOUTS_PER_S,
    bare_timeouts,
    cpu_s,
    uncollected,
)

WALL_S = 20.0
# Source: Llama 3.1 8B's config.json.
THIRTY_TWO_LAYERS = ModelSpec(
    name="llama-3.1-8b",
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128_256,
)


def test_sixteen_gpus_and_thirty_two_layers(
    benchmark: BenchmarkFixture, request: pytest.FixtureRequest
) -> None:
    """In one process, halved: its tasks are many more than two, and none is long."""
    if request.config.getoption("cov_source", default=None):
        pytest.skip("timed without coverage")
    cluster, profile = dgx_cluster(GPUS["h100-sxm"], 16), load_profile(profile_path("h100-sxm"))
    with uncollected():
        ours_s = cpu_s(lambda: rank(THIRTY_TWO_LAYERS, cluster, Workload(), profile))
        # The core's own pace, at its best of many: one sample of so short a job says little.
        bare_s = min(cpu_s(bare_timeouts) for _ in range(20))
    seconds = ours_s / bare_s * BARE_EVENTS / REFERENCE_TIMEOUTS_PER_S
    benchmark.extra_info["cpu_s"] = round(ours_s, 1)
    benchmark.extra_info["reference_s_on_two_cores"] = round(seconds / 2, 1)
    benchmark.pedantic(lambda: None, rounds=1)

    assert seconds / 2 < WALL_S

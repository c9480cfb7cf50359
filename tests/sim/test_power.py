"""The clock that power limits hold: closed forms on one GPU, and who is held among several."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from layerwise.calibration.data import profile_path
from layerwise.sim.cost.power import MIN_CLOCK_SHARE, energies_of, share_within, watts
from layerwise.sim.plan.hardware import GPUS, ClusterSpec, HeldCluster, dgx_cluster
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.scenario import PlacementSpec, Regime, RunSpec, Scenario
from layerwise.sim.plan.workload import Phase, Workload
from layerwise.sim.predict import Prediction, predict
from layerwise.sim.profile import Constant, PowerFit, Profile, load_profile
from layerwise.sim.uncertainty import HELD_CLOCK

MODEL = ModelSpec(
    name="m",
    num_layers=4,
    hidden_size=4096,
    intermediate_size=14_336,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
)
VALUES = {
    "idle_w": 100.0,
    "exponent": 1.0,
    "flop_j.matmul": 1e-12,
    "l2_byte_j": 5e-11,
    "hbm_byte_j": 6e-11,
    "slow_limit_w": 700.0,
    "fast_limit_w": 900.0,
    "hbm_bound_share": 0.2,
}


def fit_of(**changed: float) -> PowerFit:
    return PowerFit(
        constants={
            name: Constant(value=value, standard_error=0.0, unit="", source="")
            for name, value in (VALUES | changed).items()
        },
        clock_half_width=0.1,
        slowdown_half_width=0.03,
        energy_half_width=0.05,
    )


@cache
def h200() -> Profile:
    return load_profile(profile_path("h200"))


def asked(
    phase: Phase = "prefill", regime: Regime = "sustained", cluster: ClusterSpec | None = None
) -> Scenario:
    return Scenario(
        name="s",
        model=MODEL,
        cluster=cluster or dgx_cluster(GPUS["h200"], 1),
        placement=PlacementSpec(strategy="layer-wise", num_gpus=1),
        workload=Workload(phase=phase, batch_size=1, context_tokens=8192, num_microbatches=1),
        run=RunSpec(regime=regime),
    )


def with_limit(limit_w: float) -> Profile:
    power = h200().power
    assert power is not None
    limit = replace(power.constants["slow_limit_w"], value=limit_w)
    return replace(
        h200(), power=replace(power, constants=power.constants | {"slow_limit_w": limit})
    )


def predicted(scenario: Scenario, limit_w: float = 693.6) -> Prediction:
    return predict(scenario, with_limit(limit_w))


def test_energy_is_of_flops_and_of_bytes_on_their_way() -> None:
    sm_j, hbm_j = energies_of(fit_of(), "matmul", 1e12, 3e9, 1e9)

    assert sm_j == pytest.approx(1.0 + 0.15)
    assert hbm_j == pytest.approx(0.06)
    assert energies_of(fit_of(), None, 1e12, 0.0, 0.0) == (0.0, 0.0)


@pytest.mark.parametrize(("share", "expected_w"), [(1.0, 100 + 400 + 50), (0.5, 100 + 200 + 50)])
def test_power_of_sms_falls_with_the_clock(share: float, expected_w: float) -> None:
    assert watts(fit_of(), share, 2.0, 800.0, 100.0) == pytest.approx(expected_w)


@pytest.mark.parametrize("limit_w", [300.0, 500.0, 549.0])
def test_the_share_within_a_limit_draws_the_limit(limit_w: float) -> None:
    share = share_within(fit_of(), limit_w, 2.0, 800.0, 100.0)

    assert watts(fit_of(), share, 2.0, 800.0, 100.0) == pytest.approx(limit_w)


def test_the_share_is_full_below_the_limit_and_never_under_the_lowest_clock() -> None:
    assert share_within(fit_of(), 551.0, 2.0, 800.0, 100.0) == 1.0
    assert share_within(fit_of(), 90.0, 2.0, 800.0, 100.0) == MIN_CLOCK_SHARE


def test_sustained_prefill_draws_the_cap_at_a_lower_clock() -> None:
    held, burst = predicted(asked()), predicted(asked(regime="burst"))

    assert held.power is not None
    assert burst.power is not None
    assert 0.6 < held.power.clock_share < 0.95
    assert held.power.watts == pytest.approx(693.6, rel=0.01)
    assert burst.power.clock_share == 1
    assert 1.05 < held.step_s / burst.step_s < 1.25
    assert held.uncertainty is not None
    assert HELD_CLOCK in held.uncertainty.by_kind
    assert held.energy_per_token_j == pytest.approx(held.power.energy_per_step_j / 8192)


def test_decode_that_draws_less_is_told_alike_in_both_regimes() -> None:
    held, burst = (predicted(asked("decode", regime)) for regime in ("sustained", "burst"))

    assert held.step_s == burst.step_s
    assert held.power == burst.power


def test_a_lower_cap_is_never_faster() -> None:
    steps = [predicted(asked(), limit_w).step_s for limit_w in (1200.0, 700.0, 600.0, 450.0, 350.0)]

    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


def test_what_hbm_bounds_hardly_notices_a_low_clock() -> None:
    free, held = (predicted(asked("decode"), limit_w) for limit_w in (900.0, 450.0))

    assert held.power is not None
    assert held.power.clock_share < 0.9
    assert 1 < held.step_s / free.step_s < 1.1


def test_without_power_nothing_is_said_of_it() -> None:
    found = predict(asked(), replace(h200(), power=None))

    assert found.power is None
    assert found.energy_per_token_j is None


def test_a_gpu_that_waits_keeps_its_clock() -> None:
    """Two stages, of three layers and one: the second waits, and draws less."""
    cluster = dgx_cluster(GPUS["h200"], 2)
    uneven = replace(MODEL, num_layers=3)
    scenario = replace(
        asked(cluster=cluster),
        model=uneven,
        placement=PlacementSpec(strategy="layer-wise", num_gpus=2),
        workload=Workload(phase="prefill", batch_size=8, context_tokens=4096, num_microbatches=8),
    )
    power = predicted(scenario).power

    assert power is not None
    shares = [power.clock_share_by_rank[rank] for rank in (0, 1)]
    assert min(shares) < 0.95
    assert max(shares) == 1
    assert power.max_watts > power.watts


def test_a_held_cluster_is_slow_where_it_is_held() -> None:
    cluster = HeldCluster.of(dgx_cluster(GPUS["h200"], 2), (1.0, 0.8))

    assert cluster.slow_ranks == {1}
    assert [cluster.speed_of(rank).clock_share for rank in (0, 1)] == [1.0, 0.8]

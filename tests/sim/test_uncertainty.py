"""Intervals carried to the step, against runs whose ops' errors were drawn together."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from layerwise.sim.cost.kinds import kind_of
from layerwise.sim.cost.model import Calibrated, OpCost, Traffic, TransferCost
from layerwise.sim.plan import ops
from layerwise.sim.plan.hardware import GPUS, LinkSpec, SlowParts, dgx_cluster
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.ops import CollectiveOp, LocalOp
from layerwise.sim.plan.scenario import PlacementSpec, Scenario, compile_run
from layerwise.sim.predict import predict
from layerwise.sim.profile import Profile
from layerwise.sim.residuals import ErrorScale
from layerwise.sim.simulate import simulate, simulate_scenario
from layerwise.sim.uncertainty import (
    BETWEEN_GPUS,
    Contribution,
    Uncertainty,
    around,
    half_width_of_ratio,
    half_widths_of,
    uncertainty_of,
)
from tests.sim.scenes import scenario_of
from tests.synthetic import synthetic_profile

WIDTHS = {"matmul": 0.06, "decode_attention": 0.10, "norm": 0.15, "gated_activation": 0.12}
OTHER_WIDTH, LINK_ERROR = 0.08, 0.03
DRAWS = 200
# Of 200 draws a spread is told to within a twentieth; the path itself may change with the draws.
TOLERANCE = 0.15


def profile_with(factor: float = 1.0) -> Profile:
    profile = synthetic_profile()
    fits = {
        kind: replace(fit, error_scale=ErrorScale.constant(WIDTHS.get(kind, OTHER_WIDTH)))
        for kind, fit in profile.fits.items()
    }
    transfers = {n: replace(t, median_error=LINK_ERROR) for n, t in profile.transfers.items()}
    return replace(profile, fits=fits, transfers=transfers, step_factor=factor)


@dataclass(frozen=True)
class Drawn(Calibrated):
    """The same with each kind's times off by one factor."""

    factors: Mapping[str, float] = field(default_factory=lambda: defaultdict(lambda: 1.0))

    def local(self, op: LocalOp, traffic: Traffic) -> OpCost:
        return self._off(super().local(op, traffic), kind_of(op).name)

    def collective(self, op: CollectiveOp) -> OpCost:
        kind = "all_reduce" if isinstance(op, ops.AllReduce) else "all_gather"
        return self._off(super().collective(op), kind)

    def transfer(self, payload_bytes: int, link: LinkSpec) -> TransferCost:
        found, factor = super().transfer(payload_bytes, link), self.factors["send"]
        return replace(
            found, latency_s=found.latency_s * factor, bytes_per_s=found.bytes_per_s / factor
        )

    def _off(self, cost: OpCost, kind: str) -> OpCost:
        factor = self.factors[kind]
        return replace(cost, launch_s=cost.launch_s * factor, kernel_s=cost.kernel_s * factor)


def drawn_half_width(scenario: Scenario, profile: Profile, seed: int = 1) -> float:
    """90 % of ln(step) over joint draws of all kinds' errors."""
    rng, run = random.Random(seed), compile_run(scenario)
    widths = {kind: WIDTHS.get(kind, OTHER_WIDTH) for kind in profile.fits}
    widths |= dict.fromkeys(
        ("send", "all_reduce", "all_gather"), next(iter(profile.transfers.values())).half_width
    )
    found: list[float] = []
    for _ in range(DRAWS):
        factors = {k: math.exp(rng.gauss(0, width / 1.645)) for k, width in widths.items()}
        cost = Drawn(scenario.cluster, profile, factors=factors)
        found.append(math.log(simulate_scenario(scenario, run, cost).steady_step_s))
    return 1.645 * float(np.std(found))


@pytest.mark.parametrize(("tensor", "stages"), [(2, 2), (1, 4)])
@pytest.mark.parametrize("microbatches", [1, 4])
def test_carried_interval_is_that_of_joint_draws(
    tensor: int, stages: int, microbatches: int
) -> None:
    """With fewer microbatches than stages too, where the path leads through every rank."""
    spec = PlacementSpec(
        strategy="tensor-pipeline", tensor_parallel=tensor, pipeline_parallel=stages
    )
    model = replace(MODELS["paper-16"], num_layers=4)
    scenario, profile = scenario_of(spec, model=model, microbatches=microbatches), profile_with()
    found = predict(scenario, profile).uncertainty

    assert found is not None
    assert drawn_half_width(scenario, profile) == pytest.approx(found.half_width, rel=TOLERANCE)


def small() -> Scenario:
    spec = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2, pipeline_parallel=2)
    return scenario_of(spec, model=replace(MODELS["paper-16"], num_layers=4), microbatches=2)


def part(kind: str, share: float, half_width: float, *dimensions: float) -> Contribution:
    return Contribution(
        name=kind,
        kind=kind,
        dimensions=dimensions,
        share=share,
        half_width=half_width,
        distance=0.0,
        is_beyond=False,
    )


def test_errors_of_one_kind_add_up_and_those_of_two_do_not() -> None:
    same = Uncertainty(
        contributions=(part("a", 0.5, 0.1, 1), part("a", 0.5, 0.1, 2)), step_factor=1.0
    )
    apart = Uncertainty(
        contributions=(part("a", 0.5, 0.1, 1), part("b", 0.5, 0.1, 2)), step_factor=1.0
    )

    assert (0.1, 0.1 / math.sqrt(2)) == (
        pytest.approx(same.half_width),
        pytest.approx(apart.half_width),
    )


def test_step_factor_is_not_for_links() -> None:
    both = (part("matmul", 0.5, 0.1), part("all_reduce", 0.5, 0.1))
    found = Uncertainty(contributions=both, step_factor=2.0)

    assert math.hypot(0.1, 0.05) == pytest.approx(found.half_width)


def test_shares_of_a_step_add_up_to_nearly_all_of_it() -> None:
    found = predict(small(), profile_with()).uncertainty

    assert found is not None
    ops = [one for one in found.contributions if one.kind != BETWEEN_GPUS]
    assert 0.95 < sum(one.share for one in ops) < 1.0 + 1e-9


def test_ranks_that_were_folded_count_as_often_as_they_are_there() -> None:
    """TP=4 x PP=2 with one slow GPU: its stage paces, the other idles, and only some ranks fold."""
    scenario = scenario_of(
        PlacementSpec(strategy="tensor-pipeline", tensor_parallel=4, pipeline_parallel=2),
        model=replace(MODELS["paper-16"], num_layers=4),
        microbatches=4,
    )
    slow = SlowParts(gpus=(2,), clock_share=0.3, hbm_share=0.3)
    cluster = replace(dgx_cluster(GPUS["h100-sxm"], 8), slow=slow)
    cost = Calibrated(cluster, profile_with())
    folded, unfolded = (
        simulate(compile_run(replace(scenario, cluster=cluster)), cost, cluster, folded=flag)
        for flag in (True, False)
    )
    one, other = (uncertainty_of(each, [1], each.steady_step_s) for each in (folded, unfolded))

    assert len(list(folded.ranks)) < len(list(unfolded.ranks))
    assert one is not None
    assert other is not None
    assert other.half_width == pytest.approx(one.half_width, rel=1e-9)


def test_interval_of_the_rate_is_that_of_the_step_upside_down() -> None:
    prediction = predict(small(), profile_with())

    assert prediction.interval is not None
    assert prediction.tokens_per_s_interval is not None
    assert prediction.tokens_per_s * prediction.step_s == pytest.approx(
        prediction.tokens_per_s_interval.low * prediction.interval.high
    )
    assert prediction.interval.low < prediction.step_s < prediction.interval.high


@pytest.mark.parametrize("belief", ["speed_of_light", "uncalibrated"])
def test_other_beliefs_have_no_interval(belief: str) -> None:
    assert predict(small(), profile_with(), belief).interval is None  # type: ignore[arg-type]


def test_equal_steps_have_no_interval_between_them() -> None:
    one = Uncertainty(contributions=(part("a", 1.0, 0.1, 1),), step_factor=1.0)
    other = Uncertainty(contributions=(part("a", 1.0, 0.1, 2),), step_factor=1.0)

    assert (0.0, math.hypot(0.1, 0.1)) == (
        half_width_of_ratio(one, one),
        pytest.approx(half_width_of_ratio(one, other)),
    )


def test_ops_outside_the_calibrated_ranges_are_told_by_name() -> None:
    profile = profile_with()
    norm = replace(profile.fits["norm"], valid=((0.0, 1.0), (0.0, 1e9)))
    found = predict(small(), replace(profile, fits=profile.fits | {"norm": norm})).uncertainty

    assert found is not None
    assert {"norm"} == {one.kind for one in found.beyond}


def test_every_op_of_a_step_has_its_half_width() -> None:
    scenario, profile = small(), profile_with()
    run = compile_run(scenario)
    simulation = simulate_scenario(scenario, run, Calibrated(scenario.cluster, profile))
    found = half_widths_of(simulation, [1])

    labels = {row.op.partition("@")[0] for row in simulation.rows if row.step == 1}
    assert labels == found.keys()
    assert WIDTHS["matmul"] == pytest.approx(found["L00.mlp.down"])


def test_interval_holds_its_own_prediction_and_ends_where_it_says() -> None:
    found = around(2.0, 0.1)

    assert (True, False, False) == (found.holds(2.0), found.holds(1.8), found.holds(2.22))

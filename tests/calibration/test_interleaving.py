from __future__ import annotations

import random
from dataclasses import replace

import pytest

from calibration.interleaving import fit_interleaving, no_interleaving
from calibration.least_squares import FitError
from sim.plan.errors import ProfileMismatchError
from sim.plan.workload import Workload
from sim.profile import Profile
from sim.trace import Row, Trace, as_data
from tests.calibration.fabricated import stage_scenario, stage_trace, with_interleaving
from tests.synthetic import synthetic_profile

ALONE = synthetic_profile()
TRUTH = with_interleaving(ALONE, 0.6e-6, 0.03)


def traces(truth: Profile) -> list[Trace]:
    return [stage_trace(stage_scenario(hidden), truth) for hidden in (2048, 4096)]


def values(traces: list[Trace]) -> dict[str, float]:
    return {name: c.value for name, c in fit_interleaving(ALONE, traces, "here").items()}


def blurred(trace: Trace, noise: float) -> Trace:
    """Every op takes a little more or less time; the ops after it do not move."""
    rng = random.Random(4)

    def blur(row: Row) -> Row:
        length = (row.end_s - row.ready_s) * (1 + rng.gauss(0, noise))
        return replace(row, end_s=max(row.start_s, row.ready_s + length))

    return replace(trace, rows=tuple(blur(row) for row in trace.rows))


def test_known_constants_are_recovered() -> None:
    expected = {"interleaved_s": 0.6e-6, "interleaved_hbm_slowdown": 0.03}

    assert expected == pytest.approx(values(traces(TRUTH)), rel=0.01)


def test_known_constants_are_recovered_through_noise() -> None:
    found = fit_interleaving(ALONE, [blurred(t, 0.01) for t in traces(TRUTH)], "here")

    for name, truth in (("interleaved_s", 0.6e-6), ("interleaved_hbm_slowdown", 0.03)):
        assert 0 < found[name].standard_error
        assert abs(found[name].value - truth) < max(3 * found[name].standard_error, 0.05 * truth)


def test_ops_that_cost_what_the_sweep_says_give_nothing() -> None:
    assert {"interleaved_s": 0.0, "interleaved_hbm_slowdown": 0.0} == pytest.approx(
        values(traces(ALONE)), abs=1e-9
    )
    assert {0.0} == {constant.value for constant in no_interleaving().values()}


@pytest.mark.parametrize("kind", ["none", "eager", "prefill"])
def test_without_a_decode_stage_in_a_graph_there_is_no_fit(kind: str) -> None:
    scenario = stage_scenario()
    if kind == "eager":
        scenario = stage_scenario(launch="eager")
    if kind == "prefill":
        workload = Workload(phase="prefill", batch_size=2, context_tokens=256, num_microbatches=1)
        scenario = replace(scenario, workload=workload)
    given = [] if kind == "none" else [stage_trace(stage_scenario(), TRUTH)]
    given = [replace(t, scenario=as_data(scenario)) for t in given]

    with pytest.raises(FitError, match="no decode stage kept for fitting was traced in a graph"):
        fit_interleaving(ALONE, given, "")


def test_stage_of_another_gpu_is_refused() -> None:
    with pytest.raises(ProfileMismatchError, match="was measured on h200"):
        fit_interleaving(synthetic_profile("h200"), traces(TRUTH), "")

from __future__ import annotations

from dataclasses import replace

import pytest

from calibration.interleaving import (
    fit_interleaving,
    fit_step_factor,
    held_out_step_errors,
)
from calibration.least_squares import FitError
from sim.plan.errors import ProfileMismatchError
from sim.plan.workload import Workload
from sim.profile import Profile, no_interleaving
from sim.residuals import ErrorScale
from sim.trace import Trace, as_data
from tests.calibration.fabricated import stage_scenario, stage_trace, with_interleaving
from tests.synthetic import synthetic_profile

ALONE = replace(synthetic_profile(), machine=synthetic_profile().machine | no_interleaving())
TRUTH = with_interleaving(ALONE, 0.6e-6, 0.03)
KNOWN = {
    "interleaved_s": 0.6e-6, "interleaved_hbm_slowdown": 0.03, "interleaved_l2_share": 1.0,
}  # fmt: skip


def traces(truth: Profile, noise: float = 0.0) -> list[Trace]:
    """Small and large layers, so that a time per op and a share of the time are told apart."""
    signs = (1, -1, -1, 1)
    made = [stage_trace(stage_scenario(hidden), truth) for hidden in (1024, 2048, 4096, 6144)]
    return [
        replace(trace, untraced_step_s=(trace.untraced_step_s[0] * (1 + sign * noise),))
        for trace, sign in zip(made, signs, strict=True)
    ]


def values(traces: list[Trace]) -> dict[str, float]:
    return {name: c.value for name, c in fit_interleaving(ALONE, traces, "here").items()}


def test_known_constants_are_recovered() -> None:
    assert KNOWN == pytest.approx(values(traces(TRUTH)), rel=0.01)


def test_known_constants_are_recovered_through_noise() -> None:
    found = fit_interleaving(ALONE, traces(TRUTH, 0.002), "here")

    for name in ("interleaved_s", "interleaved_hbm_slowdown"):
        assert 0 < found[name].standard_error
        assert abs(found[name].value - KNOWN[name]) < 3 * found[name].standard_error


def test_rows_of_a_tracer_are_not_asked() -> None:
    late = [
        replace(trace, rows=tuple(replace(row, end_s=2 * row.end_s) for row in trace.rows))
        for trace in traces(TRUTH)
    ]

    assert values(traces(TRUTH)) == values(late)


def test_ops_that_cost_what_the_sweep_says_give_nothing() -> None:
    nothing = {name: constant.value for name, constant in no_interleaving().items()}

    assert nothing == pytest.approx(values(traces(ALONE)), abs=1e-9)


def test_held_out_error_is_of_a_step_that_the_fit_did_not_see() -> None:
    odd, *others = traces(TRUTH)
    odd = replace(odd, untraced_step_s=(1.25 * odd.untraced_step_s[0],))

    errors = held_out_step_errors(ALONE, [odd, *others])

    assert {trace.name for trace in (odd, *others)} == set(errors)
    assert 1 / 1.25 - 1 == pytest.approx(errors[odd.name], abs=0.01)


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

    with pytest.raises(
        FitError, match="decode steps kept for fitting .* in a graph; measure 2 or more"
    ):
        fit_interleaving(ALONE, given, "")


def test_stage_of_another_gpu_is_refused() -> None:
    with pytest.raises(ProfileMismatchError, match="was measured on h200"):
        fit_interleaving(synthetic_profile("h200"), traces(TRUTH), "")


def test_step_factor_is_the_ninetieth_score_of_steps_over_what_their_ops_carry() -> None:
    """Twice the width for every op, half the factor: steps scatter as they do."""
    scales = [
        replace(TRUTH, fits={
            kind: replace(fit, error_scale=ErrorScale.constant(width))
            for kind, fit in TRUTH.fits.items()
        })
        for width in (0.02, 0.04)
    ]  # fmt: skip
    found = traces(TRUTH, noise=0.01)
    narrow, wide = (fit_step_factor(scale, found) for scale in scales)

    assert narrow > 0
    assert narrow == pytest.approx(2 * wide, rel=1e-3)

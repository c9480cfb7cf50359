from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import pytest

from layerwise.calibration.interleaving import (
    fit_interleaving,
    fit_step_factor,
    held_out_step_errors,
)
from layerwise.calibration.least_squares import FitError
from layerwise.calibration.selection import decode
from layerwise.sim.plan.errors import ProfileMismatchError
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.plan.workload import Workload
from layerwise.sim.profile import Profile, no_interleaving
from layerwise.sim.residuals import ErrorScale
from layerwise.sim.trace import Trace, as_data
from tests.calibration.fabricated import KERNELS, stage_scenario, stage_trace
from tests.synthetic import constant, synthetic_profile

MACHINE = synthetic_profile().machine
ALONE = replace(synthetic_profile(), machine=MACHINE | no_interleaving(MACHINE))
TIMES = {"interleaved_s": 0.1e-6, "interleaved_code_s": 0.6e-6, "interleaved_hbm_s": 0.3e-6}
TRUTH = replace(
    ALONE, machine=ALONE.machine | {name: constant(value) for name, value in TIMES.items()}
)
KNOWN = TIMES | {"interleaved_full_hit": 0.75, "interleaved_no_hit": 0.95}
SIGNS = (1, -1, -1, 1)


def traces(truth: Profile, noise: float = 0.0) -> list[Trace]:
    """Layers of which all, some and nothing is in the L2, so that the three times are told apart."""
    stages = [stage_scenario(hidden) for hidden in (2048, 4096)]
    made = [stage_trace(scenario, truth) for scenario in (*stages, *layers(512, 768, 1024, 6144))]
    return [
        replace(trace, untraced_step_s=(trace.untraced_step_s[0] * (1 + sign * noise),))
        for trace, sign in zip(made, cycle(SIGNS), strict=False)
    ]


def layers(*widths: int, batch: int = 1) -> list[Scenario]:
    """Decode steps of one layer, each in a graph of its own."""
    made = [decode(hidden, batch, 128) for hidden in widths]
    return [replace(one, kernels=KERNELS, run=replace(one.run, steps_per_graph=1)) for one in made]


def values(traces: list[Trace]) -> dict[str, float]:
    return {name: c.value for name, c in fit_interleaving(ALONE, traces, "here").items()}


def test_known_constants_are_recovered() -> None:
    assert KNOWN == pytest.approx(values(traces(TRUTH)), rel=0.01)


def test_known_constants_are_recovered_through_noise() -> None:
    found = fit_interleaving(ALONE, traces(TRUTH, 0.002), "here")

    for name in TIMES:
        assert 0 < found[name].standard_error
        assert abs(found[name].value - KNOWN[name]) < 3 * found[name].standard_error


def test_rows_of_a_tracer_are_not_asked() -> None:
    late = [
        replace(trace, rows=tuple(replace(row, end_s=2 * row.end_s) for row in trace.rows))
        for trace in traces(TRUTH)
    ]

    assert values(traces(TRUTH)) == values(late)


def test_ops_that_cost_what_the_sweep_says_give_nothing() -> None:
    nothing = {name: constant.value for name, constant in no_interleaving(MACHINE).items()}

    assert nothing == pytest.approx(values(traces(ALONE)), abs=1e-9)


def test_ends_of_hits_are_recovered() -> None:
    """Layers of 8 to 48 MB: some lie between where hits begin to end and where none is left."""
    ends = {"interleaved_full_hit": constant(0.45), "interleaved_no_hit": constant(0.85)}
    truth = replace(TRUTH, machine=TRUTH.machine | ends)
    widths = (512, 640, 768, 896, 1024, 1152, 2048, 4096)
    made = [stage_trace(one, truth) for batch in (1, 2) for one in layers(*widths, batch=batch)]

    found = values(made)

    assert (0.45, 0.85) == (found["interleaved_full_hit"], found["interleaved_no_hit"])
    assert 0.6e-6 == pytest.approx(found["interleaved_code_s"], rel=0.02)


def test_few_steps_leave_the_ends_of_hits_to_the_read_curve() -> None:
    earlier = {"interleaved_full_hit": constant(0.45), "interleaved_no_hit": constant(0.85)}
    truth = replace(TRUTH, machine=TRUTH.machine | earlier)

    found = values(traces(truth))

    assert (0.75, 0.95) == (found["interleaved_full_hit"], found["interleaved_no_hit"])


def test_two_more_constants_must_fit_so_few_steps_far_better() -> None:
    """Eight steps with noise, which other ends of hits than the true ones follow a little better."""
    made = [stage_trace(one, TRUTH) for one in layers(512, 640, 768, 896, 1024, 1152, 2048, 4096)]
    noisy = [
        replace(trace, untraced_step_s=(trace.untraced_step_s[0] * (1 + sign * 0.005),))
        for trace, sign in zip(made, cycle(SIGNS), strict=False)
    ]

    found = values(noisy)

    assert (0.75, 0.95) == (found["interleaved_full_hit"], found["interleaved_no_hit"])


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
        replace(
            TRUTH,
            fits={
                kind: replace(fit, error_scale=ErrorScale.constant(width))
                for kind, fit in TRUTH.fits.items()
            },
        )
        for width in (0.02, 0.04)
    ]
    found = traces(TRUTH, noise=0.01)
    narrow, wide = (fit_step_factor(scale, found) for scale in scales)

    assert narrow > 0
    assert narrow == pytest.approx(2 * wide, rel=1e-3)

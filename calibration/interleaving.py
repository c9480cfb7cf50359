"""What ops cost among other ops that they do not cost in a row of their own kind.

A sweep repeats one kernel, so its code is at hand. In a layer it follows other kernels, and when
more was touched since its last turn than the L2 holds, its code comes from HBM again: a fixed time
per op. Ops that HBM bounds are also a fraction slower, and less of the L2 is left for reuse than a
kernel that reads one buffer over and over finds. All three are fitted to the untraced times of
whole decode steps whose purpose is "fit": a tracer puts gaps between kernels that are not there
without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from calibration.held_out import conformal_quantile
from calibration.least_squares import Column, Estimate, FitError, standard_errors
from sim.cost.model import Calibrated
from sim.plan.files import scenario_from_data
from sim.plan.scenario import Scenario, compile_run
from sim.profile import Constant, Profile
from sim.simulate import simulate_scenario
from sim.trace import Trace
from sim.uncertainty import uncertainty_of

# Microseconds and a fraction: wider than any machine's, so that they only matter without data.
WIDTHS = np.array([100.0, 1.0])
# Steps are linear in both constants, so any change tells the slope.
PROBES = {"interleaved_s": 1e-6, "interleaved_hbm_slowdown": 0.01}
SCALES = np.array([1.0, 0.01])
SHARES = tuple(round(0.70 + 0.02 * n, 2) for n in range(16))
# Shares that fit this nearly as well as the best one are not told apart by the data.
AS_GOOD = 1.05
MIN_STEPS = 2


@dataclass(frozen=True)
class Steps:
    """Whole steps: what was measured, what ops alone add up to, and the slopes. [steps]"""

    names: tuple[str, ...]
    measured_s: Column
    alone_s: Column
    slopes: Column

    def fit(self, kept: Column | None = None) -> tuple[Column, Column, Column]:
        """(constants, their standard errors, relative residuals) of the steps kept; all if None.

        Constants are in microseconds and a fraction.
        """
        # Only fitting needs scipy: reading what was fitted does not.
        from scipy.optimize import lsq_linear

        rows = np.arange(len(self.names)) if kept is None else np.flatnonzero(kept)
        weight = 1 / self.measured_s[rows]
        design = self.slopes[rows] / SCALES * weight[:, None]
        result = lsq_linear(
            design, (self.measured_s - self.alone_s)[rows] * weight, bounds=(0, np.inf)
        )
        return result.x, standard_errors(design, result.fun, WIDTHS), result.fun

    def predicted_s(self, constants: Column) -> Column:
        """Steps with these constants, in microseconds and a fraction."""
        return self.alone_s + self.slopes @ (constants / SCALES)


def fit_interleaving(profile: Profile, traces: Sequence[Trace], source: str) -> dict[str, Constant]:
    """The three constants for which whole steps come out nearest to their untraced times.

    Relative least squares; the largest share of the L2 among those that fit equally well. Raises
    FitError when fewer than two decode steps were measured in a graph.
    """
    chosen = _decode_steps(traces)
    share = _best_share(profile, chosen)
    (per_op_us, slowdown), errors, _ = steps_of(_with_share(profile, share), chosen).fit()
    per_op = Estimate(float(per_op_us) * 1e-6, float(errors[0]) * 1e-6)
    return {
        "interleaved_s": per_op.constant("s", source),
        "interleaved_hbm_slowdown": Estimate(float(slowdown), float(errors[1])).constant("1", source),
        "interleaved_l2_share": Estimate(share, SHARES[1] - SHARES[0]).constant("of the ramp", source),
    }  # fmt: skip


def held_out_step_errors(profile: Profile, traces: Sequence[Trace]) -> dict[str, float]:
    """predicted / measured - 1 of each decode step, by constants fitted to the other ones.

    The share of the L2 is the profile's own.
    """
    steps = steps_of(profile, _decode_steps(traces))
    errors: dict[str, float] = {}
    for index, name in enumerate(steps.names):
        constants, _, _ = steps.fit(np.arange(len(steps.names)) != index)
        predicted = steps.predicted_s(constants)[index]
        errors[name] = float(predicted / steps.measured_s[index] - 1)
    return errors


def fit_step_factor(profile: Profile, traces: Sequence[Trace]) -> float:
    """How much whole steps scatter over what the errors of their ops would have them.

    Conformal once more: the 90 % quantile of each step's held-out error over the half-width that
    its ops carry to it. Below 1 where layers are easier than the random shapes that were scored.
    """
    bare = replace(profile, step_factor=1.0)
    errors = held_out_step_errors(profile, traces)
    scores = [
        abs(math.log1p(errors[trace.name])) / _carried(bare, scenario)
        for scenario, trace in _decode_steps(traces)
    ]
    return round(conformal_quantile(np.array(scores)), 4)


def _carried(profile: Profile, scenario: Scenario) -> float:
    run = compile_run(scenario)
    simulation = simulate_scenario(scenario, run, Calibrated(scenario.cluster, profile))
    found = uncertainty_of(simulation, [len(run) - 2], simulation.steady_step_s)
    assert found is not None
    return found.half_width


def steps_of(profile: Profile, chosen: Sequence[tuple[Scenario, Trace]]) -> Steps:
    """Simulate each step with neither constant, and with each of them alone."""
    bare = _with_machine(profile, dict.fromkeys(PROBES, 0.0))
    probes = [_with_machine(bare, {name: value}) for name, value in PROBES.items()]
    alone = np.array([_step_s(bare, scenario) for scenario, _ in chosen])
    probed = np.array([[_step_s(probe, scenario) for probe in probes] for scenario, _ in chosen])
    return Steps(
        names=tuple(trace.name for _, trace in chosen),
        measured_s=np.array([median(trace.untraced_step_s) for _, trace in chosen]),
        alone_s=alone,
        slopes=probed - alone[:, None],
    )


def _decode_steps(traces: Sequence[Trace]) -> list[tuple[Scenario, Trace]]:
    read = [(scenario_from_data(trace.scenario, trace.name), trace) for trace in traces]
    found = [
        (scenario, trace) for scenario, trace in read
        if scenario.run.launch == "graph" and scenario.workload.phase == "decode"
    ]  # fmt: skip
    if len(found) < MIN_STEPS:
        raise FitError(
            f"{len(found)} decode steps kept for fitting were measured in a graph; measure "
            f"{MIN_STEPS} or more"
        )
    return found


def _best_share(profile: Profile, chosen: Sequence[tuple[Scenario, Trace]]) -> float:
    losses = {
        share: float(np.sum(steps_of(_with_share(profile, share), chosen).fit()[2] ** 2))
        for share in SHARES
    }
    least = min(losses.values())
    return max(share for share, loss in losses.items() if loss <= AS_GOOD * least)


def _step_s(profile: Profile, scenario: Scenario) -> float:
    cost = Calibrated(scenario.cluster, profile)
    return simulate_scenario(scenario, compile_run(scenario), cost).steady_step_s


def _with_share(profile: Profile, share: float) -> Profile:
    return _with_machine(profile, {"interleaved_l2_share": share})


def _with_machine(profile: Profile, values: Mapping[str, float]) -> Profile:
    changed = {name: replace(profile.machine[name], value=value) for name, value in values.items()}
    return replace(profile, machine=profile.machine | changed)

"""What ops cost among other ops that they do not cost in a row of their own kind.

A sweep repeats one kernel, so its code is at hand. In a layer it follows other kernels: a little
for each op; more where so much was touched since its last turn that its code left the L2; and more
again for an op that HBM bounds, whatever its size. Hits also end earlier, and more slowly, than for
a kernel that reads one buffer over and over. All of it is fitted to the untraced times of whole
decode steps whose purpose is "fit": a tracer puts gaps between kernels that are not there without
it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median

import numpy as np

from layerwise.calibration.held_out import conformal_quantile
from layerwise.calibration.least_squares import (
    Column,
    Estimate,
    FitError,
    fit_linear,
    standard_errors,
)
from layerwise.sim.cost.model import INTERLEAVED_RAMP, Calibrated
from layerwise.sim.plan.files import scenario_from_data
from layerwise.sim.plan.scenario import Scenario, compile_run
from layerwise.sim.profile import Constant, Profile
from layerwise.sim.simulate import simulate_scenario
from layerwise.sim.trace import Trace
from layerwise.sim.uncertainty import uncertainty_of

# Seconds of each op; of each whose code left the L2; of each that HBM bounds.
TIMES = ("interleaved_s", "interleaved_code_s", "interleaved_hbm_s")
MICROSECOND = 1e-6
# Microseconds: wider than any machine's, so that they only matter without data.
WIDTHS = np.full(len(TIMES), 100.0)
# Relative error above which a step is an outlier: some of its ops are worse off than that.
SOFT = 0.01
# Shares of the L2 between which hits end: first these pairs, then the neighbours of the best one.
RAMPS = tuple(
    (full, no) for full in (0.4, 0.5, 0.6, 0.7, 0.8) for no in (0.7, 0.8, 0.9, 1.0) if full < no
)
FINER = 0.05
MIN_STEPS = 2
# Two of the ramp, three times, and the scatter.
MOST_CONSTANTS = 6
# Twenty-eight layers, measured again on another H100: the median difference was 0.12 %.
REPEATS_TO = 1e-3


@dataclass(frozen=True)
class Steps:
    """Whole steps: what was measured, what ops alone add up to, and seconds more for a us of TIMES.

    [steps], slopes [steps, times]. Steps are linear in these times.
    """

    names: tuple[str, ...]
    measured_s: Column
    alone_s: Column
    slopes: Column

    def fit(self, kept: Column | None = None) -> tuple[Column, Column, Column]:
        """(times in us, their standard errors, relative residuals) of the steps kept; all if None."""
        rows = np.arange(len(self.names)) if kept is None else np.flatnonzero(kept)
        weight = 1 / self.measured_s[rows]
        design = self.slopes[rows] * weight[:, None]
        target = (self.measured_s - self.alone_s)[rows] * weight
        times_us, residuals = fit_linear(design, target, soft=SOFT)
        return times_us, standard_errors(design, residuals, WIDTHS, REPEATS_TO), residuals

    def predicted_s(self, times_us: Column) -> Column:
        """Steps with these times of ops."""
        return self.alone_s + self.slopes @ times_us


def fit_interleaving(profile: Profile, traces: Sequence[Trace], source: str) -> dict[str, Constant]:
    """The constants for which whole steps come out nearest to their untraced times.

    Least squares of relative errors, in which no outlier rules. Hits end where the read curve says
    unless steps tell otherwise. Raises FitError when fewer than two decode steps were measured in a
    graph.
    """
    chosen = _decode_steps(profile, traces)
    ramp = _best_ramp(profile, chosen)
    times_us, errors_us, _ = steps_of(_with_ramp(profile, ramp), chosen).fit()
    return {
        name: Estimate(float(us) * MICROSECOND, float(error_us) * MICROSECOND).constant("s", source)
        for name, us, error_us in zip(TIMES, times_us, errors_us, strict=True)
    } | {
        name: Estimate(end, FINER).constant("of L2 size", source)
        for name, end in zip(INTERLEAVED_RAMP, ramp, strict=True)
    }


def held_out_step_errors(profile: Profile, traces: Sequence[Trace]) -> dict[str, float]:
    """predicted / measured - 1 of each decode step, by times of ops fitted to the other ones.

    Where hits end is the profile's own.
    """
    steps = steps_of(profile, _decode_steps(profile, traces))
    errors: dict[str, float] = {}
    for index, name in enumerate(steps.names):
        times_us, _, _ = steps.fit(np.arange(len(steps.names)) != index)
        predicted = steps.predicted_s(times_us)[index]
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
        for scenario, trace in _decode_steps(bare, traces)
    ]
    return round(conformal_quantile(np.array(scores)), 4)


def _carried(profile: Profile, scenario: Scenario) -> float:
    run = compile_run(scenario)
    simulation = simulate_scenario(scenario, run, Calibrated.about(scenario.cluster, profile))
    found = uncertainty_of(simulation, [len(run) - 2], simulation.steady_step_s)
    assert found is not None
    return found.half_width


def on_its_host(scenario: Scenario, trace: Trace, profile: Profile) -> Scenario:
    """The scenario on a GPU whose HBM is as fast as the one that was measured.

    GPUs of one type differ: four H200s read 4.34, 4.39, 4.42 and 4.50 TB/s, and whole decode steps
    went with it. A trace carries its own GPU's rate; one without is taken as the profile's.
    """
    read = trace.measured.get("read_bandwidth_bytes_per_s")
    if not read:
        return scenario
    gpu, cluster = scenario.cluster.gpu, scenario.cluster
    faster = read / profile.machine["hbm_bytes_per_s"].value
    own = replace(gpu, hbm_bytes_per_s=gpu.hbm_bytes_per_s * faster)
    return replace(scenario, cluster=replace(cluster, gpu=own))


def steps_of(profile: Profile, chosen: Sequence[tuple[Scenario, Trace]]) -> Steps:
    """Simulate each step with none of the times, and with a microsecond of each alone."""
    bare = _with_machine(profile, dict.fromkeys(TIMES, 0.0))
    probes = [_with_machine(bare, {name: MICROSECOND}) for name in TIMES]
    alone = np.array([_step_s(bare, scenario) for scenario, _ in chosen])
    probed = np.array([[_step_s(probe, scenario) for probe in probes] for scenario, _ in chosen])
    return Steps(
        names=tuple(trace.name for _, trace in chosen),
        measured_s=np.array([median(trace.untraced_step_s) for _, trace in chosen]),
        alone_s=alone,
        slopes=probed - alone[:, None],
    )


def _decode_steps(profile: Profile, traces: Sequence[Trace]) -> list[tuple[Scenario, Trace]]:
    read = [
        (on_its_host(scenario_from_data(trace.scenario, trace.name), trace, profile), trace)
        for trace in traces
    ]
    found = [
        (scenario, trace)
        for scenario, trace in read
        if scenario.run.launch == "graph" and scenario.workload.phase == "decode"
    ]
    if len(found) < MIN_STEPS:
        raise FitError(
            f"{len(found)} decode steps kept for fitting were measured in a graph; measure "
            f"{MIN_STEPS} or more"
        )
    return found


def _best_ramp(profile: Profile, chosen: Sequence[tuple[Scenario, Trace]]) -> tuple[float, float]:
    """The ends that fit best; those of the read curve where none fits better for two more."""

    def loss(ramp: tuple[float, float]) -> float:
        residuals = steps_of(_with_ramp(profile, ramp), chosen).fit()[2]
        soft = 2 * SOFT**2 * (np.sqrt(1 + (residuals / SOFT) ** 2) - 1)
        return float(np.sum(soft)) + len(chosen) * REPEATS_TO**2

    as_read = profile.machine["l2_full_hit"].value, profile.machine["l2_no_hit"].value
    needed_gain = _needed_gain(len(chosen))
    if math.isinf(needed_gain):
        return as_read
    losses = {ramp: loss(ramp) for ramp in RAMPS}
    full, no = min(losses, key=lambda ramp: losses[ramp])
    for steps in product((-FINER, 0, FINER), repeat=2):
        ramp = round(full + steps[0], 2), round(no + steps[1], 2)
        if ramp not in losses and ramp[0] < ramp[1]:
            losses[ramp] = loss(ramp)
    best = min(losses, key=lambda ramp: losses[ramp])
    return best if needed_gain * losses[best] < loss(as_read) else as_read


def _needed_gain(num_steps: int) -> float:
    """By how much five constants must fit better than three to be worth two more.

    Source: Akaike's criterion with its correction for few data (Hurvich and Tsai, 1989).
    """
    if num_steps <= MOST_CONSTANTS + 1:
        return math.inf
    few, many = (
        2 * k + 2 * k * (k + 1) / (num_steps - k - 1) for k in (MOST_CONSTANTS - 2, MOST_CONSTANTS)
    )
    return math.exp((many - few) / num_steps)


def _step_s(profile: Profile, scenario: Scenario) -> float:
    cost = Calibrated.about(scenario.cluster, profile)
    return simulate_scenario(scenario, compile_run(scenario), cost).steady_step_s


def _with_ramp(profile: Profile, ramp: tuple[float, float]) -> Profile:
    return _with_machine(profile, dict(zip(INTERLEAVED_RAMP, ramp, strict=True)))


def _with_machine(profile: Profile, values: Mapping[str, float]) -> Profile:
    changed = {name: replace(profile.machine[name], value=value) for name, value in values.items()}
    return replace(profile, machine=profile.machine | changed)

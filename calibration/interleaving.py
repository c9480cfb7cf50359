"""What an op costs more between other ops than in a row of its own kind.

A sweep repeats one kernel. In a stage every kernel follows another one, and is slower: its code
and its memory's pages are not at hand. Two constants, fitted to whole stages whose purpose is
"fit": a fixed time per op, and a fraction of the time of ops that HBM bounds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import numpy as np
from scipy.optimize import lsq_linear

from calibration.least_squares import Estimate, FitError, standard_errors
from sim.cost.model import Calibrated
from sim.plan.files import scenario_from_data
from sim.plan.scenario import compile_run
from sim.profile import Constant, Profile
from sim.simulate import simulate
from sim.trace import Trace

# Microseconds and a fraction: wider than any machine's, so that they only matter without data.
WIDTHS = np.array([100.0, 1.0])


def no_interleaving() -> dict[str, Constant]:
    """Both constants at zero: ops cost what the sweep says."""
    zero = Constant(value=0.0, standard_error=0.0, unit="", source="none")
    return {"interleaved_s": zero, "interleaved_hbm_slowdown": zero}


def fit_interleaving(profile: Profile, traces: Sequence[Trace], source: str) -> dict[str, Constant]:
    """Least squares of (measured - predicted) on [1, predicted if bound by HBM], per op.

    Rows are weighted by 1 / measured, and one row stands for all microbatches of an op. Raises
    FitError when no decode stage was traced in a graph.
    """
    pairs = [pair for trace in traces for pair in _pairs(profile, trace)]
    if len(pairs) < 6:
        raise FitError("no decode stage kept for fitting was traced in a graph; measure one")
    measured, predicted, is_hbm = (np.array(column) for column in zip(*pairs, strict=True))
    weight = 1 / measured
    design = np.column_stack([np.ones(len(pairs)) * 1e-6, predicted * is_hbm]) * weight[:, None]
    result = lsq_linear(design, (measured - predicted) * weight, bounds=(0, np.inf))
    per_op, slowdown = (
        Estimate(float(value), float(error))
        for value, error in zip(result.x, standard_errors(design, result.fun, WIDTHS), strict=True)
    )
    return {
        "interleaved_s": Estimate(per_op.value * 1e-6, per_op.standard_error * 1e-6).constant(
            "s", source
        ),
        "interleaved_hbm_slowdown": slowdown.constant("1", source),
    }


def _pairs(profile: Profile, trace: Trace) -> list[tuple[float, float, bool]]:
    """(measured, predicted, bound by HBM) per op, each from the end of the op before it."""
    scenario = scenario_from_data(trace.scenario, trace.name)
    if scenario.run.launch != "graph" or scenario.workload.phase != "decode":
        return []
    simulation = simulate(
        compile_run(scenario), Calibrated(scenario.cluster, profile), scenario.cluster,
        alone=scenario.run.only_rank, keep_rows=True,
    )  # fmt: skip
    step = trace.rows[0].step
    expected = {row.op: row for row in simulation.rows if row.step == step and not row.replaced}
    found: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
    for row in trace.rows:
        # The first op of a step follows nothing: its gap is not in the trace.
        if row.op in expected and row.ready_s > 0:
            twin = expected[row.op]
            found[row.op.partition("@")[0]].append(
                (row.end_s - row.ready_s, twin.end_s - twin.ready_s, "hbm" in twin.bound)
            )
    return [
        (median(m for m, _, _ in rows), median(p for _, p, _ in rows), rows[0][2])
        for rows in found.values()
    ]

"""A GPU that 'measures' what the simulator says of a truth: instruments for whole calibrations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from layerwise.calibration.l2_curve import pass_seconds
from layerwise.calibration.points import SweepPoint
from layerwise.calibration.selection import FIT_SIZES_BYTES
from layerwise.scenarios.calibrate.collect import Instruments
from layerwise.scenarios.predict.alone import predict_run
from layerwise.sim.cost.kinds import kind_of
from layerwise.sim.plan.program import Program
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.profile import Constant, OpFit, Profile
from layerwise.sim.residuals import ErrorScale
from layerwise.sim.trace import Trace
from tests.calibration.fabricated import (
    ENVIRONMENT,
    GPU,
    GRAPH_LAUNCH_S,
    MACHINE_L2,
    op_seconds_under,
    stage_trace,
    true_profile,
)
from tests.synthetic import constant

MEASURED_HERE = ENVIRONMENT | {"gpu": "another H100", "driver": "2"}


def shipped_truth() -> Profile:
    """The synthetic profile as if it had been calibrated: with reads, and intervals of 5 %."""
    truth = true_profile()
    fits = {
        kind: replace(fit, error_scale=ErrorScale.constant(0.05))
        for kind, fit in truth.fits.items()
    }
    reads = {
        name: replace(constant(value), standard_error=0.003 * value)
        for name, value in MACHINE_L2.items()
    }
    return replace(truth, fits=fits, machine=truth.machine | reads)


def slowed(profile: Profile, matmuls: float, hbm: float) -> Profile:
    """A machine whose matmuls take `matmuls` times as long and whose HBM is `hbm` times as slow."""
    rates = ("hbm_bytes_per_s", "read_hbm_bytes_per_s")

    def with_hbm(constants: dict[str, Constant]) -> dict[str, Constant]:
        return {
            n: replace(c, value=c.value / hbm) if n in rates else c for n, c in constants.items()
        }

    fits = {
        kind: replace(fit, constants=with_hbm(fit.constants)) for kind, fit in profile.fits.items()
    }
    fits["matmul"] = _times(fits["matmul"], matmuls)
    return replace(profile, fits=fits, machine=with_hbm(profile.machine))


def _times(fit: OpFit, factor: float) -> OpFit:
    slower = ("launch_s", "miss_s", "prologue_s", "split_s")
    faster = (
        "efficiency",
        "sm_bytes_per_s",
        "epilogue_bytes_per_s",
        "reduction_bytes_per_s",
        "hbm_bytes_per_s",
        "l2_bytes_per_s",
    )
    powers = dict.fromkeys(slower, 1) | dict.fromkeys(faster, -1)
    return replace(
        fit,
        constants={
            name: replace(c, value=c.value * factor ** powers.get(name, 0))
            for name, c in fit.constants.items()
        },
    )


_TRACES: dict[tuple[str, str], Trace] = {}


def _true_trace(digest: str, name: str, asked: Callable[[], tuple[Scenario, Profile]]) -> Trace:
    """A run under a truth: simulated once, for many tests ask for the same."""
    if (digest, name) in _TRACES:
        return _TRACES[digest, name]
    scenario, truth = asked()
    read = {"read_bandwidth_bytes_per_s": truth.machine["hbm_bytes_per_s"].value}
    trace = stage_trace(scenario, truth, measured=read)
    if scenario.run.launch == "eager":
        num_ops = len({row.op for row in trace.rows if not row.replaced})
        steps = tuple(8e-6 * num_ops * (1 + 0.01 * n) for n in (-1, 0, 1))
        trace = replace(trace, untraced_step_s=steps)
    elif scenario.workload.phase == "decode":
        trace = replace(trace, untraced_step_s=(predict_run(scenario, truth).step_s,) * 3)
    return _TRACES.setdefault((digest, name), trace)


@dataclass
class PretendGpu:
    """Measures under `truth` with noise; no more than `most_points` points in one call.

    `most_in`: the same for one file, by its stem.
    """

    truth: Profile
    noise: float = 0.01
    most_points: int = 10**6
    most_in: dict[str, int] = field(default_factory=dict[str, int])
    environment: dict[str, str] = field(default_factory=lambda: dict(MEASURED_HERE))
    spoil: Callable[[Trace], Trace] = lambda trace: trace
    asked: list[str] = field(default_factory=list[str])

    @property
    def instruments(self) -> Instruments:
        return Instruments(
            environment=lambda: self.environment,
            curve=self._curve,
            stage=self._trace,
            layer=self._trace,
            programs=self._programs,
            pairs=lambda: nullcontext(self._trace),
            in_both=self._programs,
        )

    def _curve(self, task: str) -> list[tuple[int, float]]:
        self.asked.append(task)
        values = {name: self.truth.machine[name].value for name in MACHINE_L2}
        sizes = np.array(FIT_SIZES_BYTES, dtype=np.float64)
        noise = 1 + 0.003 * np.random.default_rng(1).standard_normal(len(sizes))
        seconds = pass_seconds(values, sizes, GPU.l2_bytes) * noise
        return [(int(b), float(s)) for b, s in zip(sizes, seconds, strict=True)]

    def _trace(self, scenario: Scenario) -> Trace:
        self.asked.append(scenario.name)
        trace = _true_trace(self.truth.digest, scenario.name, lambda: (scenario, self.truth))
        return self.spoil(replace(trace, environment=self.environment))

    def _programs(self, points: Iterable[tuple[str, Program]], out: Path, budget_s: float) -> int:
        del budget_s
        lines = out.read_text().splitlines() if out.exists() else []
        done = {json.loads(line)["name"] for line in lines}
        todo = [(name, program) for name, program in points if name not in done]
        rng = np.random.default_rng(len(todo) + len(out.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        most = self.most_in.get(out.stem, self.most_points)
        with out.open("a") as file:
            for name, program in todo[:most]:
                self.asked.append(name)
                step_s = self._step_s(name, program) * (1 + self.noise * rng.standard_normal())
                row = {"name": name, "step_s": step_s, "num_ops": len(program.parts)}
                file.write(json.dumps(row) + "\n")
        return max(0, len(todo) - most)

    def _step_s(self, name: str, program: Program) -> float:
        op = program.parts[0].segment.ops[0]
        num = len(program.parts)
        made = SweepPoint(name=name, kind=kind_of(op).name, op=op, num_repeats=num, program=program)  # type: ignore[arg-type]
        return GRAPH_LAUNCH_S + num * op_seconds_under(made, self.truth)

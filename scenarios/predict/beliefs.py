"""Any scenario predicted under three beliefs, and committed ahead of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from layerwise.scenarios.predict.alone import predict_run, run_plan
from layerwise.scenarios.predict.committed import read_committed, write_committed
from layerwise.sim.cost.uncalibrated import published_profile
from layerwise.sim.cost.unfitted import Change, sentences
from layerwise.sim.memory import remedies
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.placement import Placement, stage_fits
from layerwise.sim.plan.scenario import Scenario, compile_run
from layerwise.sim.power import Power
from layerwise.sim.predict import Prediction, predict_plan
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import Plan

OTHER_BELIEFS = (
    "the speed of light and the uncalibrated figures know no attention kernel by name: they are the "
    "same for all"
)
FORMAT = "layerwise-prediction"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CommittedPrediction:
    """What was predicted before a run was made. `ops`: seconds per step and rank, by op.

    `created`: UTC, ISO 8601. `half_width`: of the 90 % interval of the step, as ln. `clock_share` of
    full clock, mean `watts` of a GPU and `energy_per_step_j` of all: 0 where the profile knew no power.
    Files from before these fields read as 0, and `regime` as "".
    """

    name: str
    profile_digest: str
    predicted_step_s: float
    created: str
    ops: dict[str, float] = field(default_factory=dict)
    regime: str = ""
    half_width: float = 0.0
    clock_share: float = 0.0
    watts: float = 0.0
    energy_per_step_j: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ThreeBeliefs:
    """A scenario at the speed of light, uncalibrated and, with a profile, calibrated.

    `alone_step_s`: the step of `run.only_rank` by itself, as one measured GPU would run it; None
    when all ranks run.
    """

    speed_of_light: Prediction
    uncalibrated: Prediction
    calibrated: Prediction | None
    alone_step_s: float | None

    @property
    def best(self) -> Prediction:
        """The calibrated prediction, or without a profile the uncalibrated one."""
        return self.calibrated or self.uncalibrated

    @property
    def shown(self) -> tuple[Prediction, ...]:
        """Every belief there is, the most optimistic first."""
        return (self.speed_of_light, self.uncalibrated) + (
            (self.calibrated,) if self.calibrated else ()
        )


def predict_all(plan: Plan) -> ThreeBeliefs:
    """Predict a plan under every belief; raises what `layerwise.sim.resolve.cost_model` raises.

    A number of microbatches left open is the best of each bound's own; the uncalibrated prediction
    takes the calibrated one's, so that they differ in belief alone.
    """
    calibrated = predict_plan(plan.under("calibrated")) if plan.profile else None
    found = plan.with_microbatches(calibrated.num_microbatches) if calibrated else plan
    uncalibrated = predict_plan(found.under("uncalibrated"))
    return ThreeBeliefs(
        speed_of_light=predict_plan(plan.under("speed_of_light")),
        uncalibrated=uncalibrated,
        calibrated=calibrated,
        alone_step_s=_alone_step_s(plan.with_microbatches(uncalibrated.num_microbatches)),
    )


def _alone_step_s(plan: Plan) -> float | None:
    if plan.scenario.run.only_rank < 0:
        return None
    if plan.profile:
        return run_plan(plan.under("calibrated")).step_s
    return predict_run(plan.scenario, published_profile(plan.scenario.cluster)).step_s


def commit_prediction(plan: Plan, path: Path) -> str:
    """Write what is predicted now; returns a sentence.

    Raises SpecError without a profile, FileFormatError when the file exists: a prediction made
    before a run is not made again after it.
    """
    profile = plan.profile
    if profile is None:
        raise SpecError("--profile", None, "is needed to commit a prediction", "give a profile")
    made = write_committed(path, lambda: _committed(plan, profile.digest), FORMAT, VERSION)
    return f"{path}: predicted step {made.predicted_step_s:.6g} s with profile {profile.digest}"


def _committed(plan: Plan, profile_digest: str) -> CommittedPrediction:
    scenario, run = plan.scenario, run_plan(plan)
    ops: dict[str, float] = defaultdict(float)
    last = len(run.run) - 2 if len(run.run) > 1 and scenario.workload.phase == "decode" else -1
    rows = [row for row in run.rows if not row.replaced and last in (-1, row.step)]
    num_spans = len({(row.step, row.rank) for row in rows}) or 1
    for row in rows:
        ops[row.op.partition("@")[0]] += row.duration_s / num_spans
    return CommittedPrediction(
        name=scenario.name,
        profile_digest=profile_digest,
        predicted_step_s=run.step_s,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        ops=dict(ops),
        regime=scenario.run.regime,
        half_width=run.uncertainty.half_width if run.uncertainty else 0.0,
        **_power_of(run.power),
    )


def _power_of(power: Power | None) -> dict[str, float]:
    if power is None:
        return {}
    return {
        "clock_share": power.clock_share,
        "watts": power.watts,
        "energy_per_step_j": power.energy_per_step_j,
    }


def read_prediction(path: Path) -> CommittedPrediction | None:
    """A committed prediction, or None where none was made; raises what `read_committed` does."""
    return read_committed(path, CommittedPrediction, FORMAT, VERSION)


def prediction_as_data(prediction: Prediction) -> dict[str, Any]:
    """A prediction with stable keys, SI units in their names."""
    return {
        "belief": prediction.belief,
        "num_microbatches": prediction.num_microbatches,
        "tokens_per_s": prediction.tokens_per_s,
        "inverse_throughput_s": prediction.inverse_throughput_s,
        "tpot_s": prediction.tpot_s,
        "step_s": prediction.step_s,
        "from_idle_s": prediction.from_idle_s,
        "bubble_share": prediction.bubble,
        "bound_share": dict(prediction.share),
        "wire_bytes_per_step": dict(prediction.wire_bytes),
        "busy_share_by_rank": list(prediction.busy_share_by_rank),
        "peak_memory_bytes": prediction.peak_memory_bytes,
        "fits": prediction.fits,
        "is_steady": prediction.is_steady,
        "num_extrapolated_ops": prediction.num_extrapolated_ops,
        "unfitted": unfitted_as_data(prediction.unfitted),
        "interval": _interval(prediction),
        "power": power_as_data(prediction),
        "memory": [
            asdict(b) | {"total_bytes": b.total_bytes, "fits": b.fits} for b in prediction.memory
        ],
    }


def power_as_data(prediction: Prediction) -> dict[str, Any] | None:
    """What it draws; of `clock_share` 1 no limit acts. None where nobody measured power."""
    power = prediction.power
    if power is None:
        return None
    return {
        "clock_share": power.clock_share,
        "clock_share_by_rank": {str(k): v for k, v in power.clock_share_by_rank.items()},
        "mean_power_w": power.watts,
        "max_power_w": power.max_watts,
        "energy_per_step_j": power.energy_per_step_j,
        "energy_per_token_j": prediction.energy_per_token_j,
        "clock_log_half_width": power.clock_half_width,
        "energy_log_half_width": power.energy_half_width,
    }


def unfitted_as_data(changes: Iterable[Change]) -> list[dict[str, Any]]:
    """What no fit has seen, a record each; `log_half_width` None: it takes the interval away."""
    return [
        {
            "aspect": one.aspect,
            "kind": one.kind,
            "used": one.used,
            "fitted": list(one.fitted),
            "log_half_width": one.half_width,
            "said": " ".join(sentences([one])),
        }
        for one in changes
    ]


def _interval(prediction: Prediction) -> dict[str, Any] | None:
    """Where 90 % of measured values lie, and the ops outside what was calibrated."""
    found, step = prediction.uncertainty, prediction.interval
    rate = prediction.tokens_per_s_interval
    if found is None or step is None or rate is None:
        return None
    return {
        "coverage": 0.9,
        "log_half_width": found.half_width,
        "step_s": asdict(step),
        "tokens_per_s": asdict(rate),
        "inverse_throughput_s": {"low": 1 / rate.high, "high": 1 / rate.low},
        "beyond": [asdict(one) | {"carried": one.carried} for one in found.beyond],
    }


def count_ops(scenario: Scenario, prediction: Prediction) -> int:
    """Ops of the steps that a prediction is of, all ranks: one decode step, or a whole prefill."""
    run = compile_run(scenario.with_microbatches(prediction.num_microbatches))
    steps = run[:1] if prediction.phase == "decode" else run
    return sum(len(program) for step in steps for program in step.programs)


def warnings_of(scenario: Scenario, prediction: Prediction) -> tuple[str, ...]:
    """What to know before trusting a prediction, a sentence each: extrapolation, unsteadiness."""
    found: list[str] = []
    name = prediction.placement
    if prediction.num_extrapolated_ops:
        found.append(
            f"{name}: {prediction.num_extrapolated_ops:,} of {count_ops(scenario, prediction):,} "
            f"ops {'per step' if prediction.phase == 'decode' else 'in all'} lie outside what was "
            "calibrated."
        )
    found += [f"{name}: {said}." for said in unfitted_sentences(scenario, prediction)]
    if not prediction.is_steady:
        found.append(
            f"{name}: the stream of steps is not steady after the longest run simulated; the last "
            "two steps differ by more than 0.1 %."
        )
    if scenario.run.launch == "eager":
        found.append(
            f"{name}: one constant stands for what a host takes to launch anything, messages too; no "
            "interval knows how far it is off (layerwise accuracy --gpu h200 shows it for two GPUs)."
        )
    used, there = len(prediction.memory), scenario.cluster.num_gpus
    if used < there and scenario.run.only_rank < 0:
        found.append(
            f"{name} uses {used} of {there} GPUs; give placement.pipeline_parallel or "
            "placement.data_parallel to use them all."
        )
    return tuple(found)


def unfitted_sentences(scenario: Scenario, prediction: Prediction) -> tuple[str, ...]:
    """What no fit has seen, a sentence each. A kernel that nobody named is the belief's to choose."""
    is_told = prediction.belief == "calibrated" or scenario.kernels is not None
    changes = [one for one in prediction.unfitted if is_told or one.aspect != "kernel"]
    told = sentences(changes)
    if prediction.belief == "calibrated" and any(one.aspect == "kernel" for one in changes):
        told += (OTHER_BELIEFS,)
    return told


def on_chip_line(scenario: Scenario, placement: Placement) -> str:
    """Does each stage's share of the weights fit what a layer-wise placement aimed at? "" if none.

    The capacity is `placement.on_chip_bytes`: the GPU's L2 unless the scenario says otherwise.
    """
    if not placement.on_chip_bytes:
        return ""
    size = max(stage.num_layers for stage in placement.replicas[0])
    size *= scenario.model.layer_weight_bytes
    fitting = stage_fits(scenario.model, placement)
    verdict = "fits" if all(fitting) else "does not fit"
    if any(fitting) and not all(fitting):
        verdict = f"fits in {sum(fitting)} of {len(fitting)} stages only"
    whose = "one stage's" if len(fitting) > 1 else "the stage's"
    kv_bytes = _kv_bytes_of_a_microbatch(scenario, placement)
    if all(fitting) and size + kv_bytes > placement.on_chip_bytes:
        verdict += (
            f", but each microbatch reads {kv_bytes / 1e6:,.0f} MB of KV cache between two uses of "
            "them, and pushes them out"
        )
    return (
        f"{whose} weights: {size / 1e6:,.1f} MB, {size / placement.on_chip_bytes:.3g} times the "
        f"{placement.on_chip_bytes / 1e6:,.1f} MB on-chip capacity: {verdict}"
    )


def _kv_bytes_of_a_microbatch(scenario: Scenario, placement: Placement) -> int:
    """What one decode step of a stage reads of its cache; of a prefill, nothing is known here.

    Where the number of microbatches is searched, one for each stage is taken.
    """
    work = scenario.workload
    if work.phase != "decode":
        return 0
    layers = max(stage.num_layers for stage in placement.replicas[0])
    num_microbatches = work.num_microbatches or placement.num_stages
    sequences = work.batch_size / placement.data_parallel / num_microbatches
    per_token = scenario.model.kv_bytes_per_token_per_layer * layers
    return round(sequences * work.context_tokens * per_token)


def predicted_as_data(scenario: Scenario, plan: Plan, beliefs: ThreeBeliefs) -> dict[str, Any]:
    """Write out everything about a scenario, as it was asked and as it was resolved."""
    fullest = max(beliefs.best.memory, key=lambda budget: budget.total_bytes)
    fits = beliefs.best.fits
    return {
        "scenario": asdict(scenario),
        "placement": beliefs.best.placement,
        "provenance": provenance_of(plan.profile),
        "speed_of_light": prediction_as_data(beliefs.speed_of_light),
        "uncalibrated": prediction_as_data(beliefs.uncalibrated),
        "predicted": prediction_as_data(beliefs.calibrated) if beliefs.calibrated else None,
        "alone_step_s": beliefs.alone_step_s,
        "warnings": list(warnings_of(scenario, beliefs.best)),
        "on_chip": on_chip_line(scenario, plan.placement),
        "remedies": [] if fits else [asdict(r) for r in remedies(scenario, fullest)],
    }


def provenance_of(profile: Profile | None) -> dict[str, Any]:
    """What made these figures: package version and profile."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        package = version("layerwise")
    except PackageNotFoundError:
        package = "not installed"
    if profile is None:
        return {"package_version": package, "profile": None}
    return {
        "package_version": package,
        "profile": {
            "name": profile.name,
            "digest": profile.digest,
            "gpu": profile.gpu,
            "provenance": dict(profile.provenance),
            "data_hashes": dict(profile.data_hashes),
        },
    }

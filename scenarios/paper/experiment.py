"""The paper's experiment: its claims, the predictions, the measurements and a verdict per claim.

Pure apart from reading the profile and traces: `ask` returns a report, others print it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from layerwise.scenarios.compare.joined import StageScore, score_stage
from layerwise.scenarios.paper import mechanism
from layerwise.scenarios.paper import verdicts as claims
from layerwise.scenarios.paper.readings import Believed, name_of, readings_of
from layerwise.scenarios.paper.verdicts import Beliefs, Judged, Reading
from layerwise.scenarios.predict.alone import measured_stage_s
from layerwise.sim.memory import Remedy, remedies
from layerwise.sim.plan.ops import AllReduceAlgorithm
from layerwise.sim.plan.overrides import with_values
from layerwise.sim.plan.scenario import Launch, Scenario, Strategy, paper_scenario
from layerwise.sim.plan.workload import Phase, Workload
from layerwise.sim.predict import Prediction, predict, predict_plan
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import best_belief, fill_kernels, resolve
from layerwise.sim.trace import Trace
from layerwise.sim.uncertainty import Interval, around, half_width_of_ratio

VOCABULARY = 32_000
TENSOR_PIPELINE: Strategy = "tensor-pipeline"
LAYER_WISE: Strategy = "layer-wise"
ONE_SHOT = "all_reduce.one_shot.8"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked: a preset model, a phase, how kernels are launched.

    `changes` are made to the scenario of either placement, by key.
    """

    model: str = "paper-16"
    phase: Phase = "decode"
    launch: Launch = "graph"
    changes: Mapping[str, object] = field(default_factory=dict[str, object])

    def scenario(self, strategy: Strategy) -> Scenario:
        """The paper's scenario for one placement, its number of microbatches left open.

        Raises what `with_values` raises for changes that cannot be made.
        """
        scenario = paper_scenario(strategy, self.model, Workload(phase=self.phase))
        scenario = replace(scenario, run=replace(scenario.run, launch=self.launch))
        return with_values(scenario, self.changes) if self.changes else scenario


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One placement: asked, claimed, believed and, where a trace speaks to it, measured.

    `measured_stage_s`: the step of one of its GPUs alone, on a real one; None without a trace.
    """

    scenario: Scenario
    all_reduce: str
    claimed_tokens_per_s: float
    claimed_inverse_throughput_s: float
    beliefs: Beliefs
    measured_stage_s: float | None

    @property
    def best(self) -> Prediction:
        """The calibrated prediction, or the speed of light without a profile."""
        return self.beliefs.calibrated or self.beliefs.speed_of_light


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Both placements with an LM head, at the numbers of microbatches chosen without one."""

    vocab_size: int
    baseline: Prediction
    layer_wise: Prediction


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything `layerwise paper` says. `entries`: baseline, its one-shot variant, layer-wise."""

    question: Question
    profile: Profile | None
    entries: tuple[Entry, ...]
    claims: tuple[Judged, ...]
    readings: tuple[Reading, ...]
    head: Sensitivity
    stages: tuple[StageScore, ...]
    remedies: tuple[tuple[Remedy, ...], ...]

    @property
    def baselines(self) -> tuple[Entry, ...]:
        """The paper's baseline, one entry per all-reduce algorithm."""
        return self.entries[:-1]

    @property
    def layer_wise(self) -> Entry:
        """The paper's proposal."""
        return self.entries[-1]

    @property
    def best_baseline(self) -> Entry:
        """The faster baseline."""
        return max(self.baselines, key=lambda entry: entry.best.tokens_per_s)

    @property
    def gain_90(self) -> Interval | None:
        """The 90 % interval of layer-wise over the faster baseline, less one; None without a profile.

        Errors that both placements share cancel in it.
        """
        ours, theirs = self.layer_wise.best, self.best_baseline.best
        if ours.uncertainty is None or theirs.uncertainty is None:
            return None
        ratio = ours.tokens_per_s / theirs.tokens_per_s
        found = around(ratio, half_width_of_ratio(ours.uncertainty, theirs.uncertainty))
        return Interval(found.low - 1, found.high - 1)


def ask(question: Question, profile: Profile | None, traces: tuple[Trace, ...] = ()) -> Report:
    """Predict both placements, compare with what was measured, judge every claim.

    Raises ProfileMismatchError for a profile of another GPU, TraceMismatchError for a trace that
    cannot be compared.
    """
    entries = _entries(question, profile, traces)
    baseline = max(entries[:-1], key=lambda entry: entry.best.tokens_per_s)
    *theirs, ours = (Believed(scenario=each.scenario, prediction=each.best) for each in entries)
    readings = readings_of(theirs, ours, profile)
    return Report(
        question=question,
        profile=profile,
        entries=entries,
        claims=_judge(entries, baseline, readings),
        readings=readings,
        head=_with_head(profile, baseline, entries[-1]),
        stages=tuple(score_stage(trace, profile) for trace in traces) if profile else (),
        remedies=(_remedies(entries[0]),) * (len(entries) - 1) + (_remedies(entries[-1]),),
    )


def _entries(
    question: Question, profile: Profile | None, traces: tuple[Trace, ...]
) -> tuple[Entry, ...]:
    asked = question.scenario(TENSOR_PIPELINE)
    chosen = asked.given_all_reduce
    algorithms: list[AllReduceAlgorithm] = [chosen or "nccl"]
    # A profile without this table has nothing to say about it, and the report then says so.
    if not chosen and profile and ONE_SHOT in profile.transfers:
        algorithms.append("one_shot")
    baseline = fill_kernels(asked, profile)
    kernels = baseline.kernels_on()
    # A ring moves the fewest bytes of all algorithms: its bound is the bound of all of them.
    bound = predict(replace(baseline, kernels=replace(kernels, all_reduce="nccl")), None)
    variants = [replace(baseline, kernels=replace(kernels, all_reduce=a)) for a in algorithms]
    ours = fill_kernels(question.scenario(LAYER_WISE), profile)
    return (
        *(_entry(variant, bound, profile, traces) for variant in variants),
        _entry(ours, predict(ours, None), profile, traces),
    )


def _entry(
    scenario: Scenario, bound: Prediction, profile: Profile | None, traces: tuple[Trace, ...]
) -> Entry:
    baseline = scenario.placement.strategy == TENSOR_PIPELINE
    beliefs = _believe(scenario, bound, profile)
    chosen = beliefs.calibrated or bound
    kernels = scenario.kernels_on()
    return Entry(
        scenario=scenario,
        all_reduce=kernels.all_reduce if baseline else "",
        claimed_tokens_per_s=claims.BASELINE_TOKENS_PER_S
        if baseline
        else claims.LAYER_WISE_TOKENS_PER_S,
        claimed_inverse_throughput_s=claims.BASELINE_INVERSE_THROUGHPUT_S
        if baseline
        else claims.LAYER_WISE_INVERSE_THROUGHPUT_S,
        beliefs=beliefs,
        measured_stage_s=measured_stage_s(
            scenario.with_microbatches(chosen.num_microbatches), traces
        ),
    )


def _believe(scenario: Scenario, bound: Prediction, profile: Profile | None) -> Beliefs:
    """The uncalibrated prediction takes the calibrated one's number of microbatches."""
    plan = resolve(scenario, profile, best_belief(profile))
    best = predict_plan(plan)
    if profile is None:
        return Beliefs(speed_of_light=bound, uncalibrated=best, calibrated=None)
    fixed = plan.with_microbatches(best.num_microbatches)
    return Beliefs(
        speed_of_light=bound,
        uncalibrated=predict_plan(fixed.under("uncalibrated")),
        calibrated=best,
    )


def _judge(
    entries: tuple[Entry, ...], baseline: Entry, readings: tuple[Reading, ...]
) -> tuple[Judged, ...]:
    ours = entries[-1]
    model, gpu = ours.scenario.model, ours.scenario.cluster.gpu
    theirs, mine = baseline.beliefs, ours.beliefs
    asked = name_of(ours.scenario.workload)
    return (
        claims.judge_rate(
            "baseline_rate", "baseline", baseline.claimed_tokens_per_s, theirs, gpu, readings
        ),
        claims.judge_rate(
            "layer_wise_rate", "layer-wise", ours.claimed_tokens_per_s, mine, gpu, readings
        ),
        claims.judge_gain(tuple(entry.beliefs for entry in entries[:-1]), mine, gpu, readings),
        claims.judge_rate(
            "baseline_tpot",
            "baseline",
            baseline.claimed_inverse_throughput_s,
            theirs,
            gpu,
            readings,
            inverse=True,
        ),
        claims.judge_rate(
            "layer_wise_tpot",
            "layer-wise",
            ours.claimed_inverse_throughput_s,
            mine,
            gpu,
            readings,
            inverse=True,
        ),
        *mechanism.judge_cache(model, gpu, ours.best),
        mechanism.judge_parameters(model),
        mechanism.judge_equal_load(asked, baseline.best, ours.best),
        mechanism.judge_communication(asked, gpu, baseline.best, ours.best),
    )


def _with_head(profile: Profile | None, baseline: Entry, layer_wise: Entry) -> Sensitivity:
    def headed(entry: Entry) -> Prediction:
        scenario = entry.scenario.with_microbatches(entry.best.num_microbatches)
        model = scenario.model.with_vocabulary(VOCABULARY)
        return predict(replace(scenario, model=model), profile)

    return Sensitivity(
        vocab_size=VOCABULARY, baseline=headed(baseline), layer_wise=headed(layer_wise)
    )


def _remedies(entry: Entry) -> tuple[Remedy, ...]:
    if entry.best.fits:
        return ()
    fullest = max(entry.best.memory, key=lambda budget: budget.total_bytes)
    return remedies(entry.scenario, fullest)


def default_traces(folder: Path | None = None) -> tuple[Trace, ...]:
    """The committed validation traces."""
    from layerwise.calibration.data import validation_trace_paths
    from layerwise.sim.trace import read_trace

    return tuple(read_trace(path) for path in validation_trace_paths(folder))

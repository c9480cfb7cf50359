"""The paper's experiment: its claims, the predictions, the measurements and a verdict per claim.

Pure apart from reading the profile and traces: `ask` returns a report, others print it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from scenarios import paper_claims as claims
from scenarios.alone import measured_stage_s
from scenarios.compare import StageScore, score_stage
from scenarios.paper_claims import Beliefs, Judged
from sim.memory import Remedy, remedies
from sim.plan.compile import KernelChoice
from sim.plan.ops import AllReduceAlgorithm
from sim.plan.scenario import Launch, Scenario, Strategy, paper_scenario, place
from sim.plan.workload import Phase, Workload
from sim.predict import Prediction, predict
from sim.profile import Profile
from sim.trace import Trace

VOCABULARY = 32_000
# Keeps a pipeline of 16 stages fuller than two thirds at a batch of 128, and is quick to simulate.
SEQUENCES_PER_PREFILL_MICROBATCH = 4
TENSOR_PIPELINE: Strategy = "tensor-pipeline"
LAYER_WISE: Strategy = "layer-wise"
ONE_SHOT = "all_reduce.one_shot.8"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked: a preset model, a phase, how kernels are launched."""

    model: str = "paper-16"
    phase: Phase = "decode"
    launch: Launch = "graph"

    def scenario(self, strategy: Strategy) -> Scenario:
        """The paper's scenario for one placement, its number of microbatches left open."""
        scenario = paper_scenario(strategy, self.model, Workload(phase=self.phase))
        return replace(scenario, run=replace(scenario.run, launch=self.launch))


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
class Reading:
    """One reading of the paper's workload: both rates, and claim over prediction for each."""

    name: str
    baseline_tokens_per_s: float
    layer_wise_tokens_per_s: float
    fits: bool

    @property
    def claim_ratios(self) -> tuple[float, float]:
        """Claimed over predicted rate, of the baseline and of layer-wise."""
        return (
            claims.BASELINE_TOKENS_PER_S / self.baseline_tokens_per_s,
            claims.LAYER_WISE_TOKENS_PER_S / self.layer_wise_tokens_per_s,
        )

    @property
    def factor(self) -> float:
        """How far off the farther of the two is, as a factor of at least 1."""
        return max(max(ratio, 1 / ratio) for ratio in self.claim_ratios)


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


def ask(question: Question, profile: Profile | None, traces: tuple[Trace, ...] = ()) -> Report:
    """Predict both placements, compare with what was measured, judge every claim.

    Raises ProfileMismatchError for a profile of another GPU, TraceMismatchError for a trace that
    cannot be compared.
    """
    entries = _entries(question, profile, traces)
    baseline = max(entries[:-1], key=lambda entry: entry.best.tokens_per_s)
    return Report(
        question=question,
        profile=profile,
        entries=entries,
        claims=_judge(entries, baseline),
        readings=_readings(question, profile, baseline, entries[-1]),
        head=_with_head(profile, baseline, entries[-1]),
        stages=tuple(score_stage(trace, profile) for trace in traces) if profile else (),
        remedies=tuple(_remedies(entry) for entry in entries),
    )


def _entries(
    question: Question, profile: Profile | None, traces: tuple[Trace, ...]
) -> tuple[Entry, ...]:
    kernels = profile.kernels if profile else KernelChoice()
    algorithms: list[AllReduceAlgorithm] = ["nccl"]
    # A profile without this table has nothing to say about it, and the report then says so.
    if profile and ONE_SHOT in profile.transfers:
        algorithms.append("one_shot")
    baseline = question.scenario(TENSOR_PIPELINE).with_kernels(kernels)
    # A ring moves the fewest bytes of all algorithms: its bound is the bound of all of them.
    bound = predict(replace(baseline, kernels=replace(kernels, all_reduce="nccl")), None)
    variants = [replace(baseline, kernels=replace(kernels, all_reduce=a)) for a in algorithms]
    ours = question.scenario(LAYER_WISE).with_kernels(kernels)
    return (
        *(_entry(variant, bound, profile, traces) for variant in variants),
        _entry(ours, predict(ours, None), profile, traces),
    )


def _entry(
    scenario: Scenario, bound: Prediction, profile: Profile | None, traces: tuple[Trace, ...]
) -> Entry:
    baseline = scenario.placement.strategy == TENSOR_PIPELINE
    beliefs = Beliefs(
        speed_of_light=bound, calibrated=predict(scenario, profile) if profile else None
    )
    chosen = beliefs.calibrated or bound
    kernels = scenario.kernels or KernelChoice()
    return Entry(
        scenario=scenario,
        all_reduce=kernels.all_reduce if baseline else "",
        claimed_tokens_per_s=claims.BASELINE_TOKENS_PER_S if baseline
        else claims.LAYER_WISE_TOKENS_PER_S,
        claimed_inverse_throughput_s=claims.BASELINE_INVERSE_THROUGHPUT_S if baseline
        else claims.LAYER_WISE_INVERSE_THROUGHPUT_S,
        beliefs=beliefs,
        measured_stage_s=measured_stage_s(
            scenario.with_microbatches(chosen.num_microbatches), traces
        ),
    )  # fmt: skip


def _judge(entries: tuple[Entry, ...], baseline: Entry) -> tuple[Judged, ...]:
    ours = entries[-1]
    model, gpu = ours.scenario.model, ours.scenario.cluster.gpu
    theirs, mine = baseline.beliefs, ours.beliefs
    decoding = ours.scenario.workload.phase == "decode"
    return (
        claims.judge_rate("baseline_rate", "baseline",
                          baseline.claimed_tokens_per_s, theirs),
        claims.judge_rate("layer_wise_rate", "layer-wise",
                          ours.claimed_tokens_per_s, mine),
        claims.judge_gain(tuple(entry.beliefs for entry in entries[:-1]), mine),
        claims.judge_inverse("baseline_tpot", "baseline",
                             baseline.claimed_inverse_throughput_s, theirs, decoding=decoding),
        claims.judge_inverse("layer_wise_tpot", "layer-wise",
                             ours.claimed_inverse_throughput_s, mine, decoding=decoding),
        claims.judge_cache(model, gpu, ours.best),
        claims.judge_parameters(model),
        claims.judge_equal_load(baseline.best, ours.best),
        claims.judge_communication(gpu, baseline.best, ours.best),
    )  # fmt: skip


def _readings(
    question: Question, profile: Profile | None, baseline: Entry, layer_wise: Entry
) -> tuple[Reading, ...]:
    """The asked phase as predicted, and other readings with microbatches fixed, not searched.

    Decode then has one microbatch a stage: near the best, and readings differ by far more than
    microbatching moves them.
    """
    workload = layer_wise.scenario.workload
    full, mean = workload.context_tokens, workload.context_tokens // 2
    cases: list[tuple[str, Phase, int]] = [
        (f"decode at a context of {full:,} tokens", "decode", full),
        (f"decode at {mean:,}, the mean while generating {full:,}", "decode", mean),
        (f"prefill of {full:,} tokens", "prefill", full),
    ]
    result: list[Reading] = []
    for name, phase, context in cases:
        asked = (phase, context) == (question.phase, full)
        theirs, ours = (
            entry.best if asked else _read(entry, phase, context, profile)
            for entry in (baseline, layer_wise)
        )
        result.append(
            Reading(
                name=name, baseline_tokens_per_s=theirs.tokens_per_s,
                layer_wise_tokens_per_s=ours.tokens_per_s, fits=theirs.fits and ours.fits,
            )
        )  # fmt: skip
    return tuple(result)


def _read(entry: Entry, phase: Phase, context_tokens: int, profile: Profile | None) -> Prediction:
    workload = replace(
        entry.scenario.workload, phase=phase, context_tokens=context_tokens,
        num_microbatches=place(entry.scenario).num_stages if phase == "decode"
        else entry.scenario.workload.batch_size // SEQUENCES_PER_PREFILL_MICROBATCH,
    )  # fmt: skip
    return predict(replace(entry.scenario, workload=workload), profile)


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
    from calibration.data import validation_trace_paths
    from sim.trace import read_trace

    return tuple(read_trace(path) for path in validation_trace_paths(folder))

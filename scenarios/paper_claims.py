"""What the paper claims, and whether it holds. The paper's own numbers live here and nowhere else.

How a claim is judged (each rule is one function below):

- A claim is tested in the reading that is kindest to it, and the figure says which reading.
- *holds*: the calibrated prediction agrees with it. *does not hold*: it does not. *cannot hold*:
  no machine of these specifications could make it true, because the speed of light, arithmetic on
  the paper's own dimensions, or a capacity forbids it. *not decided*: it needs a calibrated
  prediction and there is no profile.
- A rate holds within a factor of 1 + RATE_TOLERANCE either way. Rates and their inverses are
  judged by the same factor, so that a throughput and its inverse never get different verdicts.
- A rate, or its inverse, cannot hold when even the speed of light is slower, or when the
  placement does not fit in memory.
- The gain holds when the predicted gain reaches the claim less GAIN_TOLERANCE (a larger gain
  holds too). The baseline is the faster of its all-reduce algorithms. It cannot hold when
  layer-wise at the speed of light, against the *calibrated* baseline, still gains less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sim.plan.hardware import GpuSpec
from sim.plan.model import ModelSpec
from sim.predict import Prediction

Verdict = Literal["holds", "does not hold", "cannot hold", "not decided"]

# Source of all five: paper, "Performance Metrics", tables "Throughput Analysis" and
# "Latency Analysis".
BASELINE_TOKENS_PER_S = 12_800.0
LAYER_WISE_TOKENS_PER_S = 15_360.0
GAIN = 0.20
BASELINE_INVERSE_THROUGHPUT_S = 0.078e-3
LAYER_WISE_INVERSE_THROUGHPUT_S = 0.065e-3
# Source: paper, "Cache Requirements": "Per layer memory: ~11GB (weights + activations + buffers)".
LAYER_BYTES = 11e9
# Source: paper, "Model Specifications": "Total Parameters: 30 billion (30B)".
PARAMETERS = 30e9
# Source: paper, "Dense Model: 16-layer fully connected neural network".
NUM_LAYERS = 16

# Decode at a context of 10,000 is one reading of the paper among several; closer than this is
# agreement, not knowledge.
RATE_TOLERANCE = 0.10
GAIN_TOLERANCE = 0.05
# Utilisation that differs by less between GPUs is equal for every practical purpose.
EQUAL_LOAD_SPREAD = 0.01
# Links that take a smaller share of a step than this are minimal.
MINIMAL_LINK_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One claim, its verdict, the figure that decides, and a `remark` for what it leaves open."""

    key: str
    claim: str
    verdict: Verdict
    figure: str
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Beliefs:
    """One placement at the speed of light and, with a profile, calibrated."""

    speed_of_light: Prediction
    calibrated: Prediction | None


def judge_rate(key: str, who: str, claimed_tokens_per_s: float, beliefs: Beliefs) -> Judged:
    """A rate in tokens/s: agreement within RATE_TOLERANCE either way."""
    claim = f"{who}: {_thousands(claimed_tokens_per_s)} tokens/s"
    bound, predicted = beliefs.speed_of_light, beliefs.calibrated
    verdict, figure = _without_rates(beliefs)
    if not verdict and bound.tokens_per_s < claimed_tokens_per_s:
        verdict = "cannot hold"
        figure = f"the speed of light is {_thousands(bound.tokens_per_s)} tokens/s"
        if predicted:
            figure += f" (predicted {_thousands(predicted.tokens_per_s)})"
    if not verdict and predicted:
        verdict = _agreement(predicted.tokens_per_s, claimed_tokens_per_s)
        gap = _gap(predicted.tokens_per_s, claimed_tokens_per_s)
        figure = f"predicted {_thousands(predicted.tokens_per_s)} tokens/s, {gap} the claim"
    return Judged(key=key, claim=claim, verdict=verdict or "not decided", figure=figure)


def judge_inverse(
    key: str, who: str, claimed_s: float, beliefs: Beliefs, *, decoding: bool
) -> Judged:
    """Seconds per token over the whole batch: the kinder reading of what the paper calls TPOT.

    Between two tokens of one sequence lies a whole step; the remark gives that time's bound.
    """
    claim = f'{who}: "TPOT" {claimed_s * 1e3:.3f} ms'
    bound, predicted = beliefs.speed_of_light, beliefs.calibrated
    verdict, figure = _without_rates(beliefs)
    if not verdict and bound.inverse_throughput_s > claimed_s:
        verdict = "cannot hold"
        figure = f"the speed of light is {_ms(bound.inverse_throughput_s)} per token"
        if predicted:
            figure += f" (predicted {_ms(predicted.inverse_throughput_s)})"
    if not verdict and predicted:
        verdict = _agreement(predicted.inverse_throughput_s, claimed_s)
        gap = _gap(predicted.inverse_throughput_s, claimed_s)
        figure = f"predicted {_ms(predicted.inverse_throughput_s)} per token, {gap} the claim"
    remark = f"as 1/throughput; one sequence waits {_ms(bound.tpot_s)} or more for a token"
    return Judged(
        key=key, claim=claim, verdict=verdict or "not decided", figure=figure,
        remark=remark if decoding else "as 1/throughput",
    )  # fmt: skip


def judge_gain(baselines: tuple[Beliefs, ...], layer_wise: Beliefs) -> Judged:
    """Layer-wise over the fastest baseline; also with both at the speed of light."""
    bound = max(b.speed_of_light.tokens_per_s for b in baselines)
    at_light = layer_wise.speed_of_light.tokens_per_s / bound - 1
    verdict, figure = _without_rates(layer_wise)
    calibrated = [b.calibrated.tokens_per_s for b in baselines if b.calibrated]
    if not verdict and layer_wise.calibrated and calibrated:
        best, ours = max(calibrated), layer_wise.calibrated.tokens_per_s
        gain = ours / best - 1
        ceiling = layer_wise.speed_of_light.tokens_per_s / best - 1
        verdict = "holds" if gain >= GAIN - GAIN_TOLERANCE else "does not hold"
        if ceiling < GAIN - GAIN_TOLERANCE:
            verdict = "cannot hold"
        figure = f"predicted {gain:+.1%} ({_thousands(ours)} over {_thousands(best)} tokens/s)"
        remark = (
            f"{at_light:+.1%} with both at the speed of light; {ceiling:+.1%} with layer-wise "
            "alone at the speed of light"
        )
        return Judged(key="gain", claim=_GAIN, verdict=verdict, figure=figure, remark=remark)
    if not verdict:
        figure = f"{at_light:+.1%} with both at the speed of light"
    return Judged(key="gain", claim=_GAIN, verdict=verdict or "not decided", figure=figure)


def judge_cache(model: ModelSpec, gpu: GpuSpec, layer_wise: Prediction) -> Judged:
    """A layer fits on chip when its weights fit the L2: capacities, no prediction."""
    sizes = model.layer_weight_bytes / gpu.l2_bytes
    fullest = max(b.weight_bytes + b.kv_bytes for b in layer_wise.memory)
    figure = (
        f"one layer's weights alone, {model.layer_weight_bytes / 1e6:.1f} MB, "
        f"are {sizes:.1f} times the {gpu.l2_bytes / 1e6:.1f} MB L2"
    )
    return Judged(
        key="cache", claim=f"one layer (~{LAYER_BYTES / 1e9:.0f} GB) fits in cache", figure=figure,
        verdict="cannot hold" if max(LAYER_BYTES, model.layer_weight_bytes) > gpu.l2_bytes
        else "holds",
        remark=f"{LAYER_BYTES / 1e9:.0f} GB are {LAYER_BYTES / gpu.l2_bytes:.0f} L2s; "
        f"weights and KV of a stage are {fullest / 1e9:.1f} GB",
    )  # fmt: skip


def judge_parameters(model: ModelSpec) -> Judged:
    """Arithmetic on the paper's own dimensions."""
    total = model.num_layers * model.parameters_per_layer
    agrees = _agreement(total, PARAMETERS) == "holds"
    needed = PARAMETERS / model.parameters_per_layer
    figure = (
        f"{model.num_layers} layers of {model.parameters_per_layer / 1e6:.1f} M "
        f"are {total / 1e9:.2f} B parameters"
    )
    return Judged(
        key="parameters", claim=f"{PARAMETERS / 1e9:.0f} B parameters", figure=figure,
        verdict="holds" if agrees else "cannot hold",
        remark=f"with {model.num_layers} layers, not the paper's {NUM_LAYERS}" if agrees
        else f"{PARAMETERS / 1e9:.0f} B need {needed:.0f} such layers",
    )  # fmt: skip


def judge_equal_load(baseline: Prediction, layer_wise: Prediction) -> Judged:
    """Busy share of every rank: equal when the spread is below EQUAL_LOAD_SPREAD."""
    busy = layer_wise.busy_share_by_rank
    spread, theirs = load_spread(layer_wise), load_spread(baseline)
    return Judged(
        key="equal_load", claim="all 16 GPUs equally loaded",
        verdict="holds" if spread <= EQUAL_LOAD_SPREAD else "does not hold",
        figure=f"busiest {max(busy):.1%}, idlest {min(busy):.1%}: a spread of {spread:.2%}",
        remark=f"without an LM head; the baseline's spread is {theirs:.2%}",
    )  # fmt: skip


def load_spread(prediction: Prediction) -> float:
    """Busiest less idlest rank, over the busiest."""
    busy = prediction.busy_share_by_rank
    return (max(busy) - min(busy)) / max(busy)


def judge_communication(gpu: GpuSpec, baseline: Prediction, layer_wise: Prediction) -> Judged:
    """Minimal when links take less than MINIMAL_LINK_SHARE of layer-wise's step.

    Whether that decides is another question: the remark sets it beside the weights each re-reads.
    """
    ours, theirs = link_share(layer_wise), link_share(baseline)
    figure = (
        f"links take {ours:.1%} of its step ({_megabytes(layer_wise)} MB on wires); "
        f"of the baseline's {theirs:.1%} ({_megabytes(baseline)} MB)"
    )
    return Judged(
        key="communication", claim="minimal communication", figure=figure,
        verdict="holds" if ours <= MINIMAL_LINK_SHARE else "does not hold",
        remark=what_decides(gpu, baseline, layer_wise),
    )  # fmt: skip


def link_share(prediction: Prediction) -> float:
    """Share of a step that links take: collectives, and waits for messages.

    Waits are the bubble less what the schedule alone leaves idle: max(0, 1 - m/p) of a steady
    stream, (p-1)/(m+p-1) of a batch from idle. Source: GPipe's bubble, counted in microbatches.
    """
    return prediction.share["link"] + max(0.0, prediction.bubble - _schedule_bubble(prediction))


def _schedule_bubble(prediction: Prediction) -> float:
    microbatches, stages = prediction.num_microbatches, len(prediction.busy_share_by_rank)
    if prediction.from_idle_s > prediction.step_s:
        return max(0.0, 1 - microbatches / stages)
    return (stages - 1) / (microbatches + stages - 1)


def what_decides(gpu: GpuSpec, baseline: Prediction, layer_wise: Prediction) -> str:
    """One sentence: the baseline's time on links against layer-wise's re-reading of weights."""
    links_s = link_share(baseline) * baseline.step_s
    ours, theirs = weight_read_bytes(layer_wise), weight_read_bytes(baseline)
    reread_s = (ours - theirs) / gpu.hbm_bytes_per_s
    wins = layer_wise.tokens_per_s > baseline.tokens_per_s
    verb = "decides" if wins and links_s > reread_s else "does not decide"
    return (
        f"it {verb}: links cost the baseline {_ms(links_s)} a step; reading "
        f"{ours / 1e9:.1f} GB of weights per GPU and step instead of {theirs / 1e9:.1f} costs "
        f"layer-wise {_ms(reread_s)} or more"
    )


def weight_read_bytes(prediction: Prediction) -> int:
    """Weights the fullest GPU reads in a step: all of them, once per microbatch."""
    return max(b.weight_bytes for b in prediction.memory) * prediction.num_microbatches


_GAIN = f"{GAIN:+.0%} over the baseline"


def _without_rates(beliefs: Beliefs) -> tuple[Verdict | None, str]:
    """What forbids any rate: memory. (None, what is known) when nothing does."""
    prediction = beliefs.calibrated or beliefs.speed_of_light
    if prediction.fits:
        return None, f"speed of light {_thousands(beliefs.speed_of_light.tokens_per_s)} tokens/s"
    need, capacity = prediction.peak_memory_bytes, prediction.memory[0].capacity_bytes
    return "cannot hold", f"it needs {need / 1e9:.1f} GB on a GPU of {capacity / 1e9:.0f} GB"


def _agreement(predicted: float, claimed: float) -> Verdict:
    factor = max(predicted / claimed, claimed / predicted)
    return "holds" if factor <= 1 + RATE_TOLERANCE else "does not hold"


def _gap(predicted: float, claimed: float) -> str:
    ratio = predicted / claimed
    if max(ratio, 1 / ratio) >= 2:
        return f"{max(ratio, 1 / ratio):.1f} times {'above' if ratio > 1 else 'below'}"
    return f"{abs(ratio - 1):.1%} {'above' if ratio > 1 else 'below'}"


def _ms(value_s: float) -> str:
    return f"{value_s * 1e3:,.0f} ms" if value_s >= 1 else f"{value_s * 1e3:.3g} ms"


def _thousands(value: float) -> str:
    return f"{value:,.0f}"


def _megabytes(prediction: Prediction) -> str:
    return f"{sum(prediction.wire_bytes.values()) / 1e6:,.0f}"

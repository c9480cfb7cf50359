"""The paper's claims about why: capacities, parameter counts, load, communication.

Rules and vocabulary: `paper.verdicts`. The first two need no prediction, so they are for any reading.
"""

from __future__ import annotations

from layerwise.scenarios.paper.verdicts import Judged, agreement, milliseconds
from layerwise.sim.plan.hardware import GpuSpec
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.predict import Prediction

# Source: paper, "Cache Requirements": "Per layer memory: ~11GB (weights + activations + buffers)".
LAYER_BYTES = 11e9
# Source: paper, "Model Specifications": "Total Parameters: 30 billion (30B)".
PARAMETERS = 30e9
# Source: paper, "Dense Model: 16-layer fully connected neural network".
NUM_LAYERS = 16

# Utilisation that differs by less between GPUs is equal for every practical purpose.
EQUAL_LOAD_SPREAD = 0.01
# Links that take a smaller share of a step than this are minimal.
MINIMAL_LINK_SHARE = 0.05
ANY_READING = "any reading"


def judge_cache(model: ModelSpec, gpu: GpuSpec, layer_wise: Prediction) -> tuple[Judged, Judged]:
    """Two statements: the paper's 11 GB fit on chip; the weights its dimensions give do."""
    fullest = max(b.weight_bytes + b.kv_bytes for b in layer_wise.memory)
    return (
        _judge_capacity(
            "cache",
            f"one layer (~{LAYER_BYTES / 1e9:.0f} GB) fits in cache",
            "the paper's layer",
            LAYER_BYTES,
            gpu,
            f"weights and KV of a stage are {fullest / 1e9:.1f} GB",
        ),
        _judge_capacity(
            "cache_weights",
            "one layer's weights fit in cache",
            "one layer's weights alone",
            model.layer_weight_bytes,
            gpu,
            "",
        ),
    )


def _judge_capacity(
    key: str, claim: str, what: str, size_bytes: float, gpu: GpuSpec, remark: str
) -> Judged:
    return Judged(
        key=key,
        claim=claim,
        reading=ANY_READING,
        remark=remark,
        verdict="holds" if size_bytes <= gpu.l2_bytes else "cannot hold",
        figure=f"{what}, {size_bytes / 1e6:,.1f} MB, "
        f"{'is' if size_bytes == LAYER_BYTES else 'are'} {size_bytes / gpu.l2_bytes:.3g} times "
        f"the {gpu.l2_bytes / 1e6:.1f} MB L2",
    )


def judge_parameters(model: ModelSpec) -> Judged:
    """Arithmetic on the paper's own dimensions."""
    total = model.num_layers * model.parameters_per_layer
    agrees = agreement(total, PARAMETERS) == "holds"
    needed = PARAMETERS / model.parameters_per_layer
    figure = (
        f"{model.num_layers} layers of {model.parameters_per_layer / 1e6:.1f} M "
        f"are {total / 1e9:.2f} B parameters"
    )
    return Judged(
        key="parameters",
        claim=f"{PARAMETERS / 1e9:.0f} B parameters",
        reading=ANY_READING,
        figure=figure,
        verdict="holds" if agrees else "cannot hold",
        remark=f"with {model.num_layers} layers, not the paper's {NUM_LAYERS}"
        if agrees
        else f"{PARAMETERS / 1e9:.0f} B need {needed:.0f} such layers",
    )


def judge_equal_load(reading: str, baseline: Prediction, layer_wise: Prediction) -> Judged:
    """Busy share of every rank: equal when the spread is below EQUAL_LOAD_SPREAD."""
    busy = layer_wise.busy_share_by_rank
    spread, theirs = load_spread(layer_wise), load_spread(baseline)
    return Judged(
        key="equal_load",
        claim="all 16 GPUs equally loaded",
        reading=reading,
        verdict="holds" if spread <= EQUAL_LOAD_SPREAD else "does not hold",
        figure=f"busiest {max(busy):.1%}, idlest {min(busy):.1%}: a spread of {spread:.2%}",
        remark=f"without an LM head; the baseline's spread is {theirs:.2%}",
    )


def load_spread(prediction: Prediction) -> float:
    """Busiest less idlest rank, over the busiest."""
    busy = prediction.busy_share_by_rank
    return (max(busy) - min(busy)) / max(busy)


def judge_communication(
    reading: str, gpu: GpuSpec, baseline: Prediction, layer_wise: Prediction
) -> Judged:
    """Minimal when links take less than MINIMAL_LINK_SHARE of layer-wise's step.

    Whether that decides is another question: the remark sets it beside the weights each re-reads.
    """
    ours, theirs = link_share(layer_wise), link_share(baseline)
    figure = (
        f"links take {ours:.1%} of its step ({_megabytes(layer_wise)} MB on wires); "
        f"of the baseline's {theirs:.1%} ({_megabytes(baseline)} MB)"
    )
    return Judged(
        key="communication",
        claim="minimal communication",
        reading=reading,
        figure=figure,
        verdict="holds" if ours <= MINIMAL_LINK_SHARE else "does not hold",
        remark=what_decides(gpu, baseline, layer_wise),
    )


def link_share(prediction: Prediction) -> float:
    """Share of a step that links take: collectives, and waits for messages.

    Waits are the bubble less what the schedule alone leaves idle: max(0, 1 - m/p) of a steady
    stream, (p-1)/(m+p-1) of a batch from idle. Source: GPipe's bubble, counted in microbatches.
    """
    return prediction.share["link"] + max(0.0, prediction.bubble - _schedule_bubble(prediction))


def _schedule_bubble(prediction: Prediction) -> float:
    microbatches, stages = prediction.num_microbatches, prediction.num_stages
    if prediction.phase == "decode":
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
        f"it {verb}: links cost the baseline {milliseconds(links_s)} a step; reading "
        f"{ours / 1e9:.1f} GB of weights per GPU and step instead of {theirs / 1e9:.1f} costs "
        f"layer-wise {milliseconds(reread_s)} or more"
    )


def weight_read_bytes(prediction: Prediction) -> int:
    """Weights the fullest GPU reads in a step: all of them, once per microbatch."""
    return max(b.weight_bytes for b in prediction.memory) * prediction.num_microbatches


def _megabytes(prediction: Prediction) -> str:
    return f"{sum(prediction.wire_bytes.values()) / 1e6:,.0f}"

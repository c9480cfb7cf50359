"""The answer to the paper's claim in two sentences: which placement is faster, and why."""

from __future__ import annotations

from layerwise.scenarios.paper.experiment import Report
from layerwise.scenarios.paper.mechanism import weight_read_bytes
from layerwise.scenarios.paper.verdicts import GAIN, GAIN_TOLERANCE, thousands
from layerwise.sim.predict import Prediction

# Two H200s, four hosts, committed traces: predicted +17.8 %, measured +4.9 to +6.9 %. A receive that
# waits holds SMs, and no model here charges for that yet.
PREFILL_CAUTION = (
    "Do not build on a gain in prefill yet: on two H200s one of +17.8 % was predicted and +4.9 to "
    "+6.9 % measured."
)


def answer_of(report: Report) -> tuple[str, str]:
    """Return the answer: what is predicted against the claim, and what decides it."""
    ours, theirs = report.layer_wise.best, report.best_baseline.best
    if not (ours.fits and theirs.fits):
        return _does_not_fit(report), _why_it_does_not_fit(report)
    return _which_is_faster(report, ours, theirs), _why(report, ours, theirs)


def _which_is_faster(report: Report, ours: Prediction, theirs: Prediction) -> str:
    gain = ours.tokens_per_s / theirs.tokens_per_s - 1
    word = "Yes" if gain >= GAIN - GAIN_TOLERANCE else "Only in part" if gain > 0 else "No"
    how = "predicted" if ours.belief == "calibrated" else f"{ours.belief.replace('_', ' ')}"
    span = report.gain_90
    interval = f"; 90 %: {span.low:+.1%} to {span.high:+.1%}" if span else ""
    return (
        f"{word}: layer-wise is {abs(gain):.1%} {'faster' if gain > 0 else 'slower'} than "
        f"{theirs.placement} ({how}: {thousands(ours.tokens_per_s)} against "
        f"{thousands(theirs.tokens_per_s)} tokens/s{interval}), where the paper claims {GAIN:.0%} faster."
    )


def _why(report: Report, ours: Prediction, theirs: Prediction) -> str:
    if ours.phase == "prefill":
        return (
            "Prefill computes more than it reads, and layer-wise does without the all-reduces, which "
            f"take {theirs.share['link']:.0%} of the baseline's step. {PREFILL_CAUTION}"
        )
    scenario = report.layer_wise.scenario
    gpu, weights = scenario.cluster.gpu, max(each.weight_bytes for each in ours.memory)
    times, reads = weights / gpu.l2_bytes, weight_read_bytes(ours) / weight_read_bytes(theirs)
    kv_bytes = max(each.kv_bytes for each in ours.memory) / ours.num_microbatches
    lives = "so nothing lives on chip"
    if times <= 1:
        lives = f"but each microbatch reads {kv_bytes / 1e6:,.0f} MB of KV cache between two uses"
    return (
        f"A stage's weights ({weights / 1e6:,.0f} MB) are {times:.3g} times the L2 of one "
        f"{gpu.name}, {lives}; each GPU reads {reads:.3g} times the weights that a tensor-parallel "
        f"rank does, and links take only {theirs.share['link']:.1%} of the baseline's step."
    )


def _does_not_fit(report: Report) -> str:
    misfits = [
        each.best for each in (report.best_baseline, report.layer_wise) if not each.best.fits
    ]
    names = " and ".join(each.placement for each in misfits)
    need = max(each.peak_memory_bytes for each in misfits)
    capacity = misfits[0].memory[0].capacity_bytes
    return (
        f"It cannot be run: {names} need {need / 1e9:.0f} GB on a GPU of {capacity / 1e9:.0f} GB, "
        f"so no gain can be had at this batch and context."
    )


def _why_it_does_not_fit(report: Report) -> str:
    ours = max(report.layer_wise.best.memory, key=lambda each: each.total_bytes)
    return (
        f"The KV cache alone takes {ours.kv_bytes / 1e9:.0f} GB of each GPU, and a stage's weights "
        f"{ours.weight_bytes / 1e9:.1f} GB; the remedies below say what would fit."
    )

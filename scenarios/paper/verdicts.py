"""What the paper claims, and whether it holds. The paper's own numbers live here and nowhere else.

How a claim is judged (each rule is one function, here or in `paper.mechanism`):

- The paper names neither phase nor context of its rates, so every verdict names the *reading* that
  it is for, the one that was asked; "any reading" where only dimensions or capacities count.
- *holds*: the calibrated prediction agrees with it. *does not hold*: it does not. *cannot hold*:
  in the reading named, the speed of light or a capacity forbids it; or arithmetic on the paper's
  own dimensions does. It says nothing about other readings. *not decided*: it needs a calibrated
  prediction and there is no profile.
- A rate holds within a factor of 1 + RATE_TOLERANCE either way. A throughput and its inverse are
  judged by one rule, on the rate, so that they never get different verdicts.
- A rate cannot hold when the placement does not fit in memory, or when the speed of light in that
  reading is slower by more than keeping a whole L2 of weights on chip could win back. The speed of
  light here reads every weight from HBM; pinned weights, or an LRU cache's luck, save at most
  (microbatches - 1) x L2 bytes / HBM rate of a step, which is a matter of per cents. Inside that
  margin the prediction alone decides.
- The gain holds when the predicted gain reaches the claim less GAIN_TOLERANCE (a larger gain
  holds too). The baseline is the faster of its all-reduce algorithms. It cannot hold when
  layer-wise at the speed of light, with that L2 of pinned weights, against the *calibrated*
  baseline of that reading, still gains less.
- A rate or gain that does not hold in the reading asked carries the other readings, as predicted,
  in which both placements fit and it would: within its tolerance; for a gain, or for a rate that
  is out of reach in the reading asked, also from above. A rate counts from above in its own phase
  only: a generated token and a prompt token are not the same product.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from layerwise.sim.plan.hardware import GpuSpec
from layerwise.sim.plan.workload import Phase
from layerwise.sim.predict import Prediction

Verdict = Literal["holds", "does not hold", "cannot hold", "not decided"]
Who = Literal["baseline", "layer-wise"]

# Source of all five: paper, "Performance Metrics", tables "Throughput Analysis" and
# "Latency Analysis".
BASELINE_TOKENS_PER_S = 12_800.0
LAYER_WISE_TOKENS_PER_S = 15_360.0
GAIN = 0.20
BASELINE_INVERSE_THROUGHPUT_S = 0.078e-3
LAYER_WISE_INVERSE_THROUGHPUT_S = 0.065e-3

# Decode at a context of 10,000 is one reading of the paper among several; closer than this is
# agreement, not knowledge.
RATE_TOLERANCE = 0.10
GAIN_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One claim, its verdict in a `reading`, the figure that decides; `remark`: what is open."""

    key: str
    claim: str
    reading: str
    verdict: Verdict
    figure: str
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Beliefs:
    """One placement at the speed of light, uncalibrated and, with a profile, calibrated.

    No verdict rests on the uncalibrated one: it is shown to tell what calibrating changed.
    """

    speed_of_light: Prediction
    uncalibrated: Prediction
    calibrated: Prediction | None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One reading of the paper's workload: the best rate of each placement, as predicted.

    `fits`: both placements fit in memory. `is_asked`: the one that verdicts are for.
    """

    name: str
    phase: Phase
    context_tokens: int
    baseline_tokens_per_s: float
    layer_wise_tokens_per_s: float
    fits: bool
    is_asked: bool

    @property
    def gain(self) -> float:
        """Layer-wise over the baseline, less one."""
        return self.layer_wise_tokens_per_s / self.baseline_tokens_per_s - 1

    @property
    def claim_ratios(self) -> tuple[float, float]:
        """Claimed over predicted rate, of the baseline and of layer-wise."""
        return (
            BASELINE_TOKENS_PER_S / self.baseline_tokens_per_s,
            LAYER_WISE_TOKENS_PER_S / self.layer_wise_tokens_per_s,
        )

    @property
    def factor(self) -> float:
        """How far off the farther of the two is, as a factor of at least 1."""
        return max(max(ratio, 1 / ratio) for ratio in self.claim_ratios)

    def tokens_per_s(self, who: Who) -> float:
        """The rate of one placement."""
        return self.baseline_tokens_per_s if who == "baseline" else self.layer_wise_tokens_per_s


def judge_rate(
    key: str,
    who: Who,
    claimed: float,
    beliefs: Beliefs,
    gpu: GpuSpec,
    readings: tuple[Reading, ...],
    *,
    inverse: bool = False,
) -> Judged:
    """A rate in tokens/s, or (`inverse`) seconds per token over the whole batch.

    The latter is the kinder reading of what the paper calls TPOT: between two tokens of one
    sequence lies a whole step, whose bound the remark gives.
    """
    claimed_tokens_per_s = 1 / claimed if inverse else claimed
    bound, predicted = beliefs.speed_of_light, beliefs.calibrated
    pinned = pinned_tokens_per_s(bound, gpu)
    verdict, figure = _without_rates(beliefs, inverse=inverse)
    if not verdict and pinned < claimed_tokens_per_s:
        verdict = "cannot hold"
        figure = (
            f"in this reading the speed of light is {_rate(bound.tokens_per_s, inverse)}, "
            f"{_short_rate(pinned, inverse)} with a full L2 of weights pinned"
        )
        if predicted:
            figure += f" (predicted {_short_rate(predicted.tokens_per_s, inverse)})"
    if not verdict and predicted:
        verdict = agreement(predicted.tokens_per_s, claimed_tokens_per_s)
        gap = _gap(1 / predicted.tokens_per_s if inverse else predicted.tokens_per_s, claimed)
        figure = f"predicted {_rate(predicted.tokens_per_s, inverse)}, {gap} the claim"
    notes = []
    if inverse:
        notes.append("as 1/throughput")
        if bound.phase == "decode":
            notes[0] += f"; one sequence waits {milliseconds(bound.tpot_s)} or more for a token"
    if verdict in ("does not hold", "cannot hold"):
        found = _where_rate_holds(who, claimed_tokens_per_s, readings)
        notes.append(
            _would_hold(
                (reading.name, _rate(reading.tokens_per_s(who), inverse)) for reading in found
            )
        )
    sign = f'"TPOT" {claimed * 1e3:.3f} ms' if inverse else f"{thousands(claimed)} tokens/s"
    return Judged(
        key=key,
        claim=f"{who}: {sign}",
        reading=_asked(readings).name,
        verdict=verdict or "not decided",
        figure=figure,
        remark="; ".join(note for note in notes if note),
    )


def judge_gain(
    baselines: tuple[Beliefs, ...],
    layer_wise: Beliefs,
    gpu: GpuSpec,
    readings: tuple[Reading, ...],
) -> Judged:
    """Layer-wise over the fastest baseline; also with both at the speed of light."""
    bound = max(b.speed_of_light.tokens_per_s for b in baselines)
    light = layer_wise.speed_of_light
    notes = [f"{light.tokens_per_s / bound - 1:+.1%} with both at the speed of light"]
    verdict, figure = _without_rates(layer_wise)
    calibrated = [b.calibrated.tokens_per_s for b in baselines if b.calibrated]
    if verdict:
        notes = []
    elif layer_wise.calibrated and calibrated:
        best, ours = max(calibrated), layer_wise.calibrated.tokens_per_s
        ceiling = pinned_tokens_per_s(light, gpu) / best - 1
        figure = f"predicted {ours / best - 1:+.1%} ({thousands(ours)} over {thousands(best)})"
        verdict = "holds" if _reaches_gain(ours / best - 1) else "does not hold"
        if not _reaches_gain(ceiling):
            verdict = "cannot hold"
            figure += (
                f"; in this reading {ceiling:+.1%} with layer-wise at the speed of light "
                "and a full L2 of weights pinned"
            )
    if verdict in ("does not hold", "cannot hold"):
        found = [r for r in readings if r.fits and not r.is_asked and _reaches_gain(r.gain)]
        notes.append(_would_hold((reading.name, f"{reading.gain:+.1%}") for reading in found))
    return Judged(
        key="gain",
        claim=f"{GAIN:+.0%} over the baseline",
        reading=_asked(readings).name,
        verdict=verdict or "not decided",
        figure=figure,
        remark="; ".join(note for note in notes if note),
    )


def pinned_tokens_per_s(bound: Prediction, gpu: GpuSpec) -> float:
    """The most that a whole L2 of weights kept on chip could make of a speed of light.

    They are then read once a step and not once a microbatch.
    """
    saved_s = (bound.num_microbatches - 1) * gpu.l2_bytes / gpu.hbm_bytes_per_s
    return bound.tokens_per_s * bound.step_s / max(bound.step_s - saved_s, 1e-12)


def agreement(predicted: float, claimed: float) -> Verdict:
    """Within a factor of 1 + RATE_TOLERANCE either way."""
    factor = max(predicted / claimed, claimed / predicted)
    return "holds" if factor <= 1 + RATE_TOLERANCE else "does not hold"


def milliseconds(value_s: float) -> str:
    """Three digits, as verdicts show times."""
    return f"{value_s * 1e3:,.0f} ms" if value_s >= 1 else f"{value_s * 1e3:.3g} ms"


def thousands(value: float) -> str:
    """A large number with separators."""
    return f"{value:,.0f}"


def _where_rate_holds(
    who: Who, claimed_tokens_per_s: float, readings: tuple[Reading, ...]
) -> list[Reading]:
    asked = _asked(readings)
    out_of_reach = asked.tokens_per_s(who) < claimed_tokens_per_s

    def holds(other: Reading) -> bool:
        rate = other.tokens_per_s(who)
        from_above = out_of_reach and other.phase == asked.phase and rate >= claimed_tokens_per_s
        return from_above or agreement(rate, claimed_tokens_per_s) == "holds"

    return [r for r in readings if r.fits and not r.is_asked and holds(r)]


def _would_hold(found: Iterable[tuple[str, str]]) -> str:
    places = ", ".join(f"{name} ({figure})" for name, figure in found)
    return f"would hold in: {places}" if places else ""


def _asked(readings: tuple[Reading, ...]) -> Reading:
    return next(reading for reading in readings if reading.is_asked)


def _reaches_gain(gain: float) -> bool:
    return gain >= GAIN - GAIN_TOLERANCE


def _without_rates(beliefs: Beliefs, *, inverse: bool = False) -> tuple[Verdict | None, str]:
    """What forbids any rate: memory. (None, what is known) when nothing does."""
    prediction = beliefs.calibrated or beliefs.speed_of_light
    if prediction.fits:
        return None, f"speed of light {_rate(beliefs.speed_of_light.tokens_per_s, inverse)}"
    need, capacity = prediction.peak_memory_bytes, prediction.memory[0].capacity_bytes
    return "cannot hold", f"it needs {need / 1e9:.1f} GB on a GPU of {capacity / 1e9:.0f} GB"


def _rate(tokens_per_s: float, inverse: bool) -> str:
    return _short_rate(tokens_per_s, inverse) + (" per token" if inverse else " tokens/s")


def _short_rate(tokens_per_s: float, inverse: bool) -> str:
    return milliseconds(1 / tokens_per_s) if inverse else thousands(tokens_per_s)


def _gap(predicted: float, claimed: float) -> str:
    ratio = predicted / claimed
    if max(ratio, 1 / ratio) >= 2:
        return f"{max(ratio, 1 / ratio):.1f} times {'above' if ratio > 1 else 'below'}"
    return f"{abs(ratio - 1):.1%} {'above' if ratio > 1 else 'below'}"

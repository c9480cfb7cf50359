"""Every number in the paper, one by one: does it hold, where, and what would make it true?

Sizes and counts follow from the paper's own dimensions, so arithmetic judges them; rates are judged
by `paper.verdicts` and counted here in the reading that comes nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import exp, isnan, log, nan
from typing import Any

from layerwise.scenarios.paper.experiment import LAYER_WISE, TENSOR_PIPELINE, Question, Report, ask
from layerwise.scenarios.paper.mechanism import (
    EQUAL_LOAD_SPREAD,
    LAYER_BYTES,
    MINIMAL_LINK_SHARE,
    PARAMETERS,
    link_share,
    load_spread,
)
from layerwise.scenarios.paper.verdicts import (
    BASELINE_INVERSE_THROUGHPUT_S,
    BASELINE_TOKENS_PER_S,
    GAIN,
    LAYER_WISE_INVERSE_THROUGHPUT_S,
    LAYER_WISE_TOKENS_PER_S,
    Judged,
    Reading,
    Verdict,
    agreement,
)
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.overrides import with_values
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.predict import predict
from layerwise.sim.profile import Profile

Ratio = Callable[[Mapping[str, object]], float]
"""What is predicted over what is claimed, after changes by key."""

# Changes of workload and hardware, one at a time; none beyond this factor either way.
RATE_KEYS = {
    "workload.batch_size": "batch",
    "workload.context_tokens": "context",
    "cluster.gpu.hbm_bytes_per_s": "HBM",
    "cluster.nvlink.bytes_per_s": "NVLink",
    "cluster.nic.bytes_per_s": "NIC",
    "cluster.gpu.l2_bytes": "L2",
}
NAMES = RATE_KEYS | {"model.num_layers": "layers"}
MAX_FACTOR = 1000.0
# Source: paper, table "Latency Analysis".
TPOT_CHANGE = -0.17
# A number that the paper rounded to three digits.
ROUNDING = 0.01
CLOSE = 2e-4
FIRST_STRIDE, MAX_TURNS = 0.1, 12


@dataclass(frozen=True, kw_only=True)
class Change:
    """One field that, changed alone by a factor, makes a claim true."""

    key: str
    value: float
    factor: float


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """One number: claimed and found, in the reading where both are nearest ("" where none counts).

    `unit` ends a key name that says how to show both. `change` None: it is true, or no one change
    makes it so.
    """

    claim: str
    unit: str
    claimed: float
    found: float
    reading: str
    verdict: Verdict
    change: Change | None = None


def numbers(profile: Profile | None, changes: Mapping[str, object]) -> list[Numbered]:
    """All of them, in the paper's order; raises what `paper.ask` raises."""
    question = Question(changes=changes)
    report = ask(question, profile)
    model = report.layer_wise.scenario.model
    return [*_sizes(model), *_capacities(report), *_rates(report)]


def _sizes(model: ModelSpec) -> Iterator[Numbered]:
    """Source: paper, "Model Specifications" and "Memory Footprint Calculation"."""
    square, wide = model.hidden_size * model.query_size, model.hidden_size * model.intermediate_size
    tokens = 10_000 * model.hidden_size
    rows: tuple[tuple[str, str, float, float], ...] = (
        ("each attention projection", "_parameters", 16.8e6, square),
        (
            "attention of a layer",
            "_parameters",
            67.1e6,
            2 * square + 2 * model.hidden_size * model.key_value_size,
        ),
        ("each MLP projection", "_parameters", 67.1e6, wide),
        ("MLP of a layer", "_parameters", 201.3e6, 3 * wide),
        ("parameters of a layer", "_parameters", 268.4e6, model.parameters_per_layer),
        ("weights of a layer", "_bytes", 536.8e6, model.layer_weight_bytes),
        ("activations of a sequence", "_elements", 40.96e6, tokens),
        ("activations of the batch", "_elements", 5.24e9, 128 * tokens),
        ("activations of the batch", "_bytes", 10.49e9, 128 * tokens * model.dtype_bytes),
    )
    for claim, unit, claimed, found in rows:
        holds = abs(found / claimed - 1) <= ROUNDING
        yield Numbered(
            claim=claim,
            unit=unit,
            claimed=claimed,
            found=found,
            reading="",
            verdict="holds" if holds else "cannot hold",
        )
    total = ("model.num_layers", model.num_layers)
    yield _sized("parameters", "_parameters", PARAMETERS, model.parameters, total)
    yield _sized("size of the model", "_bytes", 60e9, model.parameters * model.dtype_bytes, total)
    yield _sized("parameters / 16 layers", "_parameters", 1.875e9, model.parameters / 16, total)


def _sized(
    claim: str, unit: str, claimed: float, found: float, scales: tuple[str, float]
) -> Numbered:
    """A size in proportion to one field."""
    key, value = scales
    verdict: Verdict = "holds" if agreement(found, claimed) == "holds" else "cannot hold"
    factor = round(value * claimed / found) / value
    change = Change(key=key, value=value * factor, factor=factor)
    return Numbered(
        claim=claim,
        unit=unit,
        claimed=claimed,
        found=found,
        reading="",
        verdict=verdict,
        change=None if verdict == "holds" else change,
    )


def _capacities(report: Report) -> Iterator[Numbered]:
    """A layer in cache: the paper's 11 GB, and its weights alone."""
    gpu, model = report.layer_wise.scenario.cluster.gpu, report.layer_wise.scenario.model
    judged = {each.key: each for each in report.claims}
    for key, claim, size in (
        ("cache", "a layer fits on chip", LAYER_BYTES),
        ("cache_weights", "its weights fit on chip", model.layer_weight_bytes),
    ):
        verdict = judged[key].verdict
        change = Change(key="cluster.gpu.l2_bytes", value=size, factor=size / gpu.l2_bytes)
        yield Numbered(
            claim=claim,
            unit="_bytes",
            claimed=size,
            found=gpu.l2_bytes,
            reading="",
            verdict=verdict,
            change=None if verdict == "holds" else change,
        )


def _rates(report: Report) -> Iterator[Numbered]:
    """Throughputs, their gain and their inverses."""
    judged = {each.key: each for each in report.claims}
    theirs, ours = _rate_of(report, TENSOR_PIPELINE), _rate_of(report, LAYER_WISE)

    def gain(changes: Mapping[str, object]) -> float:
        return ours(changes) / theirs(changes)

    rates = {
        "baseline_rate": (BASELINE_TOKENS_PER_S, lambda r: r.baseline_tokens_per_s, theirs),
        "layer_wise_rate": (LAYER_WISE_TOKENS_PER_S, lambda r: r.layer_wise_tokens_per_s, ours),
        "gain": (1 + GAIN, lambda r: 1 + r.gain, gain),
    }
    changed: dict[str, Change | None] = {}
    nearest: dict[str, tuple[Reading, float]] = {}
    for key, (claimed, found_in, rate) in rates.items():

        def ratio(
            changes: Mapping[str, object], rate: Ratio = rate, claimed: float = claimed
        ) -> float:
            return rate(changes) / claimed

        holds = judged[key].verdict == "holds"
        changed[key] = None if holds else smallest_change(report.layer_wise.scenario, ratio)
        fitting = [r for r in report.readings if r.fits] or list(report.readings)
        best = min(fitting, key=lambda r: abs(log(found_in(r) / claimed)))
        nearest[key] = best, found_in(best)
    shown = (
        ("baseline_rate", "baseline", "_tokens_per_s", lambda x: x),
        ("layer_wise_rate", "layer-wise", "_tokens_per_s", lambda x: x),
        ("gain", "gain", "_gain", lambda x: x - 1),
        ("baseline_rate", 'baseline "TPOT"', "_s", lambda x: 1 / x),
        ("layer_wise_rate", 'layer-wise "TPOT"', "_s", lambda x: 1 / x),
        ("gain", '"TPOT", change', "_gain", lambda x: 1 / x - 1),
    )
    own = (
        BASELINE_TOKENS_PER_S,
        LAYER_WISE_TOKENS_PER_S,
        GAIN,
        BASELINE_INVERSE_THROUGHPUT_S,
        LAYER_WISE_INVERSE_THROUGHPUT_S,
        TPOT_CHANGE,
    )
    for claimed, (key, claim, unit, show) in zip(own, shown, strict=True):
        reading, found = nearest[key]
        yield Numbered(
            claim=claim,
            unit=unit,
            claimed=claimed,
            found=show(found),
            reading=reading.name,
            verdict=judged[key].verdict,
            change=changed[key],
        )
    for key in ("equal_load", "communication"):
        yield _stated(judged[key], report)


def _stated(judged: Judged, report: Report) -> Numbered:
    """A claim without a number of its own, by the share that decides it."""
    equal = judged.key == "equal_load"
    best = report.layer_wise.best
    return Numbered(
        claim="load spread, at most" if equal else "links' share, at most",
        unit="_share",
        claimed=EQUAL_LOAD_SPREAD if equal else MINIMAL_LINK_SHARE,
        found=load_spread(best) if equal else link_share(best),
        reading=judged.reading,
        verdict=judged.verdict,
    )


def _rate_of(report: Report, strategy: str) -> Ratio:
    """Tokens/s of one placement after changes, at the number of microbatches it has now."""
    entry = report.layer_wise if strategy == LAYER_WISE else report.best_baseline
    scenario = entry.scenario.with_microbatches(entry.best.num_microbatches)
    known: dict[tuple[tuple[str, object], ...], float] = {}

    def rate(changes: Mapping[str, object]) -> float:
        key = tuple(changes.items())
        if key not in known:
            changed = with_values(scenario, changes) if changes else scenario
            found = predict(changed, report.profile)
            known[key] = found.tokens_per_s if found.fits else float("nan")
        return known[key]

    return rate


def smallest_change(scenario: Scenario, ratio: Ratio) -> Change | None:
    """Of RATE_KEYS, the one that needs the smallest factor to bring `ratio` to 1; None if none does."""
    best: Change | None = None
    for key in RATE_KEYS:
        most = abs(log(best.factor)) if best else log(MAX_FACTOR)
        best = _change_of(scenario, key, ratio, most) or best
    return best


def _change_of(scenario: Scenario, key: str, ratio: Ratio, most: float) -> Change | None:
    """What one field would have to be, if less than e**most times what it is does it."""
    value: Any = scenario
    for part in key.split("."):
        value = getattr(value, part)

    def error(step: float) -> float:
        """ln of the ratio, where the field is e**step times what it was."""
        changed = value * exp(step)
        try:
            return log(ratio({key: round(changed) if isinstance(value, int) else changed}))
        except SpecError:
            return nan

    for way in (1, -1):
        step = _root(error, way, most)
        if step is not None:
            return Change(key=key, value=value * exp(step), factor=exp(step))
    return None


def _root(error: Callable[[float], float], way: int, most: float) -> float | None:
    """Where `error` crosses 0 going one way: strides that double, then straight lines and halves."""
    low, at_low, high = 0.0, error(0.0), FIRST_STRIDE * way
    while True:
        at_high = error(high)
        if at_low * at_high <= 0:
            break
        if isnan(at_high) or (low and abs(at_high) > abs(at_low)) or abs(high) >= most:
            return None
        low, at_low, high = high, at_high, max(-most, min(most, 2 * high))
    for turn in range(MAX_TURNS):
        share = at_low / (at_low - at_high) if turn % 2 == 0 else 0.5
        middle = low + share * (high - low)
        at_middle = error(middle)
        if abs(at_middle) <= CLOSE:
            return middle
        if at_low * at_middle <= 0:
            high, at_high = middle, at_middle
        else:
            low, at_low = middle, at_middle
    return high

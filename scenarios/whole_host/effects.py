"""The paper's mechanism, measured: is a layer read from the L2, and do persisting windows help?

Ratios of two runs of one placement, so that what a GPU, its clocks or its links add falls out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from layerwise.scenarios.whole_host.scoring import RunScore

# The ops that read a layer's weights.
WEIGHT_OPS = ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down")
WINDOWS = ".windows."


@dataclass(frozen=True, kw_only=True)
class Effect:
    """`name` over `base`, in steps (`what` "step") or in the ops that read weights ("weights")."""

    what: str
    name: str
    base: str
    predicted: float
    measured: float


def effects_of(runs: Iterable[RunScore]) -> tuple[Effect, ...]:
    """What windows change of a step, and what more cached tokens change of reading the weights."""
    by_name = {run.name: run for run in runs}
    return (*_evicted(by_name), *_windows(by_name))


def _windows(by_name: Mapping[str, RunScore]) -> Iterable[Effect]:
    for name, run in by_name.items():
        base = by_name.get(name.replace(WINDOWS, "."))
        if base is None or WINDOWS not in name:
            continue
        yield Effect(
            what="step",
            name=name,
            base=base.name,
            predicted=run.predicted_s / base.predicted_s,
            measured=run.measured_s / base.measured_s,
        )


def _evicted(by_name: Mapping[str, RunScore]) -> Iterable[Effect]:
    small = [run for run in by_name.values() if run.is_small and WINDOWS not in run.name]
    contexts = sorted({run.question for run in small}, key=_cached_tokens)
    for run in small:
        if run.question != contexts[-1] or len(contexts) < 2:
            continue
        base = by_name.get(run.name.replace(contexts[-1], contexts[0]))
        if base is not None and (ratios := _weight_ratios(run, base)):
            predicted, measured = ratios
            yield Effect(
                what="weights",
                name=run.name,
                base=base.name,
                predicted=predicted,
                measured=measured,
            )


def _cached_tokens(question: str) -> int:
    return int(question.split(".")[1])


def _weight_ratios(run: RunScore, base: RunScore) -> tuple[float, float] | None:
    """(predicted, measured) time in the ops that read weights; None where either lacks one."""
    if any(op not in one.ops for one in (run, base) for op in WEIGHT_OPS):
        return None
    sums = [[sum(one.ops[op][side] for op in WEIGHT_OPS) for one in (run, base)] for side in (0, 1)]
    if not all(below for _, below in sums):
        return None
    (predicted, predicted_base), (measured, measured_base) = sums
    return predicted / predicted_base, measured / measured_base

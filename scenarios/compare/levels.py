"""The lines of a comparison on its four levels, from the accounts of both sides."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from layerwise.scenarios.compare.accounts import MESSAGES, RowKey, op_label
from layerwise.scenarios.compare.scores import Level, Pacing, Part, Score, Times, spread_of
from layerwise.scenarios.compare.sides import Sides, over_steps

TIE_DIGITS = 9  # of seconds: ranks that differ by less compute equally long; the first is named
PHASES = {"attn": "attention", "mlp": "mlp"}
EDGES, TRANSFERS = "edges", "transfers"
PARTS_OF_A_STEP: tuple[Part, ...] = ("between", "overlapped", "step")
NAMES: dict[Part, str] = {
    "wait": "waiting",
    "between": "between ops",
    "overlapped": "overlapped",
    "step": "whole step",
}


def scores_of(sides: Sides) -> Iterator[Score]:
    """Every line but the untraced step's."""
    labels = list(sides.keys)
    for label in labels:
        yield from _work_and_wait(sides, "op", label, [label])
    yield from _rests(sides, "op")
    layers: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        layers[label.partition(".")[0]].append(label)
    for layer, found in layers.items():
        yield from _work_and_wait(sides, "layer", layer, found)
    yield from _rests(sides, "layer")
    for rank in sides.stage_of:
        yield from _rank_lines(sides, rank)
    pacing = pacing_of(sides)
    rank = pacing.measured if pacing else next(iter(sides.stage_of))
    yield from _run_lines(sides, rank)


def pacing_of(sides: Sides) -> Pacing | None:
    """Who computes longest, on either side; None for one rank."""
    if len(sides.stage_of) == 1:
        return None
    local = [label for label in sides.keys if not sides.is_link(label)]
    busy = {
        rank: over_steps(
            sides, "work", (k for one in local for k in sides.keys[one] if k[1] == rank)
        )[0]
        for rank in sides.stage_of
    }
    return Pacing(
        measured=max(busy, key=lambda rank: round(busy[rank].measured_s, TIE_DIGITS)),
        predicted=max(busy, key=lambda rank: round(busy[rank].predicted_s, TIE_DIGITS)),
    )


def _work_and_wait(sides: Sides, level: Level, name: str, labels: Sequence[str]) -> Iterator[Score]:
    yield _score(sides, level, name, "work", labels)
    if links := [label for label in labels if sides.is_link(label)]:
        yield _score(sides, level, name, "wait", links)


def _rests(sides: Sides, level: Level) -> Iterator[Score]:
    """What no op took, stage by stage: the mean over its ranks."""
    stages: dict[int, list[int]] = defaultdict(list)
    for rank, stage in sides.stage_of.items():
        stages[stage].append(rank)
    for stage, ranks in stages.items():
        prefix = f"P{stage} " if len(stages) > 1 else ""
        for part in PARTS_OF_A_STEP:
            yield _rest(sides, level, f"{prefix}({NAMES[part]})", part, ranks)


def _rank_lines(sides: Sides, rank: int) -> Iterator[Score]:
    """One rank's step by phase of its layers."""
    phases: dict[str, list[str]] = {name: [] for name in (*PHASES.values(), EDGES, TRANSFERS)}
    for label, keys in sides.keys.items():
        if any(key[1] == rank for key in keys):
            phase = PHASES.get(label.split(".")[1], EDGES)
            phases[TRANSFERS if sides.is_link(label) else phase].append(label)
    name = f"rank {rank} (P{sides.stage_of[rank]})"
    for phase, labels in phases.items():
        if labels:
            yield _score(sides, "stage", f"{name}: {phase}", "work", labels, [rank])
    if links := phases[TRANSFERS]:
        yield _score(sides, "stage", f"{name}: {NAMES['wait']}", "wait", links, [rank])
    for part in PARTS_OF_A_STEP:
        yield _rest(sides, "stage", f"{name}: {NAMES[part]}", part, [rank])


def _run_lines(sides: Sides, rank: int) -> Iterator[Score]:
    """The sum of ops against the step, of the rank that paces the run."""
    labels = [label for label, keys in sides.keys.items() if any(key[1] == rank for key in keys)]
    name = f"rank {rank}, traced"
    yield _score(sides, "run", f"{name}: sum of ops", "work", labels, [rank])
    if links := [label for label in labels if sides.is_link(label)]:
        yield _score(sides, "run", f"{name}: {NAMES['wait']}", "wait", links, [rank])
    for part in PARTS_OF_A_STEP:
        yield _rest(sides, "run", f"{name}: {NAMES[part]}", part, [rank])


def _score(
    sides: Sides,
    level: Level,
    name: str,
    part: Part,
    labels: Sequence[str],
    ranks: Sequence[int] = (),
) -> Score:
    keys = [key for label in labels for key in sides.keys[label] if not ranks or key[1] in ranks]
    ran = tuple(sorted({rank for _, rank, _ in keys}))
    places = len({key[:2] for key in keys})
    times, first, last = over_steps(sides, part, keys)
    return Score(
        level=level,
        name=name,
        part=part,
        ranks=ran,
        count=round(len(keys) / places),
        times=times,
        first=first,
        last=last,
        share=_share(sides, times, ran),
        half_width=_half_width(sides, level, labels, keys) if part == "work" else None,
        spread=_spread(sides, keys) if part == "work" else 0.0,
        extrapolated=any(label in sides.extrapolated for label in labels),
        unfitted=tuple(dict.fromkeys(c for label in labels for c in sides.unfitted.get(label, ()))),
    )


def _rest(sides: Sides, level: Level, name: str, part: Part, ranks: Sequence[int]) -> Score:
    keys = [(step, rank, "") for step, rank in sides.measured if rank in ranks]
    times, first, last = over_steps(sides, part, keys)
    return Score(
        level=level,
        name=name,
        part=part,
        ranks=tuple(ranks),
        count=0,
        times=times,
        first=first,
        last=last,
        share=_share(sides, times, ranks),
    )


def _share(sides: Sides, times: Times, ranks: Sequence[int]) -> float:
    step_s = sides.step_s(tuple(ranks))
    return times.measured_s / step_s if step_s else 0.0


def _spread(sides: Sides, keys: Iterable[RowKey]) -> float:
    totals: dict[int, float] = defaultdict(float)
    for step, rank, op in keys:
        for repeat, account in sides.measured[step, rank].items():
            totals[repeat] += account.work_s[op]
    return spread_of(list(totals.values()))


def _half_width(
    sides: Sides, level: Level, labels: Sequence[str], keys: Iterable[RowKey]
) -> float | None:
    """Errors of one kind add up, those of different kinds are independent (`layerwise.sim.uncertainty`).

    Sums over kinds scatter by the profile's `step_factor` more, but for messages and collectives;
    it narrows nothing that no fit has seen. None where such an op's width is unknown.
    """
    changes = [change for label in labels for change in sides.unfitted.get(label, ())]
    if any(change.half_width is None for change in changes):
        return None
    if level == "op":
        return max(sides.half_widths.get(label, 0.0) for label in labels)
    carried: dict[str, float] = defaultdict(float)
    total_s = 0.0
    for step, rank, op in keys:
        label, seconds = op_label(op), sides.believed[-1][step, rank].work_s[op]
        kind = "message" if sides.kinds[label] in MESSAGES else sides.kinds[label]
        factor = 1.0 if sides.is_link(label) else sides.step_factor
        if label in sides.unfitted:
            factor = max(1.0, factor)
        carried[kind] += factor * sides.half_widths.get(label, 0.0) * seconds
        total_s += seconds
    return math.hypot(*carried.values()) / total_s if total_s else 0.0

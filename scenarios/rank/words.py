"""A ranking in sentences: who leads and by how much, what would flip it, what to do when none fits."""

from __future__ import annotations

import math

from layerwise.scenarios.rank.asked import Candidate
from layerwise.scenarios.rank.flips import HIGH, HIGH_L2, LOW, Flip
from layerwise.scenarios.rank.ranking import Ranking, has_unknown_width, widths_of_ratio
from layerwise.scenarios.rank.unvalidated import Part, paired, width_of_ratio
from layerwise.scenarios.tables import gigabytes, number, seconds
from layerwise.sim.cost.unfitted import sentences
from layerwise.sim.memory import MORE_GPUS, MemoryBudget

NUM_FLIPS = 3
# Of a step: what two placements rest on differently is told from here on.
LEAST_SHARE = 0.001
# As many tied placements are named; more are counted.
NUM_NAMED = 2
# From here on a percentage is said without decimals.
WHOLE_PERCENT = 0.1
SCALES = {
    "bytes_per_s": ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s")),
    "flops_per_s": ((1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s")),
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
}

# What a ranking's columns and names mean, and what none of its rows was held against.
TERMS = (
    "TTFT: one prompt of this context, alone. layer-wise: one GPU a stage, layers in as many groups. "
    "1-shot: all-reduce by a one-/two-shot kernel over peer memory, as serving engines have it; "
    "without it, NCCL's."
)
# Placements were compared with measurements on so many GPUs at most.
VALIDATED_GPUS = 2
VALIDATED = (
    "Validated by measurement on one GPU and on two H200s; of placements on more GPUs nothing was "
    "measured by this project, and no row's interval knows of it."
)


def verdict(ranking: Ranking) -> str:
    """Who leads, who cannot be told from it and why, who is behind; or why nobody leads."""
    winner, tied, rival = ranking.winner, ranking.tied, ranking.rival
    if winner is None:
        return _no_winner(ranking)
    if tied:
        behind = f" Clearly behind: {_behind(winner, rival)}." if rival else ""
        return (
            f"{winner.layout.name} is predicted fastest, but {_others(tied)} cannot be told from "
            f"it: {_why_tied(winner, tied)}.{behind}"
        )
    if rival is None:
        return f"{winner.layout.name} is the only placement that qualifies."
    told = "clearly ahead of" if widths_of_ratio(winner, rival) else "ahead of"
    return (
        f"{winner.layout.name} is predicted fastest, {told} {_behind(winner, rival)}"
        f"{_sureness(winner, rival)}."
    )


def advice(ranking: Ranking) -> str:
    """What to do with it: how to choose among the tied, and what would put the rival ahead."""
    tied = "Among the tied, choose by other grounds (time to first token, memory)."
    said = (tied if ranking.tied else "", flip_sentence(ranking))
    return " ".join(sentence for sentence in said if sentence)


def leeway_sentence(ranking: Ranking) -> str:
    """What a bar that is met with ease leaves room for; "" where it leaves none."""
    larger, fewer = ranking.leeway.larger, ranking.leeway.fewer
    told: list[str] = []
    if larger:
        told.append(
            f"{larger.batch_size:,} sequences fit under it ({larger.layout.name}, "
            f"{number(larger.tokens_per_s)} tokens/s, {seconds(larger.tpot_s)})"
        )
    if fewer:
        count = fewer.layout.num_gpus
        told.append(
            f"{count} GPU{'s' if count > 1 else ''} would do for {fewer.batch_size:,} "
            f"({fewer.layout.name}, {seconds(fewer.tpot_s)})"
        )
    return f"The bar leaves room: {'; '.join(told)}." if told else ""


def flip_sentence(ranking: Ranking) -> str:
    """What it would take for the rival to draw level; "" when there is no rival."""
    if not ranking.flips or ranking.rival is None or ranking.winner is None:
        return ""
    name = ranking.rival.layout.name
    found = sorted(
        (flip for flip in ranking.flips if flip.nearest is not None),
        key=lambda flip: abs(math.log(flip.nearest or 1.0)),
    )
    if not found:
        return (
            f"Nothing puts {name} ahead: no bandwidth, rate, size or latency within {LOW:g}x to "
            f"{HIGH:g}x (L2 size to {HIGH_L2:,.0f}x)"
            + (", nor eager launches." if ranking.asked.run.launch != "eager" else ".")
        )
    ways = ", or ".join(flip_phrase(flip) for flip in found[:NUM_FLIPS])
    more = len(found) - NUM_FLIPS
    rest = f"nothing else within {HIGH:g}x"
    if more > 0:
        rest = f"{more} larger change{'s' if more > 1 else ''} would too"
    return f"To put {name} ahead instead would take {ways}; {rest}."


def unvalidated_sentence(ranking: Ranking) -> str:
    """What nothing measured here has checked, where winner and runner-up rest on it differently."""
    winner, other = ranking.winner, ranking.runner_up
    if winner is None or other is None:
        return ""
    told = [
        _part_phrase(first, second)
        for first, second in paired(winner.unvalidated, other.unvalidated)
        if _differs(first, second)
    ]
    if not told:
        return ""
    return (
        f"Not measured here, and not alike in {winner.layout.name} and {other.layout.name}: "
        f"{'; '.join(told)}."
    )


def unfitted_sentences(ranking: Ranking) -> tuple[str, ...]:
    """What no fit has seen of the rows' kernels, head sizes and dtypes, a sentence each.

    A ranking names no kernels: which of them an uncalibrated one assumes is no one's mistake.
    """
    found = (change for each in ranking.candidates for change in each.unfitted)
    is_calibrated = ranking.asked.belief == "calibrated"
    return sentences(one for one in found if is_calibrated or one.aspect != "kernel")


def flip_phrase(flip: Flip) -> str:
    """One figure and the factor at which the rival draws level."""
    factor = flip.nearest
    assert factor is not None
    match flip.knob.kind:
        case "launch":
            return flip.knob.name
        case "latency":
            return f"a {flip.knob.name} of {factor:.3g}x"
        case "field":
            value = quantity(flip.knob.key, factor * flip.value)
            article = "an" if flip.knob.name[0] in "HLN" else "a"
            return f"{article} {flip.knob.name} of {factor:.3g}x ({value})"


def quantity(key: str, value: float) -> str:
    """A value in the unit that a person would choose for this key."""
    for ending, scales in SCALES.items():
        if key.endswith(ending):
            scale, unit = next((s for s in scales if value >= s[0]), scales[-1])
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g}"


def short_reason(budget: MemoryBudget) -> str:
    """Why a GPU's memory does not suffice, the largest part first."""
    parts = {
        "KV": budget.kv_bytes,
        "weights": budget.weight_bytes,
        "other": budget.total_bytes - budget.kv_bytes - budget.weight_bytes,
    }
    named = sorted(parts, key=lambda name: -parts[name])
    text = " + ".join(f"{name} {gigabytes(parts[name])}" for name in named)
    return f"{text} = {gigabytes(budget.total_bytes)} of {gigabytes(budget.capacity_bytes)} GB"


def _no_winner(ranking: Ranking) -> str:
    if ranking.nearest:
        return "Nothing fits. " + _nearest_remedy(ranking, ranking.nearest)
    limit = seconds(ranking.tpot_below_s or 0.0)
    fastest = min((c for c in ranking.candidates if c.fits), key=lambda c: c.tpot_s)
    text = (
        f"No placement that fits has a TPOT below {limit}; the shortest is {fastest.layout.name} "
        f"with {seconds(fastest.tpot_s)}."
    )
    if ranking.needed:
        text += (
            f" A batch of {ranking.needed.batch_size} meets it: {ranking.needed.layout.name}, "
            f"{number(ranking.needed.tokens_per_s)} tokens/s at "
            f"{seconds(ranking.needed.tpot_s)}."
        )
    return text + ("" if ranking.needed else " No smaller batch meets it either.")


def _nearest_remedy(ranking: Ranking, nearest: Candidate) -> str:
    useful = [r.words for r in ranking.remedies if r.value and r.change != MORE_GPUS]
    text = f"Nearest is {nearest.layout.name} ({short_reason(nearest.memory)})"
    if useful:
        text += f"; any one of these makes it fit: {'; '.join(useful)}"
    if not ranking.rooms:
        return text + ("." if useful else "; no single change makes it fit.")
    *others, last = (
        f"on {room.num_gpus} {room.gpu} ({room.layout.name}, {gigabytes(room.total_bytes)} GB)"
        for room in ranking.rooms
    )
    rooms = f"{', '.join(others)} or {last}" if others else last
    return f"{text}. {'As asked, it' if useful else 'It'} fits {rooms}."


def _others(tied: tuple[Candidate, ...]) -> str:
    if len(tied) <= NUM_NAMED:
        return " and ".join(each.layout.name for each in tied)
    return f"{len(tied)} others"


def _behind(winner: Candidate, rival: Candidate) -> str:
    return f"{rival.layout.name} ({_signed(rival.tokens_per_s / winner.tokens_per_s - 1)})"


def _why_tied(winner: Candidate, tied: tuple[Candidate, ...]) -> str:
    """What was not measured here, where the costs that were would tell some of them apart."""
    if any(map(has_unknown_width, (winner, *tied))):
        return "nobody measured how far off the kernels are that they run"
    told = [each for each in tied if not _is_inside(winner, each)]
    if not told:
        return "their differences lie inside the 90 % interval of the ratio"
    widest = max(told, key=lambda each: width_of_ratio(winner.unvalidated, each.unvalidated))
    names = [
        first.name.partition(" (")[0]
        for first, second in paired(winner.unvalidated, widest.unvalidated)
        if first.carried is not None and _differs(first, second)
    ]
    width = width_of_ratio(winner.unvalidated, widest.unvalidated)
    return (
        f"the time of {' and of '.join(names)} was not measured here, and that alone could move "
        f"the ratio by {_percent(math.expm1(width))}"
    )


def _is_inside(winner: Candidate, other: Candidate) -> bool:
    """Do the costs that were measured already leave the two apart by less than their error?"""
    widths = widths_of_ratio(winner, other)
    return widths is not None and math.log(winner.tokens_per_s / other.tokens_per_s) <= widths[0]


def _differs(first: Part, second: Part) -> bool:
    """An error that is known counts by what it moves; one that is not, by what it is the error of."""
    if first.carried is not None and second.carried is not None:
        return abs(first.carried - second.carried) >= LEAST_SHARE
    return abs(first.share - second.share) >= LEAST_SHARE or not (first.share and second.share)


def _part_phrase(first: Part, second: Part) -> str:
    if first.carried is None or second.carried is None:
        return f"{first.name}, error not known and not counted"
    width = math.expm1(abs(first.carried - second.carried))
    return (
        f"{first.name}, {_percent(first.share)} and {_percent(second.share)} of a step, counted as "
        f"±{_percent(width)}, as far as two GPUs' were off"
    )


def _sureness(winner: Candidate, rival: Candidate) -> str:
    widths = widths_of_ratio(winner, rival)
    if widths is None:
        return ""
    calibrated, unvalidated = (math.expm1(width) for width in widths)
    more = ""
    if unvalidated >= LEAST_SHARE:
        more = f", and what was not measured here may be off by {_percent(unvalidated)}"
    return f"; measured costs leave that ±{_percent(calibrated)} (90 %){more}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= WHOLE_PERCENT else f"{100 * share:.1f} %"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"

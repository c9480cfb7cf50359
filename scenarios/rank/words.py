"""A ranking in sentences: who leads and by how much, what would flip it, what to do when none fits."""

from __future__ import annotations

import math

from scenarios.rank.asked import Candidate
from scenarios.rank.flips import HIGH, HIGH_L2, LOW, Flip
from scenarios.rank.ranking import Ranking, widths_of_ratio
from scenarios.rank.unvalidated import Part, paired, width_of_ratio
from scenarios.tables import gigabytes, number, seconds
from sim.memory import MemoryBudget

NUM_FLIPS = 3
# Of a step: what two placements rest on differently is told from here on.
LEAST_SHARE = 0.001
SCALES = {
    "bytes_per_s": ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s")),
    "flops_per_s": ((1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s")),
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
}


def verdict(ranking: Ranking) -> str:
    """Who leads whom, or why nobody does."""
    winner = ranking.winner
    if winner is None:
        return _no_winner(ranking)
    said: list[str] = []
    if ranking.tied:
        said.append(f"{winner.layout.name} leads, tied with {_tied(winner, ranking.tied)}")
    if ranking.rival is not None:
        said.append(
            f"{winner.layout.name} leads {ranking.rival.layout.name} by "
            f"{winner.tokens_per_s / ranking.rival.tokens_per_s - 1:.1%}"
            + _sureness(winner, ranking.rival)
        )
    if not said:
        return f"{winner.layout.name} is the only placement that qualifies."
    return ". ".join(said) + "."


def flip_sentence(ranking: Ranking) -> str:
    """What it would take for the rival to draw level; "" when there is no rival."""
    if not ranking.flips or ranking.rival is None or ranking.winner is None:
        return ""
    found = sorted(
        (flip for flip in ranking.flips if flip.nearest is not None),
        key=lambda flip: abs(math.log(flip.nearest or 1.0)),
    )
    if not found:
        return (
            f"Nothing flips it: no bandwidth, rate, size or latency within {LOW:g}x to {HIGH:g}x "
            f"(L2 size to {HIGH_L2:,.0f}x)"
            + (", nor eager launches." if ranking.asked.run.launch != "eager" else ".")
        )
    ways = ", or ".join(flip_phrase(flip) for flip in found[:NUM_FLIPS])
    more = len(found) - NUM_FLIPS
    rest = f"nothing else within {HIGH:g}x does"
    if more > 0:
        rest = f"{more} larger change{'s' if more > 1 else ''} would too"
    return f"It would take {ways} to flip it; {rest}."


def unvalidated_sentence(ranking: Ranking) -> str:
    """What nothing measured here has checked, where winner and runner-up rest on it differently."""
    winner, other = ranking.winner, ranking.runner_up
    if winner is None or other is None:
        return ""
    told = [
        _part_phrase(first, second)
        for first, second in paired(winner.unvalidated, other.unvalidated)
        if abs(first.share - second.share) >= LEAST_SHARE or not (first.share and second.share)
    ]
    if not told:
        return ""
    return f"Not validated, {winner.layout.name} against {other.layout.name}: {'; '.join(told)}."


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
        "KV": budget.kv_bytes, "weights": budget.weight_bytes,
        "other": budget.total_bytes - budget.kv_bytes - budget.weight_bytes,
    }  # fmt: skip
    named = sorted(parts, key=lambda name: -parts[name])
    text = " + ".join(f"{name} {gigabytes(parts[name])}" for name in named)
    return f"{text} = {gigabytes(budget.total_bytes)} of {gigabytes(budget.capacity_bytes)} GB"


def _no_winner(ranking: Ranking) -> str:
    if ranking.nearest:
        return "Nothing fits. " + _nearest_remedy(ranking, ranking.nearest)
    limit = seconds(ranking.tpot_below_s or 0.0)
    fastest = min((c for c in ranking.candidates if c.fits), key=lambda c: c.tpot_s)
    text = (f"No placement that fits has a TPOT below {limit}; the shortest is {fastest.layout.name} "
            f"with {seconds(fastest.tpot_s)}.")  # fmt: skip
    if ranking.needed:
        text += (f" A batch of {ranking.needed.batch_size} meets it: {ranking.needed.layout.name}, "
                 f"{number(ranking.needed.tokens_per_s)} tokens/s at "
                 f"{seconds(ranking.needed.tpot_s)}.")  # fmt: skip
    return text + ("" if ranking.needed else " No smaller batch meets it either.")


def _nearest_remedy(ranking: Ranking, nearest: Candidate) -> str:
    useful = [f"{remedy.change}: {remedy.value:,}" for remedy in ranking.remedies if remedy.value]
    text = f"Nearest is {nearest.layout.name} ({short_reason(nearest.memory)}); "
    return text + (f"any one of these makes it fit: {'; '.join(useful)}." if useful else
                   "no single change makes it fit; use more GPUs.")  # fmt: skip


def _tied(winner: Candidate, tied: tuple[Candidate, ...]) -> str:
    names = [each.layout.name for each in tied]
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    most = math.expm1(max(width_of_ratio(winner.unvalidated, each.unvalidated) for each in tied))
    part = f", up to ±{most:.1%} of it from what is not validated" if most >= LEAST_SHARE else ""
    return f"{listed} (inside the interval of their ratio{part})"


def _part_phrase(first: Part, second: Part) -> str:
    if first.carried is None or second.carried is None:
        return f"{first.name}, error not known and not counted"
    width = math.expm1(abs(first.carried - second.carried))
    shares = f"{first.share:.1%} against {second.share:.1%} of a step"
    return f"{first.name}, {shares}, counted as ±{width:.1%}, as far as two GPUs' were off"


def _sureness(winner: Candidate, rival: Candidate) -> str:
    widths = widths_of_ratio(winner, rival)
    if widths is None:
        return ""
    calibrated, unvalidated = (math.expm1(width) for width in widths)
    more = ""
    if unvalidated >= LEAST_SHARE:
        more = f", and ±{unvalidated:.1%} from what is not validated"
    return f" (±{calibrated:.1%} at 90 % from the costs of ops that the two do not share{more})"

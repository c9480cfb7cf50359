"""A ranking as people read it: the table, the front drawn as bars, the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console

from layerwise.scenarios import tables
from layerwise.scenarios.predict.tables import BOUND_NAMES, UNCALIBRATED_NOTE
from layerwise.scenarios.rank.asked import Asked, Candidate
from layerwise.scenarios.rank.ranking import Ranking
from layerwise.scenarios.rank.words import (
    TERMS,
    VALIDATED,
    VALIDATED_GPUS,
    advice,
    leeway_sentence,
    seconds,
    short_reason,
    unfitted_sentences,
    unvalidated_sentence,
    verdict,
)
from layerwise.scenarios.tables import escape

TOP = 12
BAR = 24
NUM_REASONS = 5


def print_ranking(ranking: Ranking, out: Console, *, everything: bool = False) -> None:
    """The table, the front, and the answer last: it stands next to the prompt."""
    _print_heading(ranking, out)
    _print_table(ranking, out, everything=everything)
    _print_misfits(ranking, out)
    _print_refused(ranking, out)
    _print_front(ranking, out)
    out.print()
    if sentence := unvalidated_sentence(ranking):
        out.print(escape(plain(sentence)), style="dim")
    out.print(f"[bold]{escape(plain(verdict(ranking)))}[/bold]")
    for sentence in (leeway_sentence(ranking), advice(ranking)):
        if sentence:
            out.print(escape(plain(sentence)))


def plain(text: str) -> str:
    """Without what a terminal would obey: names come from files."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _print_heading(ranking: Ranking, out: Console) -> None:
    asked = ranking.asked
    work, cluster, model = asked.workload, asked.cluster, asked.model
    nodes = f"{cluster.num_nodes} node{'s' if cluster.num_nodes > 1 else ''}"
    out.print(
        f"[bold]{escape(plain(model.name))}[/bold] ({model.parameters / 1e9:.3g} B parameters), "
        f"decode, batch {work.batch_size}, {work.context_tokens:,} tokens of context, "
        f"{escape(plain(cluster.name))} ({nodes} of {cluster.gpus_per_node}), {asked.run.launch} launch"
        + (f", TPOT below {seconds(ranking.tpot_below_s)}." if ranking.tpot_below_s else ".")
    )
    if asked.profile:
        out.print(f"Profile {escape(asked.profile.name)} {asked.profile.digest}.", style="dim")
    else:
        out.print(
            f"No calibration profile for {escape(plain(cluster.gpu.name))}: no intervals, and so no "
            f"ties are told. {UNCALIBRATED_NOTE}",
            style="dim",
        )


def _print_table(ranking: Ranking, out: Console, *, everything: bool) -> None:
    rows = ranking.candidates if everything else ranking.best[:TOP]
    made = tables.table(
        "", "placement", "mb", "GB", "tokens/s", "90 %", "/GPU", "TPOT ms", "TTFT ms", "bound by"
    )
    for each in rows:
        made.add_row(*_cells(ranking, each))
    if own := _first_layer_wise(ranking, rows):
        place, each = own
        made.add_row(*_cells(ranking, each, f"#{place} "))
    out.print(made)
    if left := len(ranking.candidates) - len(rows):
        out.print(f"… and {left} more (--all)", style="dim")
    out.print(
        "* winner  = tied with it  ! misses memory or TPOT  ~ outside what was calibrated  mb "
        f"microbatches\n{TERMS} bound by: what limits the GPU for most of the step, not how near it "
        f"is to that limit (see predict). {_attention(ranking.asked)}",
        style="dim",
    )
    if ranking.asked.cluster.num_gpus > VALIDATED_GPUS:
        out.print(VALIDATED, style="dim")
    for said in unfitted_sentences(ranking):
        out.print(f"{escape(said[0].upper() + said[1:])}.", style="yellow")


def _attention(asked: Asked) -> str:
    """The kernels that every row assumes; published constants know none by name."""
    if asked.profile is None:
        return "Attention as published, whichever kernel runs."
    kernels = asked.profile.kernels
    return (
        f"Attention kernels assumed: {kernels.decode_attention} (decode), "
        f"{kernels.prefill_attention} (prefill)."
    )


def _first_layer_wise(ranking: Ranking, shown: Sequence[Candidate]) -> tuple[int, Candidate] | None:
    """The best layer-wise placement with its place, where the table would leave it out."""
    for place, each in enumerate(ranking.candidates, 1):
        if each.layout.name.startswith("layer-wise"):
            return None if each in shown else (place, each)
    return None


def _cells(ranking: Ranking, each: Candidate, place: str = "") -> tuple[str, ...]:
    name, share = each.bottleneck
    return (
        f"{_mark(ranking, each)} {place}{each.layout.name}",
        str(each.num_microbatches),
        f"{each.memory.total_bytes / 1e9:,.1f}{'' if each.fits else '!'}",
        tables.number(each.tokens_per_s),
        _interval(each),
        tables.number(each.tokens_per_s_per_gpu),
        tables.milliseconds(each.tpot_s),
        tables.milliseconds(each.ttft_s),
        f"{BOUND_NAMES.get(name, name)} {share:.0%}",
    )


def _mark(ranking: Ranking, each: Candidate) -> str:
    if each is ranking.winner:
        return "*"
    if not each.meets(ranking.tpot_below_s):
        return "!"
    return "=" if each in ranking.tied else " "


def _interval(each: Candidate) -> str:
    far = "~" if each.num_extrapolated_ops else ""
    if each.uncertainty is None:
        return far
    return f"{far}±{math.expm1(each.uncertainty.half_width):.1%}"


def _print_misfits(ranking: Ranking, out: Console) -> None:
    misfits = [each for each in ranking.best if not each.fits]
    if misfits:
        out.print("Does not fit, GB on the fullest GPU:")
    for each in misfits[:NUM_REASONS]:
        out.print(f"- {each.layout.name}: {short_reason(each.memory)}")
    if len(misfits) > NUM_REASONS:
        out.print(f"… and {len(misfits) - NUM_REASONS} more (--json)", style="dim")


def _print_refused(ranking: Ranking, out: Console) -> None:
    """One line a rule: several layouts break the same."""
    broken: dict[str, list[str]] = {}
    for each in ranking.refused:
        broken.setdefault(each.reason, []).append(each.name)
    for reason, names in list(broken.items())[:NUM_REASONS]:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        out.print(f"Left out: {names[0]}{others}: {escape(plain(reason))}.", style="dim")
    if len(broken) > NUM_REASONS:
        out.print(f"… and {len(broken) - NUM_REASONS} more rules (--json)", style="dim")


def _print_front(ranking: Ranking, out: Console) -> None:
    """Throughput against TPOT. At one batch they say the same, so the front goes over batches."""
    if len(ranking.front) < 2:
        return
    most = max(each.tokens_per_s for each in ranking.front)
    made = tables.table(
        "Pareto front of tokens/s against TPOT, over batches",
        "placement",
        "batch",
        "mb",
        "TPOT ms",
        "tokens/s",
        "drawn",
        wide="drawn",
    )
    for each in ranking.front:
        bar = "#" * max(1, round(BAR * each.tokens_per_s / most))
        made.add_row(
            f"{'  ' if each.meets(ranking.tpot_below_s) else '! '}{each.layout.name}",
            str(each.batch_size),
            str(each.num_microbatches),
            tables.milliseconds(each.tpot_s),
            tables.number(each.tokens_per_s),
            bar,
        )
    out.print()
    out.print(made)

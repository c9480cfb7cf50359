"""The paper's report as parts of a page: verdicts, rates, bottlenecks, readings, L2, who wins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from layerwise.calibration.data import FOLDER, unseen_folder
from layerwise.scenarios import tables
from layerwise.scenarios.accuracy.measured import measured_curve
from layerwise.scenarios.accuracy.predictions import read_seconds
from layerwise.scenarios.paper.answer import answer_of
from layerwise.scenarios.paper.experiment import Entry, Report
from layerwise.scenarios.paper.tables import describe_model, describe_profile
from layerwise.scenarios.paper.verdicts import GAIN, Verdict
from layerwise.scenarios.predict.beliefs import on_chip_line, warnings_of
from layerwise.scenarios.report.charts import bottlenecks, l2_curve, rates, who_wins
from layerwise.scenarios.report.markup import Cell, bullets, span, table
from layerwise.scenarios.report.sections import Section, shares_of
from layerwise.sim.plan.errors import ProfileMismatchError
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.plan.scenario import place
from layerwise.sim.predict import Prediction
from layerwise.sim.profile import Profile

VERDICT_STYLE: dict[Verdict, str] = {
    "holds": "good",
    "does not hold": "warn",
    "cannot hold": "bad",
    "not decided": "quiet",
}
# The map of who wins, coarse enough for a page: the what-if of the same name draws it finely.
MAP_BATCHES, MAP_CONTEXTS = (1, 4, 16, 64, 256, 1024), (128, 1024, 8192, 32_768, 131_072)
NUM_LINE_POINTS = 160


def paper_sections(report: Report) -> list[Section]:
    """Everything that the printed report says, and its pictures."""
    return [_verdicts(report), _placements(report), _readings(report)]


def _verdicts(report: Report) -> Section:
    part = Section(title="The paper's claims", key="claims")
    scenario = report.layer_wise.scenario
    work, cluster = scenario.workload, scenario.cluster
    part.say(" ".join(answer_of(report)), "strong")
    part.say(
        f"{describe_model(scenario.model)}, {work.phase}, batch {work.batch_size}, "
        f"{work.context_tokens:,} tokens, on {cluster.num_nodes} nodes of {cluster.gpus_per_node} "
        f"{cluster.gpu.name}. Launch: {scenario.run.launch}. {describe_profile(report)}"
    )
    part.add(
        table(
            "Verdicts",
            ("claim", "verdict", "reading", "what decides", "remark"),
            (
                (
                    j.claim,
                    Cell(j.verdict, style=VERDICT_STYLE[j.verdict]),
                    j.reading,
                    j.figure,
                    j.remark,
                )
                for j in report.claims
            ),
        )
    )
    part.say(
        "No 16-GPU run exists: what only such a run could show is predicted, not measured.", "quiet"
    )
    return part


def _placements(report: Report) -> Section:
    part = Section(title="Both placements", key="placements")
    names = [_name(entry) for entry in report.entries]
    part.add(
        table(
            "Tokens per second under every belief",
            (
                "placement",
                "claimed",
                "speed of light",
                "uncalibrated",
                "calibrated",
                "90 %",
                "tokens/s per GPU",
                "TPOT, ms",
                "memory, GB",
                "fits",
            ),
            [_row(entry) for entry in report.entries],
        )
    )
    if report.profile:
        theirs, ours = report.best_baseline.best, report.layer_wise.best
        part.say(
            f"Layer-wise over the faster baseline: predicted "
            f"{tables.signed(ours.tokens_per_s / theirs.tokens_per_s - 1)}, "
            f"claimed {tables.signed(GAIN)}.",
            "strong",
        )
    beliefs = {
        belief: [(p.tokens_per_s, p.tokens_per_s_interval) for p in found]
        for belief, found in _by_belief(report.entries)
    }
    part.draw(rates(names, [entry.claimed_tokens_per_s for entry in report.entries], beliefs))
    part.draw(
        bottlenecks(
            {name: shares_of(entry.best) for name, entry in zip(names, report.entries, strict=True)}
        )
    )
    notes = [
        line
        for entry in report.entries
        for line in (on_chip_line(entry.scenario, place(entry.scenario)),)
        if line
    ]
    notes += [w for entry in report.entries for w in warnings_of(entry.scenario, entry.best)]
    part.add(bullets(dict.fromkeys(notes)))
    return part


def _name(entry: Entry) -> str:
    how = {"nccl": ", NCCL", "one_shot": ", custom all-reduce"}.get(entry.all_reduce, "")
    return entry.best.placement + how


def _by_belief(entries: Iterable[Entry]) -> list[tuple[str, list[Prediction]]]:
    found = [entry.beliefs for entry in entries]
    calibrated = [b.calibrated for b in found if b.calibrated]
    return [
        ("speed of light", [b.speed_of_light for b in found]),
        ("uncalibrated", [b.uncalibrated for b in found]),
        *([("calibrated", calibrated)] if calibrated else []),
    ]


def _row(entry: Entry) -> list[Cell | str]:
    best, beliefs = entry.best, entry.beliefs
    rated = (beliefs.speed_of_light, beliefs.uncalibrated, beliefs.calibrated)
    return [
        _name(entry),
        count(entry.claimed_tokens_per_s),
        *(count(p.tokens_per_s) if p else "" for p in rated),
        span(best.tokens_per_s_interval, tables.number),
        count(best.tokens_per_s / len(best.memory)),
        Cell(f"{best.tpot_s * 1e3:.4g}", best.tpot_s),
        Cell(tables.gigabytes(best.peak_memory_bytes), best.peak_memory_bytes),
        yes(best.fits),
    ]


def count(value: float) -> Cell:
    """A large number."""
    return Cell(tables.number(value), value)


def yes(holds: bool) -> Cell:
    """Yes or no, coloured."""
    return Cell("yes" if holds else "no", style="good" if holds else "bad")


def _readings(report: Report) -> Section:
    part = Section(title="Readings of the workload", key="readings")
    part.say("The paper names neither phase nor context of its rates. Each reading, predicted:")
    part.add(
        table(
            "Which reading comes nearest to both claims?",
            (
                "reading",
                "baseline, tokens/s",
                "layer-wise, tokens/s",
                "gain",
                "farther claim off by",
                "fits",
            ),
            (
                (
                    r.name,
                    count(r.baseline_tokens_per_s),
                    count(r.layer_wise_tokens_per_s),
                    Cell(tables.signed(r.gain), r.gain),
                    Cell(f"x{r.factor:.3g}", r.factor),
                    yes(r.fits),
                )
                for r in report.readings
            ),
        )
    )
    return part


def map_section(profile: Profile | None) -> Section:
    """Who wins over batch and context, by the what-if script of that name on fewer points."""
    from layerwise.scenarios.what_if.batch_and_context import WHAT_IF
    from layerwise.scenarios.what_if.runner import ask

    part = Section(title="Who wins", key="who-wins")
    found = ask(
        "batch_and_context",
        WHAT_IF,
        profile=profile,
        axes=(
            f"batch_size={','.join(map(str, MAP_BATCHES))}",
            f"context_tokens={','.join(map(str, MAP_CONTEXTS))}",
        ),
    )
    gains = {(r["batch_size"], r["context_tokens"]): (r["gain"], r["fits"]) for r in found.rows}
    part.draw(who_wins(MAP_BATCHES, MAP_CONTEXTS, gains))
    part.say(found.answer)
    part.say("A finer map: layerwise what-if batch_and_context.", "quiet")
    return part


def l2_section(profile: Profile) -> Section | None:
    """The read curve of a profile's GPU with its measured points; None where none are committed."""
    gpu, places = profile.gpu, _curves(profile.gpu)
    if not places or gpu not in GPUS:
        return None
    measured = {
        name: [(float(size), size / seconds) for size, seconds in measured_curve(path)]
        for name, path in places.items()
    }
    sizes = [size for each in measured.values() for size, _ in each]
    low, high = min(sizes), max(sizes)
    steps = [low * (high / low) ** (i / NUM_LINE_POINTS) for i in range(NUM_LINE_POINTS + 1)]
    part = Section(title=f"The L2 of {gpu}", key=f"l2-{gpu}")
    try:
        line = [(size, size / read_seconds(profile, round(size))) for size in steps]
    except ProfileMismatchError as error:
        part.say(error)
        return part
    part.draw(l2_curve(gpu, line, GPUS[gpu].l2_bytes, measured))
    return part


def _curves(gpu: str) -> dict[str, Path]:
    found = {
        "measured, used in the fit": FOLDER / "traces" / f"fit-{gpu}" / "read_curve.json",
        "measured, never fitted": unseen_folder(gpu) / "read_curve_scored.json",
    }
    return {name: path for name, path in found.items() if path.is_file()}

"""The paper's report as people read it."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from layerwise.scenarios import tables
from layerwise.scenarios.compare.joined import StageScore
from layerwise.scenarios.compare.tables import mark_of
from layerwise.scenarios.paper.answer import answer_of
from layerwise.scenarios.paper.experiment import Report
from layerwise.scenarios.paper.placements import print_placement, print_rates
from layerwise.scenarios.paper.verdicts import Verdict
from layerwise.scenarios.predict.tables import print_budget, print_remedies
from layerwise.scenarios.tables import escape
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.predict import Prediction

VERDICT_STYLE: dict[Verdict, str] = {
    "holds": "green",
    "does not hold": "yellow",
    "cannot hold": "red",
    "not decided": "dim",
}


def print_report(report: Report, out: Console) -> None:
    """Print everything, top down: the answer, what was asked, both placements, runs, verdicts."""
    for sentence in answer_of(report):
        out.print(f"[bold]{escape(sentence)}[/bold]")
    out.print()
    _print_heading(report, out)
    print_rates(report, out)
    print_placement("Baseline", report.baselines, out)
    print_placement("Proposal", (report.layer_wise,), out)
    if not report.layer_wise.best.fits:
        _print_budget(report, out)
    _print_stages(report, out)
    _print_claims(report, out)
    _print_readings(report, out)
    _print_head(report, out)
    _print_notes(out)


def _print_heading(report: Report, out: Console) -> None:
    scenario = report.layer_wise.scenario
    work, cluster = scenario.workload, scenario.cluster
    out.print(
        f"[bold]The paper's experiment[/bold]: {escape(describe_model(scenario.model))}, {work.phase}, "
        f"batch {work.batch_size}, {work.context_tokens:,} tokens,"
    )
    out.print(
        f"on {cluster.num_nodes} nodes of {cluster.gpus_per_node} {escape(cluster.gpu.name)}: "
        f"NVLink inside, one {cluster.nic.bytes_per_s * 8 / 1e9:.0f} Gb/s NIC per GPU between. "
        f"Launch: {scenario.run.launch}."
    )
    out.print(escape(describe_profile(report)), style="dim")
    out.print()


def describe_model(model: ModelSpec) -> str:
    """Name, layers, parameters."""
    return f"{model.name} ({model.num_layers} layers, {model.parameters / 1e9:.1f} B parameters)"


def describe_profile(report: Report) -> str:
    """Where the calibrated figures come from."""
    profile = report.profile
    if profile is None:
        return "No calibration profile: speed of light and uncalibrated only."
    origin = profile.provenance
    parts = [origin.get(key, "") for key in ("gpu", "driver", "date_utc", "date", "source")]
    known = ", ".join(part for part in parts if part)
    return f"Profile {profile.name} {profile.digest} ({known})."


def _print_budget(report: Report, out: Console) -> None:
    pairs = ((report.baselines[0], report.remedies[0]), (report.layer_wise, report.remedies[-1]))
    print_budget(
        {
            entry.best.placement: max(entry.best.memory, key=lambda budget: budget.total_bytes)
            for entry, _ in pairs
        },
        out,
    )
    for entry, found in pairs:
        print_remedies(entry.best.placement, found, out)
    out.print()


def _print_stages(report: Report, out: Console) -> None:
    title = "Measured on one H100 (peers replaced by local buffers; none of it was fitted)"
    if not report.stages:
        out.print(f"[bold]{title}[/bold]")
        why = "no committed validation trace" if report.profile else "nothing to compare with"
        out.print(f"{why}\n", style="dim")
        return
    made = tables.table(title, "run", "speed of light", "predicted", "measured", "error", "")
    for stage in report.stages:
        made.add_row(*_stage_cells(stage))
    out.print(made)
    out.print()


def _stage_cells(stage: StageScore) -> tuple[str | Text, ...]:
    return (
        escape(stage.name),
        tables.seconds(stage.speed_of_light_s),
        tables.seconds(stage.predicted_s),
        tables.seconds(stage.measured_s),
        tables.signed(stage.error),
        mark_of(stage),
    )


def _print_claims(report: Report, out: Console) -> None:
    made = tables.table("Verdicts", "claim", "verdict", "what decides", wide="what decides")
    made.columns[1].justify = "left"
    made.columns[0].no_wrap = True
    for judged in report.claims:
        figure = f"{judged.reading}: {judged.figure}" + (
            f"\n[dim]{judged.remark}[/dim]" if judged.remark else ""
        )
        verdict = Text(judged.verdict, style=VERDICT_STYLE[judged.verdict])
        made.add_row(judged.claim, verdict, figure)
    out.print(made)
    out.print()


def _print_readings(report: Report, out: Console) -> None:
    made = tables.table(
        "Which reading of the workload comes nearest to both claims?",
        "reading",
        "baseline",
        "layer-wise",
        "claim / prediction",
    )
    full = max(reading.context_tokens for reading in report.readings)
    for reading in report.readings:
        theirs, ours = reading.claim_ratios
        cells = (
            tables.number(reading.baseline_tokens_per_s),
            tables.number(reading.layer_wise_tokens_per_s),
            f"{theirs:.3g} and {ours:.3g}",
        )
        name = reading.name
        if reading.context_tokens < full:
            name += f" (mean of 0 to {full:,})"
        made.add_row(name, *(cell if reading.fits else f"({cell})" for cell in cells))
    out.print(made)
    fitting = [reading for reading in report.readings if reading.fits]
    if fitting:
        nearest = min(fitting, key=lambda reading: reading.factor)
        out.print(
            f"Nearest: {nearest.name}; "
            f"the farther claim is off by a factor of {nearest.factor:.3g}."
        )
    out.print()


def _print_head(report: Report, out: Console) -> None:
    head = report.head
    theirs, ours = report.best_baseline.best, report.layer_wise.best
    before = ours.tokens_per_s / theirs.tokens_per_s - 1
    after = head.layer_wise.tokens_per_s / head.baseline.tokens_per_s - 1
    busy = head.layer_wise.busy_share_by_rank
    out.print(
        f"[bold]With an LM head[/bold] (vocabulary {head.vocab_size:,}; the paper names none): "
        f"baseline {_change(theirs, head.baseline)}, layer-wise {_change(ours, head.layer_wise)}; "
        f"layer-wise over baseline {tables.signed(before)} becomes {tables.signed(after)}. "
        f"Its GPUs are then busy {min(busy):.1%} to {max(busy):.1%} of a step.\n"
    )


def _change(without: Prediction, with_head: Prediction) -> str:
    moved = with_head.tokens_per_s / without.tokens_per_s - 1
    return f"{tables.number(with_head.tokens_per_s)} tokens/s ({tables.signed(moved)})"


def _print_notes(out: Console) -> None:
    out.print(
        "No 16-GPU run exists: what only such a run could show says 'not measured'; beside what was "
        "measured stands the calibrated prediction's error. 'Predicted' means calibrated. The speed of "
        "light counts datasheet rates and bytes only, at its own best number of microbatches. "
        "Time bound by links is that of collectives; waits for messages are in the bubble.",
        style="dim",
    )

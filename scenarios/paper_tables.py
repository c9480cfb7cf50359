"""The paper's report as people read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from scenarios import tables
from scenarios.compare import StageScore
from scenarios.compare_tables import mark_of
from scenarios.paper import Entry, Report
from scenarios.paper_claims import Verdict
from scenarios.predicted_tables import BOUND_NAMES, print_budget, print_cautions, print_remedies
from sim.plan.model import ModelSpec
from sim.predict import BOUNDS, Prediction

NOT_MEASURED = "not measured"
CUSTOM_NOTE = (
    "NCCL: with NCCL's all-reduce. * custom: with the serving engines' one-shot all-reduce kernel, "
    "or their two-shot one where payloads are large."
)
VERDICT_STYLE: dict[Verdict, str] = {
    "holds": "green", "does not hold": "yellow", "cannot hold": "red", "not decided": "dim",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One row of a placement's table; `is_rate`: meaningless when the placement does not fit."""

    label: str
    show: Callable[[Prediction], str]
    claimed: str = ""
    measured: str = NOT_MEASURED
    error: str = ""
    is_rate: bool = True


def print_report(report: Report, out: Console) -> None:
    """Print everything, top down: what was asked, both placements, runs, verdicts, caveats."""
    _print_heading(report, out)
    _print_placement("Baseline", report.baselines, out)
    _print_placement("Proposal", (report.layer_wise,), out)
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
        f"[bold]The paper's experiment[/bold]: {describe_model(scenario.model)}, {work.phase}, "
        f"batch {work.batch_size}, {work.context_tokens:,} tokens,"
    )
    out.print(
        f"on {cluster.num_nodes} nodes of {cluster.gpus_per_node} {cluster.gpu.name}: "
        f"NVLink inside, one {cluster.nic.bytes_per_s * 8 / 1e9:.0f} Gb/s NIC per GPU between. "
        f"Launch: {scenario.run.launch}."
    )
    out.print(describe_profile(report), style="dim")
    out.print()


def describe_model(model: ModelSpec) -> str:
    """Name, layers, parameters."""
    return f"{model.name} ({model.num_layers} layers, {model.parameters / 1e9:.1f} B parameters)"


def describe_profile(report: Report) -> str:
    """Where the calibrated figures come from."""
    profile = report.profile
    if profile is None:
        return "No calibration profile: speed of light only (datasheet rates, no latencies)."
    origin = profile.provenance
    parts = [origin.get(key, "") for key in ("gpu", "driver", "date_utc", "date", "source")]
    known = ", ".join(part for part in parts if part)
    return f"Profile {escape(profile.name)} {profile.digest} ({known})."


def _print_placement(role: str, entries: tuple[Entry, ...], out: Console) -> None:
    """Claimed, speed of light, predicted (one column per all-reduce), measured, error."""
    first = entries[0]
    columns = ["", "claimed", "speed\nof light"]
    columns += [_predicted_name(e, len(entries)) for e in entries if e.beliefs.calibrated]
    out.print(f"[bold]{role}: {first.best.placement}[/bold]")
    if not first.best.fits:
        out.print("would not fit: what is in brackets needs GPUs with more memory", style="red")
    made = tables.table("", *columns, "measured", "error")
    made.columns[0].no_wrap = True
    for line in _lines(first):
        cells = [line.label, line.claimed, _cell(line, first.beliefs.speed_of_light)]
        cells += [_cell(line, e.beliefs.calibrated) for e in entries if e.beliefs.calibrated]
        measured = Text(line.measured, style="dim" if line.measured == NOT_MEASURED else "")
        made.add_row(*cells, measured, line.error)
    out.print(made)
    if len(entries) > 1:
        out.print(CUSTOM_NOTE, style="dim")
    # Variants of one placement compute the same shapes: the fastest speaks for all.
    fastest = max(entries, key=lambda entry: entry.best.tokens_per_s)
    print_cautions(fastest.scenario, fastest.best, out)
    out.print()


def _predicted_name(entry: Entry, count: int) -> str:
    if count == 1:
        return "predicted"
    return {"nccl": "predicted\nNCCL", "one_shot": "predicted\ncustom *"}[entry.all_reduce]


def _cell(line: _Line, prediction: Prediction) -> str:
    shown = line.show(prediction)
    return f"({shown})" if line.is_rate and not prediction.fits else shown


def _lines(entry: Entry) -> list[_Line]:
    decoding = entry.scenario.workload.phase == "decode"
    capacity = entry.scenario.cluster.gpu.hbm_bytes
    nvlink, nic = entry.scenario.cluster.nvlink.name, entry.scenario.cluster.nic.name
    return [
        _Line(label="tokens/s" if decoding else "prompt tokens/s",
              claimed=tables.number(entry.claimed_tokens_per_s),
              show=lambda p: tables.number(p.tokens_per_s)),
        _Line(label='inverse throughput, ms (its "TPOT")',
              claimed=f"{entry.claimed_inverse_throughput_s * 1e3:.3f}",
              show=lambda p: tables.milliseconds(p.inverse_throughput_s)),
        *(_decode_lines() if decoding else [
            _Line(label="whole batch, from idle, ms",
                  show=lambda p: tables.milliseconds(p.step_s)),
        ]),
        _stage_line(entry),
        _Line(label="microbatches (best found)", show=lambda p: str(p.num_microbatches),
              measured="", is_rate=False),
        _Line(label=f"memory of the fullest GPU, GB of {capacity / 1e9:.0f}",
              show=lambda p: tables.gigabytes(p.peak_memory_bytes), is_rate=False),
        _Line(label=f"over NVLink {_per(decoding)}, MB", is_rate=False,
              show=lambda p: tables.megabytes(p.wire_bytes.get(nvlink, 0))),
        _Line(label=f"over NICs {_per(decoding)}, MB", is_rate=False,
              show=lambda p: tables.megabytes(p.wire_bytes.get(nic, 0))),
        *(_Line(label=f"time bound by {BOUND_NAMES[bound]}",
                show=lambda p, bound=bound: tables.percent(p.share[bound])) for bound in BOUNDS),
        _Line(label="pipeline bubble", show=lambda p: tables.percent(p.bubble)),
    ]  # fmt: skip


def _per(decoding: bool) -> str:
    return "per step" if decoding else "in all"


def _decode_lines() -> list[_Line]:
    return [
        _Line(label="time per token of one sequence, ms",
              show=lambda p: tables.milliseconds(p.tpot_s)),
        _Line(label="step, steady stream, ms", show=lambda p: tables.milliseconds(p.step_s)),
        _Line(label="one step from idle, ms", show=lambda p: tables.milliseconds(p.from_idle_s)),
    ]  # fmt: skip


def _stage_line(entry: Entry) -> _Line:
    """The one time that a single GPU can be asked for: its own work in a step."""

    def work_s(prediction: Prediction) -> float:
        return max(prediction.busy_share_by_rank) * prediction.step_s

    measured, error = NOT_MEASURED, ""
    if entry.measured_stage_s and entry.beliefs.calibrated:
        measured = tables.milliseconds(entry.measured_stage_s)
        error = tables.signed(work_s(entry.beliefs.calibrated) / entry.measured_stage_s - 1)
    return _Line(label="busy time of the busiest GPU, ms", measured=measured, error=error,
                 show=lambda p: tables.milliseconds(work_s(p)))  # fmt: skip


def _print_budget(report: Report, out: Console) -> None:
    pairs = ((report.baselines[0], report.remedies[0]), (report.layer_wise, report.remedies[-1]))
    print_budget(
        {entry.best.placement: max(entry.best.memory, key=lambda budget: budget.total_bytes)
         for entry, _ in pairs}, out,
    )  # fmt: skip
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
        escape(stage.name), tables.seconds(stage.speed_of_light_s), tables.seconds(stage.predicted_s),
        tables.seconds(stage.measured_s), tables.signed(stage.error), mark_of(stage),
    )  # fmt: skip


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
        "reading", "baseline", "layer-wise", "claim / prediction",
    )  # fmt: skip
    full = max(reading.context_tokens for reading in report.readings)
    for reading in report.readings:
        theirs, ours = reading.claim_ratios
        cells = (
            tables.number(reading.baseline_tokens_per_s),
            tables.number(reading.layer_wise_tokens_per_s), f"{theirs:.3g} and {ours:.3g}",
        )  # fmt: skip
        name = reading.name
        if reading.context_tokens < full:
            name += f" (mean of 0 to {full:,})"
        made.add_row(name, *(cell if reading.fits else f"({cell})" for cell in cells))
    out.print(made)
    fitting = [reading for reading in report.readings if reading.fits]
    if fitting:
        nearest = min(fitting, key=lambda reading: reading.factor)
        out.print(f"Nearest: {nearest.name}; "
                  f"the farther claim is off by a factor of {nearest.factor:.3g}.")  # fmt: skip
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
        "No 16-GPU run exists: what only such a run could show says 'not measured'. The speed of "
        "light counts datasheet rates and bytes only, at its own best number of microbatches. "
        "Time bound by links is that of collectives; waits for messages are in the bubble.",
        style="dim",
    )

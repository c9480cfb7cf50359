"""The paper's two placements as people read them: every belief beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from layerwise.scenarios import tables
from layerwise.scenarios.paper.experiment import Entry, Report
from layerwise.scenarios.paper.verdicts import GAIN
from layerwise.scenarios.predict.tables import (
    BOUND_NAMES,
    INTERVAL,
    UNCALIBRATED_NOTE,
    print_cautions,
    rate_interval,
)
from layerwise.sim.cost.model import Belief
from layerwise.sim.plan.scenario import place
from layerwise.sim.predict import BOUNDS, Prediction

NOT_MEASURED = "not measured"
# Headings over two lines, so that the widest rates and their intervals stay on one.
NARROW_NAMES: dict[Belief, str] = {
    "speed_of_light": "speed\nof light",
    "uncalibrated": "uncali-\nbrated",
    "calibrated": "calibrated",
}
CUSTOM_NOTE = (
    "NCCL: with NCCL's all-reduce. * custom: with the serving engines' one-shot all-reduce kernel, "
    "or their two-shot one where payloads are large."
)


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One row of a placement's table; `is_rate`: meaningless when the placement does not fit."""

    label: str
    show: Callable[[Prediction], str]
    claimed: str = ""
    measured: str = NOT_MEASURED
    is_rate: bool = True


def print_rates(report: Report, out: Console) -> None:
    """The answer on one look: every placement's rate under every belief."""
    rate = _lines(report.layer_wise)[0]
    names = [NARROW_NAMES[each.belief] for each in _predictions(report.layer_wise)]
    made = tables.table(
        f"{rate.label[0].upper()}{rate.label[1:]}, under every belief",
        "",
        "claimed",
        *names,
        *(["90 %"] if report.profile else []),
        "measured",
    )
    for entry in report.entries:
        cells = [_cell(rate, each) for each in _predictions(entry)]
        claimed = tables.number(entry.claimed_tokens_per_s)
        if report.profile:
            cells.append(_bracketed(rate_interval(entry.best), entry.best))
        made.add_row(_entry_name(entry), claimed, *cells, Text(NOT_MEASURED, style="dim"))
    gains = [tables.signed(gain) for gain in _gains(report)]
    if report.profile:
        gains.append(_gain_interval(report))
    made.add_row("layer-wise's gain", tables.signed(GAIN), *gains, "")
    out.print(made)
    out.print(f"{CUSTOM_NOTE} Gain: over the faster baseline under the same belief.", style="dim")
    out.print(UNCALIBRATED_NOTE, style="dim")
    out.print()


def _predictions(entry: Entry) -> tuple[Prediction, ...]:
    """What is believed of a placement, the most optimistic first."""
    beliefs = entry.beliefs
    found = (beliefs.speed_of_light, beliefs.uncalibrated, beliefs.calibrated)
    return tuple(prediction for prediction in found if prediction)


def _gains(report: Report) -> list[float]:
    """Layer-wise over the baseline that is the faster one under the same belief, less one."""
    baselines = zip(*(_predictions(entry) for entry in report.baselines), strict=True)
    return [
        ours.tokens_per_s / max(theirs.tokens_per_s for theirs in believed) - 1
        for ours, believed in zip(_predictions(report.layer_wise), baselines, strict=True)
    ]


def _gain_interval(report: Report) -> str:
    found = report.gain_90
    return tables.span(found.low, found.high, tables.signed) if found else ""


def _entry_name(entry: Entry) -> str:
    how = {"nccl": ", NCCL", "one_shot": ", custom *"}
    return f"{entry.best.placement}{how.get(entry.all_reduce, '')}"


def print_placement(role: str, entries: tuple[Entry, ...], out: Console) -> None:
    """Claimed, every belief (calibrated: one column per all-reduce), and measured."""
    # Variants of one placement compute the same shapes: the fastest speaks for all.
    fastest = max(entries, key=lambda entry: entry.best.tokens_per_s)
    first = entries[0]
    columns = ["", "claimed", "speed\nof light", _column("uncalibrated", fastest, len(entries))]
    columns += [_column("calibrated", e, len(entries)) for e in entries if e.beliefs.calibrated]
    out.print(f"[bold]{role}: {first.best.placement}[/bold]")
    if not first.best.fits:
        out.print("would not fit: what is in brackets needs GPUs with more memory", style="red")
    made = tables.table("", *columns, "measured")
    made.columns[0].no_wrap = True
    for line in _lines(first):
        cells = [line.label, line.claimed, _cell(line, first.beliefs.speed_of_light)]
        cells.append(_cell(line, fastest.beliefs.uncalibrated))
        cells += [_cell(line, e.beliefs.calibrated) for e in entries if e.beliefs.calibrated]
        made.add_row(
            *cells, Text(line.measured, style="dim" if line.measured == NOT_MEASURED else "")
        )
    out.print(made)
    if len(entries) > 1:
        out.print(CUSTOM_NOTE, style="dim")
    print_cautions(fastest.scenario, place(fastest.scenario), fastest.best, out)
    out.print()


def _column(belief: str, entry: Entry, count: int) -> str:
    if count == 1:
        return belief
    return f"{belief}\n" + {"nccl": "NCCL", "one_shot": "custom *"}[entry.all_reduce]


def _cell(line: _Line, prediction: Prediction) -> str:
    shown = line.show(prediction)
    return _bracketed(shown, prediction) if line.is_rate else shown


def _half_width(prediction: Prediction) -> str:
    """Of its rate and of its step alike; the whole interval stands at the top."""
    found = prediction.uncertainty
    return f"+-{math.expm1(found.half_width):.1%}" if found else ""


def _bracketed(shown: str, prediction: Prediction) -> str:
    """What a placement that does not fit would do stands in brackets."""
    return f"({shown})" if shown and not prediction.fits else shown


def _lines(entry: Entry) -> list[_Line]:
    decoding = entry.scenario.workload.phase == "decode"
    capacity = entry.scenario.cluster.gpu.hbm_bytes
    nvlink, nic = entry.scenario.cluster.nvlink.name, entry.scenario.cluster.nic.name
    return [
        _Line(
            label="tokens/s" if decoding else "prompt tokens/s",
            claimed=tables.number(entry.claimed_tokens_per_s),
            show=lambda p: tables.number(p.tokens_per_s),
        ),
        *(
            [_Line(label=INTERVAL, show=_half_width, measured="", is_rate=False)]
            if entry.beliefs.calibrated
            else []
        ),
        _Line(
            label='1/throughput ("TPOT"), ms',
            claimed=f"{entry.claimed_inverse_throughput_s * 1e3:.3f}",
            show=lambda p: tables.milliseconds(p.inverse_throughput_s),
        ),
        *(
            _decode_lines()
            if decoding
            else [
                _Line(
                    label="whole batch, from idle, ms", show=lambda p: tables.milliseconds(p.step_s)
                ),
            ]
        ),
        _stage_line(entry),
        _Line(
            label="microbatches (best found)",
            show=lambda p: str(p.num_microbatches),
            measured="",
            is_rate=False,
        ),
        _Line(
            label=f"fullest GPU, GB of {capacity / 1e9:.0f}",
            show=lambda p: tables.gigabytes(p.peak_memory_bytes),
            is_rate=False,
        ),
        _Line(
            label=f"over NVLink {_per(decoding)}, MB",
            is_rate=False,
            show=lambda p: tables.megabytes(p.wire_bytes.get(nvlink, 0)),
        ),
        _Line(
            label=f"over NICs {_per(decoding)}, MB",
            is_rate=False,
            show=lambda p: tables.megabytes(p.wire_bytes.get(nic, 0)),
        ),
        *(
            _Line(
                label=f"time bound by {BOUND_NAMES[bound]}",
                show=lambda p, bound=bound: tables.percent(p.share[bound]),
            )
            for bound in BOUNDS
        ),
        _Line(label="pipeline bubble", show=lambda p: tables.percent(p.bubble)),
    ]


def _per(decoding: bool) -> str:
    return "per step" if decoding else "in all"


def _decode_lines() -> list[_Line]:
    return [
        _Line(label="per token of a sequence, ms", show=lambda p: tables.milliseconds(p.tpot_s)),
        _Line(label="step, steady stream, ms", show=lambda p: tables.milliseconds(p.step_s)),
        _Line(label="one step from idle, ms", show=lambda p: tables.milliseconds(p.from_idle_s)),
    ]


def _stage_line(entry: Entry) -> _Line:
    """The one time that a single GPU can be asked for: its own work in a step."""

    def work_s(prediction: Prediction) -> float:
        return max(prediction.busy_share_by_rank) * prediction.step_s

    measured = NOT_MEASURED
    if entry.measured_stage_s and entry.beliefs.calibrated:
        measured = tables.milliseconds(entry.measured_stage_s)
        error = work_s(entry.beliefs.calibrated) / entry.measured_stage_s - 1
        measured += f" ({tables.signed(error)})"
    return _Line(
        label="busy time of busiest GPU, ms",
        measured=measured,
        show=lambda p: tables.milliseconds(work_s(p)),
    )

"""The report of a host's folder: report.json for machines, report.txt for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from layerwise.calibration.data import FOLDER
from layerwise.scenarios.predict.committed import earlier_than
from layerwise.scenarios.whole_host.driving import HostRequest, runs_of
from layerwise.scenarios.whole_host.effects import Effect, effects_of
from layerwise.scenarios.whole_host.journal import read_stages
from layerwise.scenarios.whole_host.machine import machine_lines
from layerwise.scenarios.whole_host.predictions import HostPrediction, host_profile, read_prediction
from layerwise.scenarios.whole_host.scoring import (
    Bar,
    HostScore,
    LinkScore,
    Ranking,
    RunScore,
    score_host,
)
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.plan.reading import read_json
from layerwise.sim.trace import write_atomically

Cells = tuple[str, ...]


def write_report(request: HostRequest) -> str:
    """Score the folder, write both files, and return the text.

    Raises FileFormatError where there is no prediction.
    """
    out = request.out
    prediction = read_prediction(out / "predictions.json")
    if prediction is None:
        raise FileFormatError(f"{out}/predictions.json: is missing; nothing was begun here")
    profile = host_profile(request.gpu) if request.scale == "full" else None
    score = score_host(out, prediction, runs_of(request, profile), profile)
    text = "\n".join(_text(out, prediction, score)) + "\n"
    write_atomically(out / "report.txt", text)
    write_atomically(
        out / "report.json", json.dumps(_data(out, prediction, score), indent=1) + "\n"
    )
    return text


def _data(out: Path, prediction: HostPrediction, score: HostScore) -> dict[str, Any]:
    """Everything, SI units in key names; what is derived is spelled out."""
    return {
        "predicted": {
            "created": prediction.created,
            "profile_digest": prediction.profile_digest,
            "told": predicted_when(out, prediction),
        },
        "bars": [asdict(bar) | {"passes": bar.passes} for bar in score.bars],
        "runs": [
            asdict(run)
            | {
                "error": run.error,
                "own_links_error": run.own_links_error,
                "is_inside": run.is_inside,
                "median_op_error": run.median_op_error,
            }
            for run in score.runs
        ],
        "rankings": [asdict(one) | {"best_is_right": one.best_is_right} for one in score.rankings],
        "effects": [asdict(one) for one in effects_of(score.runs)],
        "links": [asdict(link) for link in score.links],
        "pairs": [asdict(one) for one in surveyed_pairs(out)],
        "missing": list(score.missing),
        "stages": [asdict(stage) for stage in _stages(out)],
    }


def _text(out: Path, prediction: HostPrediction, score: HostScore) -> Iterator[str]:
    yield f"{prediction.num_gpus} GPUs, put on {prediction.gpu}; {predicted_when(out, prediction)}"
    if not prediction.links:
        yield "a CPU's run of tiny models: it proves the stages, and no figure below means anything"
    elif not GPUS[prediction.gpu].persisting_l2_bytes:
        yield (
            f"runs with persisting windows were left out: how much of its L2 an {prediction.gpu} "
            "can set aside is not known (persisting_l2_bytes)"
        )
    machine = out / "machine.json"
    yield from machine_lines(read_json(machine)) if machine.exists() else ["machine: not checked"]
    for stage in _stages(out):
        told = f"call {stage.call}, {stage.stage}: {stage.took_s:.0f} s of {stage.expected_s:.0f}"
        yield "; ".join(
            part for part in (told, stage.left and f"left {stage.left}", stage.problem) if part
        )
    yield from _section("Bars", ("figure", "is", "bar", "of", ""), map(_bar_cells, score.bars))
    yield from _section(
        "Steps, no tracer attached: predicted before beside measured (ms)",
        RUN_COLUMNS,
        map(_run_cells, score.runs),
    )
    yield from _section(
        "Ranking of placements, fastest first (ms)",
        RANKING_COLUMNS,
        map(_ranking_cells, score.rankings),
    )
    yield from _section(
        "The layer in the L2: one run over another",
        EFFECT_COLUMNS,
        map(_effect_cells, effects_of(score.runs)),
    )
    yield from _section(
        "Ops: median error by kind, over all runs", ("op", "runs", "error"), _op_cells(score.runs)
    )
    yield from _section(
        "Links: mean error on payloads that are not fitted",
        LINK_COLUMNS,
        map(_link_cells, score.links),
    )
    yield from _section(
        "Pairs of GPUs: sends at each payload that all pairs were given",
        PAIR_COLUMNS,
        map(_pair_cells, surveyed_pairs(out)),
    )
    if score.missing:
        yield from ("", f"not measured ({len(score.missing)}): {', '.join(score.missing)}")
    for run in score.runs:
        yield from (f"{run.name}: {caution}" for caution in run.cautions)


RUN_COLUMNS = (
    "run",
    "light",
    "uncal.",
    "before",
    "+-",
    "measured",
    "error",
    "in",
    "own links",
    "ops",
    "traced",
)
RANKING_COLUMNS = ("question", "predicted", "measured", "best", "pairs right")
EFFECT_COLUMNS = ("run", "over", "of", "predicted", "measured")
PAIR_COLUMNS = ("payload", "pairs", "fastest us", "slowest us", "slowest pair")
LINK_COLUMNS = ("transfer", "mode", "held out", "own fit", "blind", "largest GB/s")


def predicted_when(out: Path, prediction: HostPrediction) -> str:
    """Was it predicted before the run? By git where the file is committed, else by its own date."""
    machine = out / "machine.json"
    ran = read_json(machine)["environment"].get("date_utc", "") if machine.exists() else ""
    committed = FOLDER / "predictions" / f"host-{prediction.num_gpus}-{prediction.gpu}.json"
    here = out / "predictions.json"
    same = committed.exists() and committed.read_bytes() == here.read_bytes()
    return earlier_than(ran, committed if same else here, prediction.created).told


def _bar_cells(bar: Bar) -> Cells:
    verdict = {True: "PASS", False: "MISS", None: "nothing measured"}[bar.passes]
    show = _percent if bar.bar else _whole
    return bar.what, show(bar.figure), show(bar.bar), str(bar.num), verdict


def _run_cells(run: RunScore) -> Cells:
    return (
        run.name,
        *(f"{1e3 * s:.4g}" for s in (run.speed_of_light_s, run.uncalibrated_s, run.predicted_s)),
        _percent(run.half_width),
        f"{1e3 * run.measured_s:.4g}",
        _signed(run.error),
        "yes" if run.is_inside else "no",
        _signed(run.own_links_error),
        _percent(run.median_op_error),
        f"{run.traced_ratio:.3f}",
    )


def _ranking_cells(one: Ranking) -> Cells:
    order = (
        ", ".join(f"{name} {1e3 * s:.4g}" for name, s in side.items())
        for side in (one.predicted, one.measured)
    )
    pairs = f"{one.pairs_right} of {one.pairs_asked}"
    return one.question, *order, "right" if one.best_is_right else "WRONG", pairs


def _op_cells(runs: Iterable[RunScore]) -> Iterator[Cells]:
    found: dict[str, list[float]] = {}
    for run in runs:
        for kind, (before, after) in run.ops.items():
            if after:
                found.setdefault(kind, []).append(before / after - 1)
    for kind, errors in sorted(found.items()):
        yield kind, str(len(errors)), _signed(median(errors))


def _effect_cells(one: Effect) -> Cells:
    return one.name, one.base, one.what, f"{one.predicted:.3f}", f"{one.measured:.3f}"


@dataclass(frozen=True, kw_only=True)
class SurveyedPairs:
    """One payload sent between every two GPUs, one pair at a time."""

    payload_bytes: int
    num_pairs: int
    fastest_s: float
    slowest_s: float
    slowest_pair: tuple[int, int]


def surveyed_pairs(out: Path) -> list[SurveyedPairs]:
    """Payloads that every pair was given, rising; nothing for a host of two."""
    path = out / "links.json"
    data = read_json(path) if path.exists() else {"timings": []}
    sent: dict[int, dict[tuple[int, int], float]] = {}
    surveyed = {one["payload_bytes"] for one in data["timings"] if one["use"] == "survey"}
    modes = {one["mode"] for one in data["timings"] if one["use"] == "survey"}
    for one in data["timings"]:
        if one["op"] == "send" and one["payload_bytes"] in surveyed and one["mode"] in modes:
            first, second = one["ranks"]
            sent.setdefault(one["payload_bytes"], {})[first, second] = one["median_s"]
    return [
        SurveyedPairs(
            payload_bytes=size,
            num_pairs=len(by_pair),
            fastest_s=min(by_pair.values()),
            slowest_s=max(by_pair.values()),
            slowest_pair=max(by_pair, key=by_pair.__getitem__),
        )
        for size, by_pair in sorted(sent.items())
    ]


def _pair_cells(one: SurveyedPairs) -> Cells:
    first, second = one.slowest_pair
    return (
        f"{one.payload_bytes:,} B",
        str(one.num_pairs),
        f"{1e6 * one.fastest_s:.1f}",
        f"{1e6 * one.slowest_s:.1f}",
        f"{first}-{second}",
    )


def _link_cells(link: LinkScore) -> Cells:
    return (
        link.name,
        link.mode,
        str(link.num_held_out),
        _percent(link.own_error),
        _percent(link.blind_error),
        f"{link.largest_bytes_per_s / 1e9:.1f}",
    )


def _section(title: str, columns: Cells, rows: Iterable[Cells]) -> Iterator[str]:
    """A title and a table whose first column is text; nothing for no rows."""
    made = [columns, *rows]
    if len(made) == 1:
        return
    widths = [max(len(row[i]) for row in made) for i in range(len(columns))]
    yield from ("", title)
    for row in made:
        first, *others = (cell.ljust(w) for cell, w in zip(row, widths, strict=True))
        yield "  ".join((first, *others)).rstrip()


def _stages(out: Path) -> list[Any]:
    path = out / "stages.json"
    return list(read_stages(path)) if path.exists() else []


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"

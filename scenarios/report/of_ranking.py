"""What `rank --json` wrote, as a part of a page: the question, the answer, what limits it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from layerwise.scenarios import tables
from layerwise.scenarios.predict.tables import UNCALIBRATED_NOTE
from layerwise.scenarios.rank.words import TERMS, VALIDATED, VALIDATED_GPUS
from layerwise.scenarios.report.charts import LIGHT, PREDICTED, axis, bottlenecks, layout, log_axis
from layerwise.scenarios.report.markup import (
    Cell,
    Chart,
    Html,
    bullets,
    in_chart,
    paragraph,
    span,
    table,
)
from layerwise.scenarios.report.sections import Section
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.uncertainty import Interval

MAX_CANDIDATES = 60
MOST_BARS = 12
BAR_COLOUR = "#c9534f"
LEGEND = (
    f"TPOT: the time between two tokens of one sequence. {TERMS} bottleneck: what limits a GPU for "
    "most of the step, not how near it is to that limit. ~: some of its ops lie outside what was "
    "calibrated."
)


def ranking_section(path: Path, data: dict[str, Any], key: str) -> Section:
    """A ranking. Raises KeyError, TypeError or ValueError for data that is not one."""
    part = Section(title=f"Ranking: {data['model']['name']} on {data['cluster']['name']}", key=key)
    part.say(_question(data))
    part.say(_belief(data), "quiet")
    part.say(data["verdict"], "strong")
    told = (data["what_flips_it"], data.get("what_the_bar_leaves_room_for"))
    part.add(bullets(text for text in told if text))
    part.add(*_not_validated(data["what_is_not_validated"]))
    part.add(bullets(data.get("what_is_unfitted", ())))
    candidates = data["candidates"]
    part.add(
        table(
            f"Every placement ({path.name})",
            (
                "placement",
                "microbatches",
                "tokens/s",
                "90 %",
                "per GPU",
                "TPOT, ms",
                "TTFT, ms",
                "bottleneck",
                "memory, GB",
                "fits",
                "standing",
            ),
            [_candidate(each, data["winner"]) for each in candidates[:MAX_CANDIDATES]],
        )
    )
    part.say_left_out(len(candidates), MAX_CANDIDATES)
    for note in _footnotes(data):
        part.say(note, "quiet")
    part.draw(_front(data["pareto_front"], candidates, data["tpot_below_s"]))
    part.draw(
        bottlenecks(
            {
                f"{each['placement']} m={each['num_microbatches']}": {
                    **each["bound_share"],
                    "bubble": each["bubble_share"],
                }
                for each in candidates[:MOST_BARS]
            }
        )
    )
    return part


def _question(data: dict[str, Any]) -> str:
    """What was asked, as `rank` says it above its table."""
    model, work, cluster = ModelSpec(**data["model"]), data["workload"], data["cluster"]
    num_nodes, limit_s = cluster["num_nodes"], data["tpot_below_s"]
    return (
        f"{model.name} ({model.parameters / 1e9:.3g} B parameters), {work['phase']}, "
        f"batch {work['batch_size']:,}, {work['context_tokens']:,} tokens of context, "
        f"{cluster['name']} ({num_nodes} node{'s' if num_nodes > 1 else ''} of "
        f"{cluster['gpus_per_node']}), {data['run']['launch']} launch"
        + (f", TPOT below {tables.seconds(limit_s)}." if limit_s else ".")
    )


def _belief(data: dict[str, Any]) -> str:
    profile = data["provenance"]["profile"]
    if profile:
        return f"Profile {profile['name']} {profile['digest']}."
    return (
        f"No calibration profile for {data['cluster']['gpu']['name']}: no intervals, and so no ties "
        f"are told. {UNCALIBRATED_NOTE}"
    )


def _not_validated(sentence: str) -> Iterator[Html]:
    """Which two placements it is about, and a line for each thing that they rest on."""
    about, _, things = sentence.rstrip(".").partition(": ")
    if about:
        yield paragraph(f"{about}:" if things else about)
    yield bullets(thing for thing in things.split("; ") if thing)


def _footnotes(data: dict[str, Any]) -> Iterator[str]:
    yield LEGEND
    cluster = data["cluster"]
    if cluster["num_nodes"] * cluster["gpus_per_node"] > VALIDATED_GPUS:
        yield VALIDATED
    reasons: dict[str, list[str]] = {}
    for each in data["left_out"]:
        reasons.setdefault(each["reason"], []).append(each["name"])
    for reason, names in reasons.items():
        yield f"Left out: {', '.join(names)}: {reason}."


def _candidate(each: dict[str, Any], winner: dict[str, Any] | None) -> list[Cell | str]:
    ends = each["tokens_per_s_interval"]
    interval = Interval(ends["low"], ends["high"]) if ends else None
    memory = float(each["memory"]["total_bytes"])
    far = "~ " if each["num_extrapolated_ops"] else ""
    return [
        Cell(str(each["placement"]), style="range"),
        _number(each["num_microbatches"]),
        _number(each["tokens_per_s"]),
        Cell(f"{far}{span(interval, tables.number).text}".strip(), style="range"),
        _number(each["tokens_per_s_per_gpu"]),
        _ms(each["tpot_s"]),
        _ms(each["ttft_s"]),
        f"{each['bottleneck']} {each['bottleneck_share']:.0%}",
        Cell(tables.gigabytes(memory), memory),
        Cell("yes", style="good") if each["fits"] else Cell("no", style="bad"),
        _standing(each, winner),
    ]


def _standing(each: dict[str, Any], winner: dict[str, Any] | None) -> Cell:
    if winner and all(
        each[key] == winner[key] for key in ("placement", "num_microbatches", "tokens_per_s")
    ):
        return Cell("winner", style="good")
    if each["fits"] and not each["meets"]:
        return Cell("misses the TPOT", style="bad")
    return Cell("tied with the winner" if each["tied_with_winner"] else "")


def _front(
    front: Sequence[dict[str, Any]], candidates: Sequence[dict[str, Any]], limit_s: float | None
) -> Chart:
    """Throughput against TPOT: what nothing beats, among everything that fits; the bar asked for."""

    def points(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "x": [1e3 * each["tpot_s"] for each in found],
            "y": [each["tokens_per_s"] for each in found],
            "text": [
                in_chart(
                    f"{each['placement']}, batch {each['batch_size']}, m={each['num_microbatches']}"
                )
                for each in found
            ],
            "hovertemplate": "%{text}<br>%{y:,.0f} tokens/s, %{x:.4g} ms<extra></extra>",
        }

    fitting = [each for each in candidates if each["fits"]]
    ends = [(each["tokens_per_s"], each["tokens_per_s_interval"]) for each in front]
    shown = [*front, *fitting]
    bar = _bar(limit_s, max((each["tokens_per_s"] for each in shown), default=1.0))
    across = [1e3 * each["tpot_s"] for each in shown] + [x for line in bar for x in line["x"]]
    return Chart(
        "Pareto front of throughput against the time between two tokens of a sequence, over "
        "batches up to the one asked for; whiskers are 90 % intervals."
        + (" Left of the dotted line is the TPOT asked for." if bar else ""),
        [
            {
                "type": "scatter",
                "mode": "markers",
                "name": "fits",
                "marker": {"color": LIGHT},
                **points(fitting),
            },
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "Pareto front",
                "marker": {"color": PREDICTED, "size": 8},
                "line": {"color": PREDICTED},
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "thickness": 1,
                    "array": [i["high"] - rate if i else 0 for rate, i in ends],
                    "arrayminus": [rate - i["low"] if i else 0 for rate, i in ends],
                },
                **points(front),
            },
            *bar,
        ],
        layout(420, log_axis("TPOT, ms", across), axis("tokens/s", rangemode="tozero")),
    )


def _bar(limit_s: float | None, most: float) -> list[dict[str, Any]]:
    """A line across at the TPOT asked for, if one was."""
    if not limit_s:
        return []
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"TPOT asked for: {tables.seconds(limit_s)}",
            "x": [1e3 * limit_s] * 2,
            "y": [0.0, most],
            "hoverinfo": "skip",
            "line": {"color": BAR_COLOUR, "width": 2, "dash": "dot"},
        }
    ]


def _number(value: float) -> Cell:
    return Cell(f"{value:,.0f}", float(value))


def _ms(value_s: float) -> Cell:
    return Cell(f"{value_s * 1e3:.4g}", float(value_s))

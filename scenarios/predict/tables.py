"""A predicted scenario as people read it."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Console

from layerwise.scenarios import tables
from layerwise.scenarios.predict.beliefs import ThreeBeliefs, on_chip_line, warnings_of
from layerwise.scenarios.rank.layouts import Layout
from layerwise.scenarios.tables import escape
from layerwise.sim.cost.model import Belief
from layerwise.sim.memory import MemoryBudget, Remedy, remedies
from layerwise.sim.plan.placement import Placement
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.predict import BOUNDS, Prediction
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import Plan

BOUND_NAMES = {
    "hbm": "HBM",
    "l2": "L2",
    "compute": "compute",
    "link": "links",
    "launch": "launch",
    "wait": "peers",
}

NUM_BEYOND = 8

BELIEF_NAMES: dict[Belief, str] = {
    "speed_of_light": "speed of light",
    "uncalibrated": "uncalibrated",
    "calibrated": "calibrated",
}
INTERVAL = "  90 % interval"
UNCALIBRATED_NOTE = (
    "Uncalibrated: datasheet rates times efficiencies published by others; "
    "nothing of it was measured here."
)


def print_predicted(scenario: Scenario, plan: Plan, beliefs: ThreeBeliefs, out: Console) -> None:
    """Print all beliefs of a scenario side by side, and the memory budget when it does not fit."""
    work, name = scenario.workload, placement_name(plan)
    out.print(
        f"[bold]{escape(scenario.name)}[/bold]: {escape(scenario.model.name)} "
        f"({scenario.model.parameters / 1e9:.3g} B parameters), {name}, "
        f"{work.phase}, batch {work.batch_size}, {work.context_tokens:,} tokens, "
        f"{escape(scenario.cluster.name)}."
    )
    out.print(_describe_beliefs(scenario, plan.profile), style="dim")
    made = tables.table("", "", *(BELIEF_NAMES[each.belief] for each in beliefs.shown))
    for label, show in _lines(work.phase == "decode", beliefs.best.power is not None):
        made.add_row(label, *(show(prediction) for prediction in beliefs.shown))
    out.print(made)
    print_cautions(scenario, plan.placement, beliefs.best, out)
    print_beyond(beliefs.best, out)
    if beliefs.alone_step_s is not None:
        out.print(
            f"Step of rank {scenario.run.only_rank} alone, peers replaced: "
            f"{tables.seconds(beliefs.alone_step_s)}."
        )
    if not beliefs.best.fits:
        fullest = max(beliefs.best.memory, key=lambda budget: budget.total_bytes)
        out.print()
        print_budget({name: fullest}, out)
        print_remedies(name, remedies(scenario, fullest), out)


def placement_name(plan: Plan) -> str:
    """Name a placement by its degrees above one and its all-reduce, as a ranking does."""
    placement, shards = plan.placement, plan.placement.tensor_parallel
    return Layout(
        tensor_parallel=shards,
        pipeline_parallel=placement.num_stages,
        data_parallel=placement.data_parallel,
        all_reduce=plan.kernels.all_reduce if shards > 1 else "nccl",
    ).name


def _describe_beliefs(scenario: Scenario, profile: Profile | None) -> str:
    if profile:
        return f"Profile {escape(profile.name)} {profile.digest}. {UNCALIBRATED_NOTE}"
    return f"No calibration profile for {escape(scenario.cluster.gpu.name)}. {UNCALIBRATED_NOTE}"


def print_cautions(
    scenario: Scenario, placement: Placement, prediction: Prediction, out: Console
) -> None:
    """Print whether a stage's weights fit on chip, and what to know before trusting the figures."""
    if line := on_chip_line(scenario, placement):
        out.print(line[0].upper() + line[1:] + ".")
    for warning in warnings_of(scenario, prediction):
        out.print(warning, style="yellow")


def print_beyond(prediction: Prediction, out: Console) -> None:
    """The ops outside what was calibrated, the widest first, and what that did to the interval."""
    found = prediction.uncertainty.beyond if prediction.uncertainty else ()
    if not found:
        return
    made = tables.table(
        "Outside what was calibrated",
        "op",
        "dimensions",
        "distance",
        "of the step",
        "op's 90 %",
        "in the step's",
    )
    for one in found[:NUM_BEYOND]:
        made.add_row(
            one.name,
            " x ".join(f"{size:g}" for size in one.dimensions),
            f"{one.distance:.2f}",
            tables.percent(one.share),
            f"+-{math.expm1(one.half_width):.1%}",
            f"+-{math.expm1(one.carried):.2%}",
        )
    out.print(made)
    out.print(
        "distance: to the nearest calibrated shape; 0.7 is a factor of two in one dimension. The "
        "farther, the wider the op's interval."
        + (f" {len(found) - NUM_BEYOND} more are in --json." if len(found) > NUM_BEYOND else ""),
        style="dim",
    )


def print_budget(fullest: dict[str, MemoryBudget], out: Console) -> None:
    """The budget of each placement's fullest GPU, when it does not fit."""
    made = tables.table(
        "Memory of the fullest GPU, GB: it does not fit",
        "",
        "weights",
        "KV",
        "activations",
        "communication",
        "rounding",
        "reserved",
        "total",
        "capacity",
    )
    for name, budget in fullest.items():
        sizes = (
            budget.weight_bytes,
            budget.kv_bytes,
            budget.activation_bytes,
            budget.communication_bytes,
            budget.slack_bytes,
            budget.reserved_bytes,
            budget.total_bytes,
            budget.capacity_bytes,
        )
        made.add_row(name, *(tables.gigabytes(size) for size in sizes))
    out.print(made)


def print_remedies(name: str, found: tuple[Remedy, ...], out: Console) -> None:
    """What would make it fit, each change by itself."""
    useful = [remedy for remedy in found if remedy.value]
    out.print(f"{name} would fit with any one of:" if useful else f"{name}: no single change fits.")
    for remedy in useful:
        out.print(f"- {remedy.words}")


def rate_interval(prediction: Prediction) -> str:
    """The 90 % interval of its tokens per second; "" where a belief has none."""
    found = prediction.tokens_per_s_interval
    return tables.span(found.low, found.high, tables.number) if found else ""


def step_interval(prediction: Prediction, show: Callable[[float], str]) -> str:
    """The same of its step."""
    found = prediction.interval
    return tables.span(found.low, found.high, show) if found else ""


def _lines(decoding: bool, knows_power: bool) -> list[tuple[str, Callable[[Prediction], str]]]:
    step = "step, steady stream" if decoding else "whole batch, from idle"
    lines: list[tuple[str, Callable[[Prediction], str]]] = [
        ("tokens/s" if decoding else "prompt tokens/s", lambda p: tables.number(p.tokens_per_s)),
        (INTERVAL, rate_interval),
        ("inverse throughput", lambda p: tables.seconds(p.inverse_throughput_s)),
        (step, lambda p: tables.seconds(p.step_s)),
        (INTERVAL, lambda p: step_interval(p, tables.seconds)),
        ("one step from idle", lambda p: tables.seconds(p.from_idle_s)),
        ("microbatches", lambda p: str(p.num_microbatches)),
        ("memory of the fullest GPU, GB", lambda p: tables.gigabytes(p.peak_memory_bytes)),
        ("on wires per step, MB", lambda p: tables.megabytes(sum(p.wire_bytes.values()))),
    ]
    if knows_power:
        lines += [
            ("SM clock, of the highest", lambda p: f"{p.power.clock_share:.0%}" if p.power else ""),
            ("watts of a GPU", lambda p: f"{p.power.watts:,.0f}" if p.power else ""),
            (
                "joules a token, all GPUs",
                lambda p: f"{p.energy_per_token_j:.3g}" if p.power else "",
            ),
        ]
    lines += [
        (
            f"time bound by {BOUND_NAMES[bound]}",
            lambda p, bound=bound: tables.percent(p.share[bound]),
        )
        for bound in BOUNDS
    ]
    return [*lines, ("pipeline bubble", lambda p: tables.percent(p.bubble))]

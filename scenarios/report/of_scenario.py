"""A predicted scenario as a part of a page: every belief, bottlenecks, memory, a step's timeline."""

from __future__ import annotations

from layerwise.scenarios import tables
from layerwise.scenarios.predict.beliefs import ThreeBeliefs, on_chip_line, warnings_of
from layerwise.scenarios.predict.tables import BELIEF_NAMES
from layerwise.scenarios.report.charts import bottlenecks, stacked_bars
from layerwise.scenarios.report.markup import Cell, Chart, bullets, span, table
from layerwise.scenarios.report.sections import Section, shares_of
from layerwise.scenarios.report.timelines import MAX_SLICES, Lanes, timeline
from layerwise.sim.memory import MemoryBudget, remedies
from layerwise.sim.plan.scenario import Scenario, place
from layerwise.sim.predict import Prediction

MOST_RANKS = 4
MEMORY_NAMES = {
    "weight_bytes": "weights",
    "kv_bytes": "KV cache",
    "activation_bytes": "activations",
    "communication_bytes": "communication",
    "slack_bytes": "allocator",
    "reserved_bytes": "reserved",
}
MEMORY_COLOURS = dict(
    zip(
        MEMORY_NAMES,
        ("#3b82c4", "#e0762f", "#2f9e77", "#c2528b", "#8b929b", "#9a7fd1"),
        strict=True,
    )
)


def scenario_section(scenario: Scenario, beliefs: ThreeBeliefs, key: str) -> Section:
    """One scenario under every belief."""
    part = Section(title=f"Predicted: {scenario.name}", key=key)
    work, best = scenario.workload, beliefs.best
    part.say(
        f"{scenario.model.name} ({scenario.model.parameters / 1e9:.3g} B parameters), "
        f"{best.placement}, {work.phase}, batch {work.batch_size}, {work.context_tokens:,} tokens, "
        f"{scenario.cluster.name}."
    )
    part.add(
        table(
            "Under every belief",
            (
                "belief",
                "tokens/s",
                "90 %",
                "step, ms",
                "microbatches",
                "bubble",
                "memory, GB",
                "fits",
            ),
            [_row(prediction) for prediction in beliefs.shown],
        )
    )
    part.draw(bottlenecks({BELIEF_NAMES[p.belief]: shares_of(p) for p in beliefs.shown}))
    fullest = max(best.memory, key=lambda budget: budget.total_bytes)
    part.draw(memory_chart({best.placement: fullest}))
    notes = [on_chip_line(scenario, place(scenario)), *warnings_of(scenario, best)]
    if not best.fits:
        found = [r for r in remedies(scenario, fullest) if r.value]
        notes += [f"it would fit with {r.words}" for r in found]
    part.add(bullets(note for note in notes if note))
    if best.simulation:
        part.draw(step_timeline({best.placement: best}))
    return part


def memory_chart(budgets: dict[str, MemoryBudget]) -> Chart:
    """The fullest GPU of each placement beside what it has."""
    bars = {
        name: {key: getattr(budget, key) / 1e9 for key in MEMORY_NAMES}
        for name, budget in budgets.items()
    }
    capacity = min(budget.capacity_bytes for budget in budgets.values()) / 1e9
    return stacked_bars(
        "Memory of the fullest GPU; the dotted line is what it has.",
        "GB",
        bars,
        MEMORY_NAMES,
        MEMORY_COLOURS,
        mark=capacity,
    )


def step_timeline(
    predictions: dict[str, Prediction], most_ranks: int = MOST_RANKS, max_slices: int = MAX_SLICES
) -> Chart:
    """The first of the steps that each prediction was read from, on its first ranks."""
    sides = [
        Lanes(
            side=name,
            rows=[
                row
                for rank in found.simulation.ranks[:most_ranks]
                for row in found.simulation.rows_of(rank, found.steps[0])
            ],
        )
        for name, found in predictions.items()
        if found.simulation
    ]
    return timeline(
        f"Predicted: one steady step on the first {most_ranks} ranks (ranks that do the same are "
        "simulated once).",
        sides,
        max_slices,
    )


def _row(found: Prediction) -> list[Cell | str]:
    return [
        BELIEF_NAMES[found.belief],
        Cell(tables.number(found.tokens_per_s), found.tokens_per_s),
        span(found.tokens_per_s_interval, tables.number),
        Cell(f"{found.step_s * 1e3:.4g}", found.step_s),
        Cell(str(found.num_microbatches), found.num_microbatches),
        Cell(tables.percent(found.bubble), found.bubble),
        Cell(tables.gigabytes(found.peak_memory_bytes), found.peak_memory_bytes),
        Cell("yes", style="good") if found.fits else Cell("no", style="bad"),
    ]

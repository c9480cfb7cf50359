"""A run of tokens whose context grows, under every belief: `layerwise predict --tokens N`."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from layerwise.scenarios import tables
from layerwise.scenarios.predict.beliefs import ThreeBeliefs
from layerwise.sim.cost.model import Belief
from layerwise.sim.generate import Generation, generate
from layerwise.sim.resolve import Plan


def generate_all(plan: Plan, beliefs: ThreeBeliefs, num_tokens: int) -> dict[Belief, Generation]:
    """Generate under each belief with its own microbatches. Raises SpecError, as generate does."""
    return {
        shown.belief: generate(
            plan.under(shown.belief).with_microbatches(shown.num_microbatches), num_tokens
        )
        for shown in beliefs.shown
    }


def print_generated(
    found: dict[Belief, Generation], names: dict[Belief, str], out: Console
) -> None:
    """What the tokens take, how a step slows down, and how far sampling may be off."""
    any_run = next(iter(found.values()))
    out.print()
    made = tables.table(
        f"{any_run.num_tokens:,} tokens of each of {any_run.batch_size} sequences, the context growing",
        "",
        *(names[belief] for belief in found),
    )
    lines = {
        "in all": lambda g: tables.seconds(g.total_s),
        "tokens/s": lambda g: tables.number(g.tokens_per_s),
        "mean time between two tokens": lambda g: tables.seconds(g.mean_tpot_s),
        "step at the first context": lambda g: tables.seconds(g.sampled[0][1]),
        "step at the last context": lambda g: tables.seconds(g.sampled[-1][1]),
        "off by sampling at most": lambda g: tables.percent(g.error_bound_s / g.total_s),
    }
    for label, show in lines.items():
        made.add_row(label, *(show(generation) for generation in found.values()))
    out.print(made)


def generation_as_data(generation: Generation) -> dict[str, Any]:
    """A generation with stable keys, SI units in their names."""
    return {
        "num_tokens": generation.num_tokens,
        "batch_size": generation.batch_size,
        "total_s": generation.total_s,
        "tokens_per_s": generation.tokens_per_s,
        "mean_tpot_s": generation.mean_tpot_s,
        "first_step_s": generation.first_step_s,
        "error_bound_s": generation.error_bound_s,
        "sampled_steps": [
            {"context_tokens": context, "step_s": step} for context, step in generation.sampled
        ],
    }

"""How many microbatches does each placement want, and what does a wrong number cost?"""

from layerwise.scenarios.what_if.runner import Asked, Lines, Row, WhatIf


def point(asked: Asked, num_microbatches: int) -> Row:
    """Both placements with this number of microbatches."""
    pair = asked.pair({"workload.num_microbatches": num_microbatches})
    read = max(budget.weight_bytes for budget in pair.layer_wise.memory)
    return {
        "baseline_tokens_per_s": pair.baseline.tokens_per_s,
        "baseline_bubble_share": pair.baseline.bubble,
        "layer_wise_tokens_per_s": pair.layer_wise.tokens_per_s,
        "layer_wise_bubble_share": pair.layer_wise.bubble,
        "weights_read_bytes": read * num_microbatches,
        "layer_wise_tpot_s": pair.layer_wise.tpot_s,
    }


def answer(rows: list[Row]) -> str:
    """The best of each, and what the other's best costs layer-wise."""
    ours, theirs = (
        max(rows, key=lambda row, key=key: row[key])
        for key in ("layer_wise_tokens_per_s", "baseline_tokens_per_s")
    )
    at_theirs = theirs["layer_wise_tokens_per_s"] / ours["layer_wise_tokens_per_s"] - 1
    return (
        f"Layer-wise wants {ours['num_microbatches']}, the baseline {theirs['num_microbatches']}; at the "
        f"baseline's number layer-wise is {at_theirs:+.1%}, {theirs['layer_wise_bubble_share']:.0%} idle."
    )


WHAT_IF = WhatIf(
    question="How many microbatches does each placement want, and what does a wrong number cost?",
    axes={"num_microbatches": (1, 2, 4, 8, 16, 32, 64, 128)},
    point=point,
    answer=answer,
    picture=Lines(x="num_microbatches", ys=("baseline_tokens_per_s", "layer_wise_tokens_per_s")),
    note="weights read: by one GPU of layer-wise in a step, once per microbatch.",
)

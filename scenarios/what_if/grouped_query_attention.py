"""What do fewer KV heads change?"""

from layerwise.scenarios.what_if.runner import Asked, Lines, Row, WhatIf


def point(asked: Asked, num_key_value_heads: int) -> Row:
    """The paper's model with grouped heads; the baseline's TP is 8 or, if fewer, the KV heads."""
    shards = min(8, num_key_value_heads)
    parallel = {"placement.tensor_parallel": shards, "placement.pipeline_parallel": 16 // shards}
    pair = asked.pair({"model.num_key_value_heads": num_key_value_heads}, baseline=parallel)
    held = max(pair.layer_wise.memory, key=lambda budget: budget.total_bytes)
    return {"baseline": pair.baseline.placement, "kv_bytes": held.kv_bytes} | pair.rates


def answer(rows: list[Row]) -> str:
    """Rates and gain, from the most KV heads to the fewest."""
    many, few = (pick(rows, key=lambda row: row["num_key_value_heads"]) for pick in (max, min))
    ratio = few["layer_wise_tokens_per_s"] / many["layer_wise_tokens_per_s"]
    worst = min(rows, key=lambda row: row["gain"])
    return (
        f"From {many['num_key_value_heads']} to {few['num_key_value_heads']} KV heads layer-wise gets {ratio:.1f} "
        f"times as fast, and its gain over the baseline goes from {many['gain']:+.0%} to {few['gain']:+.0%} "
        f"(lowest: {worst['gain']:+.0%} with {worst['num_key_value_heads']})."
    )


WHAT_IF = WhatIf(
    question="What do fewer KV heads change (grouped-query attention)?",
    axes={"num_key_value_heads": (32, 16, 8, 4, 2, 1)},
    point=point,
    answer=answer,
    picture=Lines(
        x="num_key_value_heads", ys=("baseline_tokens_per_s", "layer_wise_tokens_per_s"), log_y=True
    ),
    note="KV heads are not replicated here, so fewer than 8 of them leave the baseline a smaller TP.",
)

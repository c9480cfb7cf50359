"""Does it matter where the node boundary falls?"""

from layerwise.scenarios.what_if.runner import Asked, Lines, Row, WhatIf


def point(asked: Asked, gpus_per_node: int) -> Row:
    """Sixteen GPUs in nodes of this many; 16: NVLink between all of them."""
    pair = asked.pair({"cluster.gpus_per_node": gpus_per_node, "cluster.num_gpus": 16})
    wires = {
        "baseline_link_share": pair.baseline.share["link"],
        "layer_wise_link_share": pair.layer_wise.share["link"],
    }
    return pair.rates | wires


def answer(rows: list[Row]) -> str:
    """What the boundary moves for each, and who wins on either side."""

    def spread(key: str) -> float:
        return max(row[key] for row in rows) / min(row[key] for row in rows) - 1

    won = [str(row["gpus_per_node"]) for row in rows if row["gain"] > 0]
    who = (
        f"layer-wise wins in nodes of {', '.join(won)}"
        if won
        else "layer-wise wins in none of them"
    )
    return (
        f"For the baseline, by {spread('baseline_tokens_per_s'):.0%} from worst to best; for layer-wise by "
        f"{spread('layer_wise_tokens_per_s'):.1%}; {who}."
    )


WHAT_IF = WhatIf(
    question="Does it matter where the node boundary falls, and what if NVLink joined all 16?",
    axes={"gpus_per_node": (1, 2, 4, 8, 16)},
    point=point,
    answer=answer,
    picture=Lines(x="gpus_per_node", ys=("baseline_tokens_per_s", "layer_wise_tokens_per_s")),
    note="An all-reduce across nodes is derived, not measured. Waits for messages are bubble, not links.",
)

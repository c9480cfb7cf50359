"""From 2 to 256 GPUs: is it linear?"""

from layerwise.scenarios.what_if.runner import Asked, Lines, Row, WhatIf


def point(asked: Asked, num_gpus: int) -> Row:
    """The paper's model on so many GPUs; past 16 in replicas, with 8 sequences for each GPU."""
    replicas, per_node = max(1, num_gpus // 16), min(8, num_gpus)
    both = {
        "cluster.gpus_per_node": per_node,
        "cluster.num_gpus": num_gpus,
        "workload.batch_size": 8 * num_gpus,
        "placement.data_parallel": replicas,
    }
    stages = num_gpus // per_node // replicas
    parallel = {"placement.tensor_parallel": per_node, "placement.pipeline_parallel": stages}
    pair = asked.pair(both, baseline=parallel)
    theirs, ours = (each.tokens_per_s / num_gpus for each in (pair.baseline, pair.layer_wise))
    each = {"baseline_tokens_per_s_per_gpu": theirs, "layer_wise_tokens_per_s_per_gpu": ours}
    shown = {key: pair.rates[key] for key in ("gain", "gain_90", "fits")}
    return {"baseline": pair.baseline.placement, "replicas": replicas} | each | shown


def answer(rows: list[Row]) -> str:
    """Tokens/s per GPU: the most GPUs against the fewest."""
    few, many = rows[0], rows[-1]
    theirs, ours = (
        many[key] / few[key]
        for key in ("baseline_tokens_per_s_per_gpu", "layer_wise_tokens_per_s_per_gpu")
    )
    flat = [row["num_gpus"] for row in rows if row["replicas"] > 1]
    return (
        f"From {few['num_gpus']} to {many['num_gpus']} GPUs a GPU keeps {ours:.0%} of its rate layer-wise and "
        f"{theirs:.0%} in the baseline; "
        + ("past 16 both only add replicas." if flat else "within one replica.")
    )


WHAT_IF = WhatIf(
    question="From 2 to 256 GPUs with 8 sequences for each: is it linear?",
    axes={"num_gpus": (2, 4, 8, 16, 32, 64, 128, 256)},
    point=point,
    answer=answer,
    picture=Lines(
        x="num_gpus", ys=("baseline_tokens_per_s_per_gpu", "layer_wise_tokens_per_s_per_gpu")
    ),
    note="Replicas share nothing but the fabric, whose congestion is not modelled.",
)

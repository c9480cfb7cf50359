"""When does a layer live in an H100's L2, and what does layer-wise then gain over TP?"""

from layerwise.scenarios.what_if.runner import Asked, Lines, Row, WhatIf


def point(asked: Asked, hidden_size: int, batch_size: int) -> Row:
    """A model like the paper's but narrower, at a short context, on as many GPUs."""
    heads = {f"model.num_{kind}_heads": hidden_size // 128 for kind in ("attention", "key_value")}
    model = {"model.hidden_size": hidden_size, "model.intermediate_size": 4 * hidden_size, **heads}
    changes = {**model, "workload.batch_size": batch_size}
    pair, cluster = asked.pair(changes), asked.scenario("layer-wise", changes).cluster
    held = max(pair.layer_wise.memory, key=lambda budget: budget.total_bytes)
    fits = "with KV" if held.weight_bytes + held.kv_bytes <= cluster.gpu.l2_bytes else "weights"
    return {
        "layer_bytes": held.weight_bytes,
        "in_l2": fits if held.weight_bytes <= cluster.gpu.l2_bytes else "no",
        "layer_wise_tpot_s": pair.layer_wise.tpot_s,
        "baseline_tpot_s": pair.baseline.tpot_s,
        "layer_wise_tokens_per_s_per_gpu": pair.layer_wise.tokens_per_s / cluster.num_gpus,
        "gain": pair.gain,
        "gain_90": pair.gain_90,
    }


def answer(rows: list[Row]) -> str:
    """The widest layer that fits, and what it gains at its best."""
    inside = [row for row in rows if row["in_l2"] != "no"]
    if not inside:
        return "Nowhere here: no layer that was tried lives in the L2."
    best = max(inside, key=lambda row: row["gain"])
    return (
        f"Up to a hidden size of {max(row['hidden_size'] for row in inside):,}, of those tried; there layer-wise "
        f"gains {best['gain']:+.1%} tokens/s per GPU at best (batch {best['batch_size']}), and a token takes "
        f"{best['layer_wise_tpot_s'] / best['baseline_tpot_s']:.2f} times as long."
    )


WHAT_IF = WhatIf(
    question="At which hidden size and batch does a layer live in an H100's L2, and what does that gain over TP?",
    axes={"hidden_size": (1024, 2048, 4096), "batch_size": (1, 16, 64, 128, 256)},
    base={"workload.context_tokens": 128},
    point=point,
    answer=answer,
    picture=Lines(x="batch_size", ys=("gain",), mark=0.0),
)

"""What does another GPU change?"""

from layerwise.scenarios.what_if.runner import Asked, Bars, Row, WhatIf


def point(asked: Asked, gpu: str) -> Row:
    """Sixteen of these, on their usual wires."""
    pair = asked.pair({"cluster.gpu": gpu})
    bandwidth = asked.scenario("layer-wise", {"cluster.gpu": gpu}).cluster.gpu.hbm_bytes_per_s
    return {"hbm_bytes_per_s": bandwidth, "belief": pair.layer_wise.belief} | pair.rates


def answer(rows: list[Row]) -> str:
    """The last against the first, for each placement, beside what HBM alone would give."""
    first, last = rows[0], rows[-1]
    ratios = {
        key: last[key] / first[key]
        for key in ("baseline_tokens_per_s", "layer_wise_tokens_per_s", "hbm_bytes_per_s")
    }
    theirs, ours, bandwidth = ratios.values()
    return (
        f"{last['gpu']} makes the baseline {theirs:.2f} and layer-wise {ours:.2f} times as fast as {first['gpu']} "
        f"(HBM: {bandwidth:.2f} times); layer-wise's gain goes from {first['gain']:+.1%} to {last['gain']:+.1%}."
    )


WHAT_IF = WhatIf(
    question="What does an H200 in place of the H100 change?",
    axes={"gpu": ("h100-sxm", "h200")},
    point=point,
    answer=answer,
    picture=Bars(label="gpu", values=("baseline_tokens_per_s", "layer_wise_tokens_per_s")),
)

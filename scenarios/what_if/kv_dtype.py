"""What does a KV cache in fp8 change?"""

from layerwise.scenarios.what_if.runner import Asked, Bars, Row, WhatIf


def point(asked: Asked, kv_dtype: str) -> Row:
    """Both placements with the cache stored so."""
    pair = asked.pair({"model.kv_dtype": kv_dtype})
    held = max(pair.layer_wise.memory, key=lambda budget: budget.total_bytes)
    return {"kv_bytes": held.kv_bytes} | pair.rates


def answer(rows: list[Row]) -> str:
    """The last against the first."""
    first, last = rows[0], rows[-1]
    theirs, ours = (
        last[key] / first[key] for key in ("baseline_tokens_per_s", "layer_wise_tokens_per_s")
    )
    return (
        f"KV in {last['kv_dtype']} makes the baseline {theirs:.2f} and layer-wise {ours:.2f} times as fast as in "
        f"{first['kv_dtype']}; layer-wise's gain goes from {first['gain']:+.1%} to {last['gain']:+.1%}."
    )


WHAT_IF = WhatIf(
    question="What does a KV cache in fp8 change?",
    axes={"kv_dtype": ("bfloat16", "float8_e4m3fn")},
    point=point,
    answer=answer,
    picture=Bars(label="kv_dtype", values=("baseline_tokens_per_s", "layer_wise_tokens_per_s")),
    note="fp8: half the bytes through bf16's kernels; kernels that read it were not measured, so no interval.",
)

"""How much on-chip memory would layer-wise need to win by 20 %?"""

from layerwise.scenarios.what_if.figures import figure
from layerwise.scenarios.what_if.runner import Asked, Lines, Row, WhatIf, crossing

SIZES = tuple(n * 10**6 for n in (50, 200, 600, 1000, 2000, 4000, 8000, 16_000, 24_000, 32_000))


def point(asked: Asked, l2_bytes: int) -> Row:
    """Each GPU with an L2 of this size and of today's speed; then layer-wise's GPUs alone."""
    pair, now = asked.pair({"cluster.gpu.l2_bytes": l2_bytes}), asked.baseline()
    held = max(pair.layer_wise.memory, key=lambda budget: budget.total_bytes)
    sizes = {"weights": held.weight_bytes, "+ KV": held.weight_bytes + held.kv_bytes}
    rates = {key: cell for key, cell in pair.rates.items() if key != "fits"}
    only_ours = pair.layer_wise.tokens_per_s / now.tokens_per_s - 1
    fitting = " ".join(name for name, size in sizes.items() if size <= l2_bytes)
    return {"it_holds": fitting or "neither", **rates, "own_gain": only_ours}


def need(rows: list[Row], key: str) -> str:
    """Where a gain crosses the claim, if it does."""
    if found := crossing(rows, "l2_bytes", key, 0.2):
        return f"between {' and '.join(figure('_bytes', size) for size in found)} a GPU"
    return f"no size tried is enough ({max(row[key] for row in rows):+.1%} at best)"


def answer(rows: list[Row]) -> str:
    """Both with the memory, and layer-wise alone with it."""
    return (
        f"If both placements get it, {need(rows, 'gain')}; against the baseline on today's GPUs, "
        f"{need(rows, 'own_gain')}."
    )


WHAT_IF = WhatIf(
    question="How much on-chip memory would layer-wise need to win by 20 %?",
    axes={"l2_bytes": SIZES},
    point=point,
    answer=answer,
    picture=Lines(x="l2_bytes", ys=("gain", "own_gain"), mark=0.2),
    note="own gain: over the baseline on the GPUs there are. Windows do not pin weights, as measured.",
)

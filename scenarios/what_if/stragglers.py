"""What does one slow GPU, or one slow link, cost each placement?"""

from layerwise.scenarios.what_if.runner import Asked, Lines, Row, WhatIf

# The last GPU of the first node: layer-wise crosses to the second node from there.
RANK = 7
PARTS = {"clock": "gpus", "hbm": "gpus", "nvlink": "ports", "nic": "ports"}
NAMES = {"clock": "clock", "hbm": "HBM", "nvlink": "NVLink port", "nic": "NIC"}


def point(asked: Asked, part: str, share: float) -> Row:
    """One GPU of sixteen at this share of its clock, HBM, NVLink port or NIC."""
    slow = {f"cluster.slow.{PARTS[part]}": RANK, f"cluster.slow.{part}_share": share}
    pair, whole = asked.pair(slow), asked.pair()
    theirs, ours = (
        slowed.tokens_per_s / full.tokens_per_s
        for slowed, full in ((pair.baseline, whole.baseline), (pair.layer_wise, whole.layer_wise))
    )
    return pair.rates | {"baseline_lost_share": 1 - theirs, "layer_wise_lost_share": 1 - ours}


def answer(rows: list[Row]) -> str:
    """What each part costs at its slowest, and who is ahead then."""
    least = min(row["share"] for row in rows)
    costs = ", ".join(
        f"{row['baseline_lost_share']:.1%} and {row['layer_wise_lost_share']:.1%} ({NAMES[row['part']]})"
        for row in rows
        if row["share"] == least
    )
    ahead = sum(row["gain"] > 0 for row in rows)
    return (
        f"With one GPU at {least:.0%} of its speed, the baseline and layer-wise lose {costs}; "
        f"layer-wise is ahead in {ahead} of {len(rows)} points."
    )


WHAT_IF = WhatIf(
    question="What does one slow GPU, or one slow link, cost each placement?",
    axes={"part": tuple(PARTS), "share": (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)},
    point=point,
    answer=answer,
    picture=Lines(x="share", ys=("baseline_lost_share", "layer_wise_lost_share"), log_x=False),
    closed=("part",),
    note="Slow: GPU 7 of 0 to 15. Layers stay where they are; launches and hosts keep their speed.",
)

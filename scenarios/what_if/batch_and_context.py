"""Who wins over batch and context?"""

from layerwise.scenarios.what_if.runner import Asked, Map, Row, WhatIf, crossing


def point(asked: Asked, context_tokens: int, batch_size: int) -> Row:
    """Both placements, each at its best number of microbatches."""
    workload = {"workload.context_tokens": context_tokens, "workload.batch_size": batch_size}
    return asked.pair(workload).rates


def answer(rows: list[Row]) -> str:
    """How many of the points that fit layer-wise wins, and where the crossover runs."""
    fitting = [row for row in rows if row["fits"]]
    won = [row for row in fitting if row["gain"] > 0]
    best = max(fitting, key=lambda row: row["gain"])
    said = (
        f"Layer-wise wins {len(won)} of the {len(fitting)} points that fit in memory, at best "
        f"{best['gain']:+.0%} (batch {best['batch_size']:,}, {best['context_tokens']:,} tokens)"
    )
    lines = {
        c: crossing(
            [row for row in fitting if row["context_tokens"] == c], "batch_size", "gain", 0.0
        )
        for c in dict.fromkeys(row["context_tokens"] for row in fitting)
    }
    crossed = [
        f"{low:,} and {high:,} at {c:,}"
        for c, (low, high) in ((c, at) for c, at in lines.items() if at)
    ]
    return said + (
        f"; it crosses over between batch {', '.join(crossed)} tokens." if crossed else "."
    )


WHAT_IF = WhatIf(
    question="Who wins over batch and context?",
    axes={
        "context_tokens": tuple(2**n for n in range(7, 18, 2)),
        "batch_size": tuple(2**n for n in range(11)),
    },
    point=point,
    answer=answer,
    picture=Map(x="batch_size", y="context_tokens", value="gain"),
)

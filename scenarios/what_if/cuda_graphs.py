"""What does launching every kernel from the host cost?"""

from layerwise.scenarios.what_if.runner import Asked, Lines, Row, WhatIf


def point(asked: Asked, batch_size: int) -> Row:
    """Both placements in CUDA graphs and eager, by batch."""
    graph, eager = (
        asked.pair({"workload.batch_size": batch_size, "run.launch": mode})
        for mode in ("graph", "eager")
    )
    return {
        "baseline_graph_tokens_per_s": graph.baseline.tokens_per_s,
        "baseline_slowdown": graph.baseline.tokens_per_s / eager.baseline.tokens_per_s,
        "layer_wise_graph_tokens_per_s": graph.layer_wise.tokens_per_s,
        "layer_wise_slowdown": graph.layer_wise.tokens_per_s / eager.layer_wise.tokens_per_s,
        "graph_gain": graph.gain,
        "eager_gain": eager.gain,
    }


def answer(rows: list[Row]) -> str:
    """From the smallest to the largest batch."""
    small, large = rows[0], rows[-1]
    flips = [
        f"{row['batch_size']:,}"
        for row in rows
        if (row["graph_gain"] > 0) != (row["eager_gain"] > 0)
    ]
    who = f"who wins changes at batch {', '.join(flips)}" if flips else "it never changes who wins"
    return (
        f"Eager, the baseline is {small['baseline_slowdown']:.1f} times slower at batch {small['batch_size']:,} and "
        f"{large['baseline_slowdown']:.2f} times at {large['batch_size']:,}, layer-wise "
        f"{small['layer_wise_slowdown']:.1f} and {large['layer_wise_slowdown']:.2f} times; {who}."
    )


WHAT_IF = WhatIf(
    question="What does launching every kernel from the host cost, against batch?",
    axes={"batch_size": (1, 4, 16, 64, 128, 256, 1024)},
    point=point,
    answer=answer,
    picture=Lines(x="batch_size", ys=("baseline_slowdown", "layer_wise_slowdown"), mark=1.0),
    note="Eager mode is one constant, the host's time per launch: it varied by half between machines.",
)

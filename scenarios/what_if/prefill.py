"""How large should a prefill chunk be, and when does the first token come?"""

from layerwise.scenarios.what_if.runner import Asked, Lines, Row, WhatIf


def point(asked: Asked, batch_size: int, prefill_chunk_tokens: int) -> Row:
    """Prompts from idle, in chunks of this size."""
    pair = asked.pair(
        {"workload.batch_size": batch_size, "workload.prefill_chunk_tokens": prefill_chunk_tokens}
    )
    times = {"baseline_ttft_s": pair.baseline.step_s, "layer_wise_ttft_s": pair.layer_wise.step_s}
    return times | pair.rates


def answer(rows: list[Row]) -> str:
    """The best chunk of each placement, for the smallest and the largest batch."""
    said: list[str] = []
    for batch in dict.fromkeys(row["batch_size"] for row in rows):
        found = [row for row in rows if row["batch_size"] == batch]
        best = {
            who: min(found, key=lambda row, who=who: row[f"{who}_ttft_s"])
            for who in ("layer_wise", "baseline")
        }
        shown = [
            f"{row[f'{who}_ttft_s']:.3g} s {who.replace('_', '-')} (chunks of {row['prefill_chunk_tokens']:,})"
            for who, row in best.items()
        ]
        said.append(f"batch {batch}: {', '.join(shown)}")
    return f"The last first token comes after, at best, {'; '.join(said)}."


WHAT_IF = WhatIf(
    question="How large should a prefill chunk be, and when does the first token come?",
    axes={"batch_size": (1, 16), "prefill_chunk_tokens": (1024, 2048, 4096, 8192, 16384)},
    base={"workload.phase": "prefill"},
    point=point,
    answer=answer,
    picture=Lines(x="prefill_chunk_tokens", ys=("baseline_ttft_s", "layer_wise_ttft_s")),
    note="TTFT: when the batch's last prompt is through, from idle. Chunks of one prompt run one after another.",
)

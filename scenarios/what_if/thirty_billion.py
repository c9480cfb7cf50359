"""What makes the paper's 30 B parameters fit, and who wins then?"""

from layerwise.scenarios.what_if.runner import Asked, Bars, Row, WhatIf
from layerwise.sim.memory import WorkloadKey, largest_that_fits

REMEDIES: dict[str, WorkloadKey | dict[str, object]] = {
    "as it is": {},
    "less batch": "workload.batch_size",
    "less context": "workload.context_tokens",
    "GQA": {"model.num_key_value_heads": 8},
    "fp8 KV": {"model.kv_dtype": "float8_e4m3fn"},
    "H200": {"cluster.gpu": "h200"},
    "32 GPUs": {"cluster.num_gpus": 32},
}


def point(asked: Asked, remedy: str) -> Row:
    """Both placements after one change: a given one, or the least that makes both fit."""
    change = REMEDIES[remedy]
    if isinstance(change, str):
        both = asked.scenario("tensor-pipeline"), asked.scenario("layer-wise")
        most = [largest_that_fits(each, change, asked.reserved_bytes(each)) for each in both]
        change = {change: min(most)}
    nodes = asked.scenario("layer-wise", change).cluster.num_nodes
    pair = asked.pair(change, baseline={"placement.pipeline_parallel": nodes})
    said = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in change.items())
    return {"change": said, "needs_bytes": pair.layer_wise.peak_memory_bytes} | pair.rates


def answer(rows: list[Row]) -> str:
    """The remedies that work, with the gain after each."""
    fitting = [row for row in rows if row["fits"]]
    found = [f"{row['change'] or 'nothing changed'} ({row['gain']:+.0%})" for row in fitting]
    return f"It fits with {'; or '.join(found) or 'nothing that was tried'}; in brackets, what layer-wise then gains over the baseline."


WHAT_IF = WhatIf(
    question="What makes the paper's 30 B parameters fit in 16 GPUs, and who wins then?",
    axes={"remedy": tuple(REMEDIES)},
    closed=("remedy",),
    base={"model": "paper-30b"},
    point=point,
    answer=answer,
    picture=Bars(label="remedy", values=("baseline_tokens_per_s", "layer_wise_tokens_per_s")),
)

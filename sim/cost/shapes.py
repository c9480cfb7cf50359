"""From an op to the features its kind is fitted on: one place, used by fit and simulator."""

from __future__ import annotations

from typing import assert_never

from sim.plan import ops
from sim.plan.ops import LocalOp

FEATURES: dict[str, tuple[str, ...]] = {
    "matmul": ("rows", "columns", "inner"),
    "decode_attention": ("sequences_times_kv_heads", "context_tokens", "group_size"),
    "prefill_attention": ("sequences_times_heads", "query_tokens", "context_tokens"),
    "chunked_prefill_attention": ("sequences_times_heads", "query_tokens", "context_tokens"),
    "norm": ("tokens", "hidden_size"),
    "rotary_write": ("tokens", "columns"),
    "gated_activation": ("tokens", "intermediate_size"),
    "residual_add": ("tokens", "hidden_size"),
    "embed": ("tokens", "hidden_size"),
    "sample": ("sequences", "vocab_size"),
}


def kind_of(op: LocalOp) -> str:
    """The name under which a profile keeps this op's fit."""
    match op:
        case ops.Matmul():
            return "matmul"
        case ops.Attention():
            if op.query_tokens == 1:
                return "decode_attention"
            whole = op.query_tokens == op.context_tokens
            return "prefill_attention" if whole else "chunked_prefill_attention"
        case ops.Norm():
            return "norm"
        case ops.RotaryWrite():
            return "rotary_write"
        case ops.GatedActivation():
            return "gated_activation"
        case ops.ResidualAdd():
            return "residual_add"
        case ops.Embed():
            return "embed"
        case ops.Sample():
            return "sample"
        case _:
            assert_never(op)


def features_of(op: LocalOp) -> tuple[float, ...]:
    """The op's dimensions, in the order of FEATURES."""
    match op:
        case ops.Matmul():
            return (op.rows, op.columns, op.inner)
        case ops.Attention():
            if op.query_tokens == 1:
                group = op.num_heads / op.num_key_value_heads
                return (op.sequences * op.num_key_value_heads, op.context_tokens, group)
            return (op.sequences * op.num_heads, op.query_tokens, op.context_tokens)
        case ops.Norm() | ops.ResidualAdd():
            tokens = op.sequences * (1 if op.select_last else op.query_tokens)
            return (tokens, op.hidden_size)
        case ops.RotaryWrite():
            heads = op.num_heads + 2 * op.num_key_value_heads
            return (op.sequences * op.query_tokens, heads * op.head_dim)
        case ops.GatedActivation():
            return (op.tokens, op.intermediate_size)
        case ops.Embed():
            return (op.tokens, op.hidden_size)
        case ops.Sample():
            return (op.sequences, op.vocab_size)
        case _:
            assert_never(op)

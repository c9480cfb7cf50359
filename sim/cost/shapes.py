"""From an op to the features its kind is fitted on: one place, used by fit and simulator."""

from __future__ import annotations

import math
from typing import assert_never

from layerwise.sim.plan import ops
from layerwise.sim.plan.errors import require_listed
from layerwise.sim.plan.ops import LocalOp

FEATURES: dict[str, tuple[str, ...]] = {
    "matmul": ("rows", "columns", "inner"),
    "matmul.skinny": ("rows", "columns", "inner"),
    "decode_attention": ("sequences_times_kv_heads", "context_tokens", "group_size"),
    "decode_attention.split_kv": ("sequences_times_kv_heads", "context_tokens", "group_size"),
    "prefill_attention": ("sequences_times_heads", "query_tokens", "context_tokens"),
    "chunked_prefill_attention": ("sequences_times_heads", "query_tokens", "context_tokens"),
    "norm": ("tokens", "hidden_size"),
    "rotary_write": ("tokens", "columns"),
    "gated_activation": ("tokens", "intermediate_size"),
    "residual_add": ("tokens", "hidden_size"),
    "embed": ("tokens", "hidden_size"),
    "sample": ("sequences", "vocab_size"),
}

# Kinds that a profile may go without: an op of one is then refused, not guessed.
OPTIONAL_KINDS = frozenset({"decode_attention.split_kv", "matmul.skinny"})

# How much each dimension (as ln), and at the end the share of memory traffic that misses, counts
# in the distance between an op and the calibrated ones. Chosen by held-out error: decode
# attention is told by its context more than by how many SMs walk it, and hardly by its group size.
DISTANCES: dict[str, tuple[float, ...]] = {
    "decode_attention": (0.5, 1.0, 0.3, 0.7),
    "decode_attention.split_kv": (0.5, 1.0, 0.3, 0.7),
    "prefill_attention": (1.0, 1.0, 1.0, 0.0),
    "chunked_prefill_attention": (1.0, 1.0, 1.0, 0.0),
    "matmul": (1.0, 1.0, 1.0, 1.0),
    "matmul.skinny": (1.0, 1.0, 1.0, 1.0),
    "norm": (1.0, 1.0, 1.0),
    "rotary_write": (1.0, 1.0, 1.0),
    "gated_activation": (1.0, 1.0, 1.0),
    "residual_add": (1.0, 1.0, 1.0),
    "embed": (1.0, 1.0, 1.0),
    "sample": (1.0, 1.0, 0.0),
}


def place_of(kind: str, features: tuple[float, ...], miss_share: float) -> tuple[float, ...]:
    """Where an op lies among the calibrated ones: the coordinates in which residuals are near.

    Raises UnknownKindError for a kind that has no weights.
    """
    weights = require_listed(DISTANCES, kind, "shapes.DISTANCES")
    values = (*map(math.log, features), miss_share)
    return tuple(weight * value for weight, value in zip(weights, values, strict=True))


def kind_of(op: LocalOp) -> str:
    """The name under which a profile keeps this op's fit."""
    match op:
        case ops.Matmul():
            return "matmul" if op.kernel == "cublas" else f"matmul.{op.kernel}"
        case ops.Attention():
            if op.query_tokens == 1:
                return f"decode_attention{'.split_kv' if op.kernel == 'split_kv' else ''}"
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

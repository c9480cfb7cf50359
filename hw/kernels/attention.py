"""Attention, in the kernel that the op names. Nothing falls back to another kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.kernels import dispatch as kernels
from layerwise.hw.kernels.dispatch import Context
from layerwise.sim.plan import ops

BACKENDS = {
    "math": SDPBackend.MATH,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
}


def attend(
    op: ops.Attention,
    qkv: Tensor,
    kv: Tensor,
    output: Tensor,
    lower_right_mask: Callable[[int, int], Tensor],
    context: Context,
) -> Tensor:
    """Attention of the last `query_tokens` positions [sequences * query_tokens, heads * head_dim].

    Shapes as in `ops.RotaryWrite`. Returns `output`, or a new tensor of its shape: torch's
    attention takes no output, and a copy would be a kernel that no op accounts for. `context` is
    `op.context_tokens`, or where the device counts it; only `split_kv` can look there.
    """
    heads = qkv.view(op.sequences, op.query_tokens, -1, op.head_dim)[:, :, : op.num_heads]
    if op.kernel == "split_kv":
        if op.query_tokens != 1:
            raise NotAvailableError(
                f"kernel 'split_kv' decodes one token and got query_tokens={op.query_tokens}; "
                "use kernels.prefill_attention='flash', 'cudnn' or 'math'"
            )
        kernels.split_kv_attention(heads[:, 0], kv, context, output)
        return output
    key, value = kv[0, :, :, : op.context_tokens], kv[1, :, :, : op.context_tokens]
    with sdpa_kernel(BACKENDS[op.kernel]):
        result = scaled_dot_product_attention(
            heads.transpose(1, 2),
            key,
            value,
            enable_gqa=op.num_heads != op.num_key_value_heads,
            **_causality(op, qkv.is_cuda, lower_right_mask),
        )
    return result.transpose(1, 2).reshape(output.shape)


def _causality(
    op: ops.Attention, on_cuda: bool, lower_right_mask: Callable[[int, int], Tensor]
) -> dict[str, Any]:
    """How to say that query t sees the positions up to its own."""
    if op.query_tokens == 1:
        return {}
    if op.query_tokens == op.context_tokens:
        return {"is_causal": True}
    if on_cuda and op.kernel == "flash":
        # With it comes torch's compiler, nearly as large as torch: two seconds of each rank's start.
        from torch.nn.attention.bias import causal_lower_right

        return {"attn_mask": causal_lower_right(op.query_tokens, op.context_tokens)}
    return {"attn_mask": lower_right_mask(op.query_tokens, op.context_tokens)}

"""The layer as one would write it in plain torch: what the engine's own kernels must beat.

Written with every kindness to the baseline: query, key and value are one projection, so are gate
and up, the norm is torch's own, and nothing is copied that does not have to be.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from layerwise.sim.plan.model import ModelSpec


class PlainLayer(torch.nn.Module):
    """One Llama layer that decodes one token of each sequence, over a cache it writes to.

    `weights` by buffer name, as the engine's programs name them; `cos`, `sin` [capacity, head_dim]
    in float32. Source: Hugging Face `LlamaDecoderLayer`.
    """

    def __init__(
        self, model: ModelSpec, weights: Mapping[str, Tensor], cos: Tensor, sin: Tensor
    ) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads = (
            model.num_attention_heads,
            model.num_key_value_heads,
        )
        self.head_dim, self.epsilon = model.head_dim, model.rms_norm_eps
        self.attention_norm, self.mlp_norm = weights["attn.norm.weight"], weights["mlp.norm.weight"]
        self.qkv, self.attention_out = weights["attn.qkv.weight"], weights["attn.out.weight"]
        self.gate_up, self.down = weights["mlp.gate_up.weight"], weights["mlp.down.weight"]
        self.cos, self.sin = cos, sin

    def forward(
        self, hidden: Tensor, kv: Tensor, position: int, backend: SDPBackend | None = None
    ) -> Tensor:
        """The layer's output [sequences, hidden]; the token's key and value land in `kv`.

        hidden: [sequences, hidden]; kv: [2, sequences, kv_heads, capacity, head_dim]. The token
        sees positions 0 to `position`. `backend` None leaves the choice of attention to torch.
        """
        attended = self._attention(self._norm(hidden, self.attention_norm), kv, position, backend)
        hidden = hidden + functional.linear(attended, self.attention_out)
        gate, up = functional.linear(self._norm(hidden, self.mlp_norm), self.gate_up).chunk(2, -1)
        return hidden + functional.linear(functional.silu(gate) * up, self.down)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(hidden, (hidden.shape[-1],), weight, self.epsilon)

    def _attention(
        self, normed: Tensor, kv: Tensor, position: int, backend: SDPBackend | None
    ) -> Tensor:
        sequences = normed.shape[0]
        heads = functional.linear(normed, self.qkv).view(sequences, -1, self.head_dim)
        query, key, value = heads.split(
            [self.num_heads, self.num_key_value_heads, self.num_key_value_heads], dim=1
        )
        query, key = self._rotate(query, position), self._rotate(key, position)
        kv[0, :, :, position] = key
        kv[1, :, :, position] = value
        if backend is None:
            attended = self._attend(query, kv, position)
        else:
            with sdpa_kernel(backend):
                attended = self._attend(query, kv, position)
        return attended.reshape(sequences, -1)

    def _attend(self, query: Tensor, kv: Tensor, position: int) -> Tensor:
        return functional.scaled_dot_product_attention(
            query.unsqueeze(2),
            kv[0, :, :, : position + 1],
            kv[1, :, :, : position + 1],
            enable_gqa=self.num_heads != self.num_key_value_heads,
        )

    def _rotate(self, heads: Tensor, position: int) -> Tensor:
        low, high = heads.chunk(2, dim=-1)
        rotated = heads * self.cos[position] + torch.cat((-high, low), -1) * self.sin[position]
        return rotated.to(heads.dtype)

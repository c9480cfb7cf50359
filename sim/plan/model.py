"""The model: dimensions of a dense, Llama-like transformer, and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from layerwise.sim.plan.errors import SpecError

DType = Literal["bfloat16", "float32"]
# What weights and KV may be stored in; they are computed with in the model's dtype.
StoredDType = Literal["bfloat16", "float32", "float8_e4m3fn"]
ChosenDType = Literal["", "bfloat16", "float32", "float8_e4m3fn"]
DTYPE_BYTES: dict[StoredDType, int] = {"bfloat16": 2, "float32": 4, "float8_e4m3fn": 1}
DTYPES = get_args(DType)
TOKEN_ID_BYTES = 8
# Ten times the largest models that are known, and more; what is beyond would never be done with.
MOST = {
    "num_layers": 2048,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "vocab_size": 2**26,
    "num_attention_heads": 2**13,
    "num_key_value_heads": 2**13,
    "head_dim": 2**13,
}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A dense decoder with grouped-query attention, rotary positions and a gated MLP.

    Field names are Hugging Face's. `vocab_size` 0 means no embedding and no LM head: the last
    hidden state returns as the next input (the paper names no vocabulary). Tied embeddings count
    once in `parameters`; the first and the last stage hold a copy each all the same.
    `weight_dtype` (matmuls of layers) and `kv_dtype`: what is stored and read, "" the `dtype`.
    Raises SpecError when a dimension is not positive or heads do not divide.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int = 0
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    dtype: DType = "bfloat16"
    weight_dtype: ChosenDType = ""
    kv_dtype: ChosenDType = ""
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for key in (
            "num_layers",
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
        ):
            if getattr(self, key) < 1:
                raise SpecError(key, getattr(self, key), "is not positive", "use 1 or more")
        for key, most in MOST.items():
            if getattr(self, key) > most:
                raise SpecError(
                    key, getattr(self, key), "is beyond any model", f"use at most {most}"
                )
        if self.vocab_size < 0:
            raise SpecError("vocab_size", self.vocab_size, "is negative", "use 0 for no LM head")
        if self.num_attention_heads % self.num_key_value_heads:
            raise SpecError(
                "num_key_value_heads",
                self.num_key_value_heads,
                f"does not divide num_attention_heads={self.num_attention_heads}",
                f"use one of {divisors(self.num_attention_heads)}",
            )
        for key in ("rms_norm_eps", "rope_theta"):
            if not 0 < getattr(self, key) < math.inf:
                raise SpecError(key, getattr(self, key), "is not a positive number", "correct it")
        if self.head_dim % 2:
            raise SpecError("head_dim", self.head_dim, "is odd", "rotary positions need pairs")
        if self.dtype not in DTYPES:
            raise SpecError("dtype", self.dtype, "is unknown", f"use one of {list(DTYPES)}")
        for key in ("weight_dtype", "kv_dtype"):
            if getattr(self, key) not in get_args(ChosenDType):
                raise SpecError(
                    key, getattr(self, key), "is unknown", f"use one of {list(DTYPE_BYTES)}"
                )

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one element."""
        return DTYPE_BYTES[self.dtype]

    @property
    def stored_weight_dtype(self) -> StoredDType:
        """Of the matmuls of layers; norms, embedding and LM head keep `dtype`."""
        return self.weight_dtype or self.dtype

    @property
    def stored_kv_dtype(self) -> StoredDType:
        """Of the KV cache."""
        return self.kv_dtype or self.dtype

    @property
    def query_size(self) -> int:
        """Columns of the query projection: heads times head_dim."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Columns of the key projection (and of the value projection)."""
        return self.num_key_value_heads * self.head_dim

    @property
    def matmul_parameters_per_layer(self) -> int:
        """Parameters of one layer without its two norm vectors."""
        attention = self.hidden_size * (2 * self.query_size + 2 * self.key_value_size)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def parameters_per_layer(self) -> int:
        """All parameters of one layer."""
        return self.matmul_parameters_per_layer + 2 * self.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters; with a vocabulary also embedding, LM head and final norm."""
        tables = 1 if self.tie_word_embeddings else 2
        head = (tables * self.vocab_size + 1) * self.hidden_size if self.vocab_size else 0
        return self.num_layers * self.parameters_per_layer + head

    @property
    def layer_weight_bytes(self) -> int:
        """Weights of one layer."""
        matmuls = self.matmul_parameters_per_layer
        norms = self.parameters_per_layer - matmuls
        return matmuls * DTYPE_BYTES[self.stored_weight_dtype] + norms * self.dtype_bytes

    @property
    def kv_bytes_per_token_per_layer(self) -> int:
        """Key and value of one token in one layer."""
        return 2 * self.key_value_size * DTYPE_BYTES[self.stored_kv_dtype]

    def with_vocabulary(self, vocab_size: int) -> ModelSpec:
        """The same model with an embedding and an LM head."""
        return replace(self, vocab_size=vocab_size)


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def _paper(name: str, num_layers: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        num_layers=num_layers,
        hidden_size=4096,
        intermediate_size=16384,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
    )


MODELS: dict[str, ModelSpec] = {
    # Source: the paper's "Dimensional Parameters": 16 layers, 32 heads x 128, MLP 16384 gated.
    "paper-16": _paper("paper-16", 16),
    # The paper's "30 billion parameters" need 112 such layers: 30e9 / 268.4e6.
    "paper-30b": _paper("paper-30b", 112),
}

"""Operations: the closed union of what an engine launches, and the buffers they touch.

An op is the smallest thing launched with no wait on another rank inside it. Its `name` is local
to a segment (`attn.qkv`); the program completes it (`L07.attn.qkv@m3`). Dependencies are never
written down: they follow from the buffers an op reads and writes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from sim.plan.model import DTYPE_BYTES, TOKEN_ID_BYTES, DType

BufferKind = Literal["weight", "kv", "activation", "communication", "tokens"]
AttentionKernel = Literal["math", "cudnn", "flash", "split_kv"]
AllReduceAlgorithm = Literal["nccl", "one_shot"]
Channel = Literal["act", "token"]


@dataclass(frozen=True, slots=True)
class Buffer:
    """A named tensor of one rank; layers and microbatches have their own where flagged.

    `num_bytes` follows from shape and dtype (`int64` for token ids).
    """

    name: str
    kind: BufferKind
    shape: tuple[int, ...]
    dtype: DType | Literal["int64"]
    per_layer: bool = False
    per_microbatch: bool = False
    num_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        width = TOKEN_ID_BYTES if self.dtype == "int64" else DTYPE_BYTES[self.dtype]
        object.__setattr__(self, "num_bytes", math.prod(self.shape) * width)

    def key(self, layer: int, microbatch: int) -> BufferKey:
        """The identity of this tensor within a rank, for one layer and microbatch."""
        return (
            self.name,
            layer if self.per_layer else -1,
            microbatch if self.per_microbatch else -1,
        )


BufferKey = tuple[str, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """RMS norm of `source` [tokens, hidden] into `output`; `delta` is first added into `source`.

    `select_last` keeps the last token of each sequence only: output [sequences, hidden].
    """

    name: str
    source: Buffer
    delta: Buffer | None
    weight: Buffer
    output: Buffer
    sequences: int
    query_tokens: int
    hidden_size: int
    epsilon: float
    select_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Matmul:
    """`output` [rows, columns] = `source` [rows, inner] x `weight` [columns, inner] transposed."""

    name: str
    source: Buffer
    weight: Buffer
    output: Buffer
    rows: int
    columns: int
    inner: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryWrite:
    """Rotate queries in `qkv` in place; write rotated keys, and values, into the KV cache.

    `qkv` [sequences * query_tokens, (heads + 2 kv_heads) * head_dim], `kv` [2, sequences,
    kv_heads, capacity, head_dim]; the first query token has position `start_tokens`.
    """

    name: str
    qkv: Buffer
    kv: Buffer
    sequences: int
    query_tokens: int
    start_tokens: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Causal attention of the last `query_tokens` positions over `context_tokens` positions."""

    name: str
    qkv: Buffer
    kv: Buffer
    output: Buffer
    sequences: int
    query_tokens: int
    context_tokens: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    kernel: AttentionKernel


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedActivation:
    """`output` [tokens, intermediate] = silu(gate) * up of `source` [tokens, 2 intermediate]."""

    name: str
    source: Buffer
    output: Buffer
    tokens: int
    intermediate_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualAdd:
    """`output` = `source` + `delta`; `select_last` keeps the last token of each sequence only."""

    name: str
    source: Buffer
    delta: Buffer
    output: Buffer
    sequences: int
    query_tokens: int
    hidden_size: int
    select_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """`output` [tokens, hidden] = rows of `weight` [vocab, hidden] named by `token_ids`."""

    name: str
    token_ids: Buffer
    weight: Buffer
    output: Buffer
    tokens: int
    hidden_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """`token_ids` [sequences] = argmax over `logits` [sequences, vocab] (greedy)."""

    name: str
    logits: Buffer
    token_ids: Buffer
    sequences: int
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduce:
    """Sum `buffer` over the ranks of `group`, in place. `payload_bytes` is one rank's tensor."""

    name: str
    buffer: Buffer
    payload_bytes: int
    group: tuple[int, ...]
    algorithm: AllReduceAlgorithm


@dataclass(frozen=True, slots=True, kw_only=True)
class AllGather:
    """Columns of every rank's `source` [sequences, vocab / n] side by side in `output`.

    `payload_bytes` is the whole output.
    """

    name: str
    source: Buffer
    output: Buffer
    payload_bytes: int
    group: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Hand `buffer` to rank `peer`. `channel` tells flows between the same two ranks apart."""

    name: str
    buffer: Buffer
    payload_bytes: int
    peer: int
    channel: Channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Recv:
    """Take `buffer` from rank `peer`."""

    name: str
    buffer: Buffer
    payload_bytes: int
    peer: int
    channel: Channel


LocalOp = Norm | Matmul | RotaryWrite | Attention | GatedActivation | ResidualAdd | Embed | Sample
CollectiveOp = AllReduce | AllGather
PointToPointOp = Send | Recv
Op = LocalOp | CollectiveOp | PointToPointOp

"""Operations: the closed union of what an engine launches, and the buffers they touch.

An op is the smallest thing launched with no wait on another rank inside it. Its `name` is local
to a segment (`attn.qkv`); the program completes it (`L07.attn.qkv@m3`). Dependencies are never
written down: they follow from the buffers an op reads and writes. `kind` is the name that traces and hashes
know an op by, whatever its class is called.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from layerwise.sim.plan.model import DTYPE_BYTES, TOKEN_ID_BYTES, StoredDType

BufferKind = Literal["weight", "kv", "activation", "communication", "tokens"]
AttentionKernel = Literal["math", "cudnn", "flash", "split_kv"]
MatmulKernel = Literal["cublas", "skinny"]
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
    dtype: StoredDType | Literal["int64"]
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

    kind: ClassVar[str] = "Norm"

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

    @property
    def tokens(self) -> int:
        """Rows that it writes."""
        return self.sequences * (1 if self.select_last else self.query_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matmul:
    """`output` [rows, columns] = `source` [rows, inner] x `weight` [columns, inner] transposed.

    `skinny`, for few rows, streams the weight through small tiles; see `suits_skinny`.
    """

    kind: ClassVar[str] = "Matmul"

    name: str
    source: Buffer
    weight: Buffer
    output: Buffer
    rows: int
    columns: int
    inner: int
    kernel: MatmulKernel = "cublas"


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryWrite:
    """Rotate queries in `qkv` in place; write rotated keys, and values, into the KV cache.

    `qkv` [sequences * query_tokens, (heads + 2 kv_heads) * head_dim], `kv` [2, sequences,
    kv_heads, capacity, head_dim]; the first query token has position `start_tokens`.
    """

    kind: ClassVar[str] = "RotaryWrite"

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

    @property
    def tokens(self) -> int:
        """Rows of `qkv`."""
        return self.sequences * self.query_tokens

    @property
    def columns(self) -> int:
        """Columns of `qkv`."""
        return (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Causal attention of the last `query_tokens` positions over `context_tokens` positions."""

    kind: ClassVar[str] = "Attention"

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

    @property
    def sequences_times_heads(self) -> int:
        """Independent walks over queries."""
        return self.sequences * self.num_heads

    @property
    def sequences_times_kv_heads(self) -> int:
        """Independent walks over keys."""
        return self.sequences * self.num_key_value_heads

    @property
    def group_size(self) -> float:
        """Query heads that share a KV head."""
        return self.num_heads / self.num_key_value_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedActivation:
    """`output` [tokens, intermediate] = silu(gate) * up of `source` [tokens, 2 intermediate]."""

    kind: ClassVar[str] = "GatedActivation"

    name: str
    source: Buffer
    output: Buffer
    tokens: int
    intermediate_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualAdd:
    """`output` = `source` + `delta`; `select_last` keeps the last token of each sequence only."""

    kind: ClassVar[str] = "ResidualAdd"

    name: str
    source: Buffer
    delta: Buffer
    output: Buffer
    sequences: int
    query_tokens: int
    hidden_size: int
    select_last: bool = False

    @property
    def tokens(self) -> int:
        """Rows that it writes."""
        return self.sequences * (1 if self.select_last else self.query_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """`output` [tokens, hidden] = rows of `weight` [vocab, hidden] named by `token_ids`."""

    kind: ClassVar[str] = "Embed"

    name: str
    token_ids: Buffer
    weight: Buffer
    output: Buffer
    tokens: int
    hidden_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """`token_ids` [sequences] = argmax over `logits` [sequences, vocab] (greedy)."""

    kind: ClassVar[str] = "Sample"

    name: str
    logits: Buffer
    token_ids: Buffer
    sequences: int
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduce:
    """Sum `buffer` over the ranks of `group`, in place. `payload_bytes` is one rank's tensor."""

    kind: ClassVar[str] = "AllReduce"

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

    kind: ClassVar[str] = "AllGather"

    name: str
    source: Buffer
    output: Buffer
    payload_bytes: int
    group: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Hand `buffer` to rank `peer`. `channel` tells flows between the same two ranks apart."""

    kind: ClassVar[str] = "Send"

    name: str
    buffer: Buffer
    payload_bytes: int
    peer: int
    channel: Channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Recv:
    """Take `buffer` from rank `peer`."""

    kind: ClassVar[str] = "Recv"

    name: str
    buffer: Buffer
    payload_bytes: int
    peer: int
    channel: Channel


SKINNY_ROWS, SKINNY_COLUMNS, SKINNY_INNER = 16, 64, 128
MIN_INNER_PER_SPLIT, MAX_SKINNY_SPLITS = 1024, 4


def suits_skinny(rows: int, columns: int, inner: int) -> bool:
    """Can the skinny kernel run a matmul of this shape: at most one tile of rows, whole tiles else?

    Of 13 to 17 launches tried at each of 23 shapes on an H100 (1, 8 and 16 rows, 1024 to 32,768
    columns), the best was 0 to 29 % faster than cuBLAS, and 7 % in the median.
    """
    return rows <= SKINNY_ROWS and not (columns % SKINNY_COLUMNS or inner % SKINNY_INNER)


def skinny_splits(columns: int, inner: int, num_sms: int) -> int:
    """Programs of the skinny kernel that share the inner dimension of a tile of columns.

    A power of two that divides the tile's steps; as many as the SMs leave room for.
    """
    wanted = min(
        MAX_SKINNY_SPLITS, num_sms // (columns // SKINNY_COLUMNS), inner // MIN_INNER_PER_SPLIT
    )
    splits = 1
    while 2 * splits <= wanted and inner // SKINNY_INNER % (2 * splits) == 0:
        splits *= 2
    return splits


LocalOp = Norm | Matmul | RotaryWrite | Attention | GatedActivation | ResidualAdd | Embed | Sample
CollectiveOp = AllReduce | AllGather
PointToPointOp = Send | Recv
Op = LocalOp | CollectiveOp | PointToPointOp

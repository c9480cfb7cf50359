"""Operations: the closed union of what an engine launches, and the buffers they touch.

An op is the smallest thing launched with no wait on another rank inside it. Its `name` is local
to a segment (`attn.qkv`); the program completes it (`L07.attn.qkv@m3`). Dependencies are never
written down: they follow from the buffers an op reads and writes. `kind` is the name that traces and hashes
know an op by, whatever its class is called. What else follows from an op alone is on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from layerwise.sim.plan.model import DTYPE_BYTES, TOKEN_ID_BYTES, StoredDType

BufferKind = Literal["weight", "kv", "activation", "communication", "tokens"]
AttentionKernel = Literal["math", "cudnn", "flash", "split_kv"]
MatmulKernel = Literal["cublas", "skinny"]
AllReduceAlgorithm = Literal["nccl", "one_shot"]
Channel = Literal["act", "token"]
Stream = Literal["compute", "send", "recv"]
Meeting = Literal["send", "recv", "collective"]

# Where the serving engines' custom all-reduce switches on 8 GPUs, seen in its published timings.
ONE_SHOT_MAX_BYTES = 256 * 2**10


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

    def __hash__(self) -> int:
        # Ops are looked up by their buffers: few of one name and size differ in anything else.
        return hash((self.name, self.num_bytes))

    def key(self, layer: int, microbatch: int) -> BufferKey:
        """The identity of this tensor within a rank, for one layer and microbatch."""
        return (
            self.name,
            layer if self.per_layer else -1,
            microbatch if self.per_microbatch else -1,
        )


BufferKey = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Demand:
    """`flops` counts one multiply-add as two. Reads and writes are (buffer, bytes) pairs.

    `wire_bytes` is what this rank puts onto a link.
    """

    flops: int
    reads: tuple[tuple[Buffer, int], ...]
    writes: tuple[tuple[Buffer, int], ...]
    wire_bytes: int = 0

    @property
    def read_bytes(self) -> int:
        """All bytes read."""
        return sum(size for _, size in self.reads)

    @property
    def written_bytes(self) -> int:
        """All bytes written."""
        return sum(size for _, size in self.writes)


def _whole(*buffers: Buffer) -> tuple[tuple[Buffer, int], ...]:
    return tuple((buffer, buffer.num_bytes) for buffer in buffers)


def _width(buffer: Buffer) -> int:
    """Bytes of one element."""
    assert buffer.dtype != "int64"
    return DTYPE_BYTES[buffer.dtype]


class _Op:
    """What holds for an op that does not say otherwise.

    `meets`: how it meets other ranks, if it does. `stream`: where it is issued; sends and receives
    have one each, collectives stay in line with the compute.
    """

    __slots__ = ()
    kind: ClassVar[str]
    meets: ClassVar[Meeting | None] = None
    stream: ClassVar[Stream] = "compute"
    grows: ClassVar[bool] = False

    def at(self, context_tokens: int) -> Self:
        """Return the op as it is when sequences attend to so many tokens, the new ones included."""
        del context_tokens
        return self

    @property
    def whole_weight(self) -> Buffer | None:
        """The weight that it reads whole. An embedding reads a few rows of its table: none."""
        return None

    @property
    def stored(self) -> Buffer | None:
        """Weights or KV that may lie in another dtype than is computed in."""
        return None

    @property
    def kernels(self) -> str:
        """Which kernel it asks for: equal names may be compared, others may not."""
        return self.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm(_Op):
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

    def demand(self) -> Demand:
        """Count FLOPs and bytes."""
        if self.delta is None:
            return Demand(0, _whole(self.source, self.weight), _whole(self.output))
        reads = _whole(self.source, self.delta, self.weight)
        return Demand(0, reads, _whole(self.source, self.output))

    @property
    def whole_weight(self) -> Buffer:
        return self.weight

    @property
    def kernels(self) -> str:
        return f"norm:{'fused residual' if self.delta else 'plain'}"

    @property
    def dtype(self) -> str:
        """The dtype computed in."""
        return self.output.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Matmul(_Op):
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

    def demand(self) -> Demand:
        """Count FLOPs and bytes."""
        flops = 2 * self.rows * self.columns * self.inner
        return Demand(flops, _whole(self.source, self.weight), _whole(self.output))

    @property
    def whole_weight(self) -> Buffer:
        return self.weight

    @property
    def stored(self) -> Buffer:
        return self.weight

    @property
    def kernels(self) -> str:
        return self.kind if self.kernel == "cublas" else f"{self.kind}:{self.kernel}"

    @property
    def dtype(self) -> str:
        """The dtype computed in."""
        return self.output.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryWrite(_Op):
    """Rotate queries in `qkv` in place; write rotated keys, and values, into the KV cache.

    `qkv` [sequences * query_tokens, (heads + 2 kv_heads) * head_dim], `kv` [2, sequences,
    kv_heads, capacity, head_dim]; the first query token has position `start_tokens`.
    """

    kind: ClassVar[str] = "RotaryWrite"
    grows: ClassVar[bool] = True

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

    def demand(self) -> Demand:
        """Count FLOPs and bytes."""
        token_bytes = self.qkv.num_bytes // (self.num_heads + 2 * self.num_key_value_heads)
        query_bytes = token_bytes * self.num_heads
        written = token_bytes * 2 * self.num_key_value_heads
        kv_bytes = written * _width(self.kv) // _width(self.qkv)
        return Demand(0, _whole(self.qkv), ((self.qkv, query_bytes), (self.kv, kv_bytes)))

    def at(self, context_tokens: int) -> RotaryWrite:
        return replace(self, start_tokens=context_tokens - self.query_tokens)

    @property
    def stored(self) -> Buffer:
        return self.kv

    @property
    def dtype(self) -> str:
        """The dtype computed in."""
        return self.qkv.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(_Op):
    """Causal attention of the last `query_tokens` positions over `context_tokens` positions."""

    kind: ClassVar[str] = "Attention"
    grows: ClassVar[bool] = True

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

    def demand(self) -> Demand:
        """Count FLOPs and bytes."""
        queries = self.sequences_times_heads * self.query_tokens * self.head_dim
        keys_and_values = 2 * self.sequences_times_kv_heads * self.context_tokens * self.head_dim
        reads = (
            (self.qkv, queries * _width(self.qkv)),
            (self.kv, keys_and_values * _width(self.kv)),
        )
        return Demand(self.flops, reads, _whole(self.output))

    @property
    def flops(self) -> int:
        """4 FLOPs per (query, key, head, dim) that the causal mask lets through."""
        start = self.context_tokens - self.query_tokens
        visible = self.query_tokens * start + self.query_tokens * (self.query_tokens + 1) // 2
        return 4 * self.sequences * self.num_heads * self.head_dim * visible

    def at(self, context_tokens: int) -> Attention:
        return replace(self, context_tokens=context_tokens)

    @property
    def kernels(self) -> str:
        return f"attention:{self.kernel}:{'decode' if self.query_tokens == 1 else 'prefill'}"

    @property
    def stored(self) -> Buffer:
        return self.kv

    @property
    def dtype(self) -> str:
        """The dtype computed in."""
        return self.output.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedActivation(_Op):
    """`output` [tokens, intermediate] = silu(gate) * up of `source` [tokens, 2 intermediate]."""

    kind: ClassVar[str] = "GatedActivation"

    name: str
    source: Buffer
    output: Buffer
    tokens: int
    intermediate_size: int

    def demand(self) -> Demand:
        """Count FLOPs and bytes."""
        return Demand(0, _whole(self.source), _whole(self.output))

    @property
    def dtype(self) -> str:
        """The dtype computed in."""
        return self.output.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualAdd(_Op):
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

    def demand(self) -> Demand:
        """Count FLOPs and bytes."""
        size = self.output.num_bytes
        return Demand(0, ((self.source, size), (self.delta, size)), _whole(self.output))

    @property
    def dtype(self) -> str:
        """The dtype computed in."""
        return self.output.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed(_Op):
    """`output` [tokens, hidden] = rows of `weight` [vocab, hidden] named by `token_ids`."""

    kind: ClassVar[str] = "Embed"

    name: str
    token_ids: Buffer
    weight: Buffer
    output: Buffer
    tokens: int
    hidden_size: int

    def demand(self) -> Demand:
        """Count FLOPs and bytes."""
        rows = (self.token_ids, self.token_ids.num_bytes), (self.weight, self.output.num_bytes)
        return Demand(0, rows, _whole(self.output))

    @property
    def dtype(self) -> str:
        """The dtype computed in."""
        return self.output.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(_Op):
    """`token_ids` [sequences] = argmax over `logits` [sequences, vocab] (greedy)."""

    kind: ClassVar[str] = "Sample"

    name: str
    logits: Buffer
    token_ids: Buffer
    sequences: int
    vocab_size: int

    def demand(self) -> Demand:
        """Count FLOPs and bytes."""
        return Demand(0, _whole(self.logits), _whole(self.token_ids))

    @property
    def dtype(self) -> str:
        """The dtype computed in."""
        return self.logits.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduce(_Op):
    """Sum `buffer` over the ranks of `group`, in place. `payload_bytes` is one rank's tensor."""

    kind: ClassVar[str] = "AllReduce"
    meets: ClassVar[Meeting | None] = "collective"

    name: str
    buffer: Buffer
    payload_bytes: int
    group: tuple[int, ...]
    algorithm: AllReduceAlgorithm

    def demand(self) -> Demand:
        """Count FLOPs and bytes."""
        wire = all_reduce_wire_bytes(self.payload_bytes, len(self.group), self.algorithm)
        return Demand(0, _whole(self.buffer), _whole(self.buffer), wire)

    @property
    def kernels(self) -> str:
        return f"all_reduce:{self.algorithm}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllGather(_Op):
    """Columns of every rank's `source` [sequences, vocab / n] side by side in `output`.

    `payload_bytes` is the whole output.
    """

    kind: ClassVar[str] = "AllGather"
    meets: ClassVar[Meeting | None] = "collective"

    name: str
    source: Buffer
    output: Buffer
    payload_bytes: int
    group: tuple[int, ...]

    def demand(self) -> Demand:
        """Count FLOPs and bytes."""
        wire = self.payload_bytes * (len(self.group) - 1) // len(self.group)
        return Demand(0, _whole(self.source), _whole(self.output), wire)


@dataclass(frozen=True, slots=True, kw_only=True)
class Send(_Op):
    """Hand `buffer` to rank `peer`. `channel` tells flows between the same two ranks apart."""

    kind: ClassVar[str] = "Send"
    meets: ClassVar[Meeting | None] = "send"
    stream: ClassVar[Stream] = "send"

    name: str
    buffer: Buffer
    payload_bytes: int
    peer: int
    channel: Channel

    def demand(self) -> Demand:
        """Count FLOPs and bytes."""
        return Demand(0, ((self.buffer, self.payload_bytes),), (), self.payload_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recv(_Op):
    """Take `buffer` from rank `peer`."""

    kind: ClassVar[str] = "Recv"
    meets: ClassVar[Meeting | None] = "recv"
    stream: ClassVar[Stream] = "recv"

    name: str
    buffer: Buffer
    payload_bytes: int
    peer: int
    channel: Channel

    def demand(self) -> Demand:
        """Count FLOPs and bytes."""
        return Demand(0, (), ((self.buffer, self.payload_bytes),))


def all_reduce_wire_bytes(payload_bytes: int, num_ranks: int, algorithm: str) -> int:
    """Bytes one rank sends: a ring moves 2 (n-1)/n of the tensor, one-shot n-1 whole copies.

    One-shot kernels switch to two shots, a ring's bytes, above ONE_SHOT_MAX_BYTES.
    Source: nccl-tests PERFORMANCE.md (ring); one-shot writes its tensor to every peer.
    """
    if algorithm == "one_shot" and payload_bytes <= ONE_SHOT_MAX_BYTES:
        return payload_bytes * (num_ranks - 1)
    return 2 * payload_bytes * (num_ranks - 1) // num_ranks


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

"""What an op asks of the machine: FLOPs, and bytes of which buffer. Closed forms, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import assert_never

from layerwise.sim.plan import ops
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.model import DTYPE_BYTES, ModelSpec
from layerwise.sim.plan.ops import Buffer, CollectiveOp, Op
from layerwise.sim.plan.placement import Placement
from layerwise.sim.plan.workload import Step

# Where the serving engines' custom all-reduce switches on 8 GPUs, seen in its published timings.
ONE_SHOT_MAX_BYTES = 256 * 2**10


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


@lru_cache(maxsize=65_536)
def demand_of(op: Op) -> Demand:
    """FLOPs and bytes of one op, each input read once and each output written once.

    Pointwise work is counted in bytes only: its FLOPs never bind.
    """
    match op:
        case ops.Matmul():
            flops = 2 * op.rows * op.columns * op.inner
            return Demand(flops, _whole(op.source, op.weight), _whole(op.output))
        case ops.Attention():
            return _attention_demand(op)
        case ops.RotaryWrite():
            return _rotary_demand(op)
        case ops.Norm():
            return _norm_demand(op)
        case ops.GatedActivation():
            return Demand(0, _whole(op.source), _whole(op.output))
        case ops.ResidualAdd():
            return _residual_demand(op)
        case ops.Embed():
            rows = ((op.token_ids, op.token_ids.num_bytes), (op.weight, op.output.num_bytes))
            return Demand(0, rows, _whole(op.output))
        case ops.Sample():
            return Demand(0, _whole(op.logits), _whole(op.token_ids))
        case ops.AllReduce():
            wire = all_reduce_wire_bytes(op.payload_bytes, len(op.group), op.algorithm)
            return Demand(0, _whole(op.buffer), _whole(op.buffer), wire)
        case ops.AllGather():
            wire = op.payload_bytes * (len(op.group) - 1) // len(op.group)
            return Demand(0, _whole(op.source), _whole(op.output), wire)
        case ops.Send():
            return Demand(0, ((op.buffer, op.payload_bytes),), (), op.payload_bytes)
        case ops.Recv():
            return Demand(0, (), ((op.buffer, op.payload_bytes),))
        case _:
            assert_never(op)


def all_reduce_wire_bytes(payload_bytes: int, num_ranks: int, algorithm: str) -> int:
    """Bytes one rank sends: a ring moves 2 (n-1)/n of the tensor, one-shot n-1 whole copies.

    One-shot kernels switch to two shots, a ring's bytes, above ONE_SHOT_MAX_BYTES.
    Source: nccl-tests PERFORMANCE.md (ring); one-shot writes its tensor to every peer.
    """
    if algorithm == "one_shot" and payload_bytes <= ONE_SHOT_MAX_BYTES:
        return payload_bytes * (num_ranks - 1)
    return 2 * payload_bytes * (num_ranks - 1) // num_ranks


def wire_bytes_by_link(op: CollectiveOp, cluster: ClusterSpec) -> dict[str, int]:
    """Bytes one rank sends over NVLink and over its NIC in a collective.

    Across nodes it is hierarchical: inside the node as within one, then each rank exchanges its
    share of the tensor with its counterparts.
    """
    nodes = {cluster.node_of(rank) for rank in op.group}
    local_ranks = len(op.group) // len(nodes)
    algorithm = op.algorithm if isinstance(op, ops.AllReduce) else "nccl"
    halves = 2 if isinstance(op, ops.AllReduce) else 1
    local = all_reduce_wire_bytes(op.payload_bytes, local_ranks, algorithm) * halves // 2
    wires = {cluster.nvlink.name: local}
    if len(nodes) > 1:
        share = op.payload_bytes // local_ranks
        wires[cluster.nic.name] = halves * share * (len(nodes) - 1) // len(nodes)
    return wires


def attention_flops(op: ops.Attention) -> int:
    """4 FLOPs per (query, key, head, dim) that the causal mask lets through."""
    start = op.context_tokens - op.query_tokens
    visible = op.query_tokens * start + op.query_tokens * (op.query_tokens + 1) // 2
    return 4 * op.sequences * op.num_heads * op.head_dim * visible


def _whole(*buffers: Buffer) -> tuple[tuple[Buffer, int], ...]:
    return tuple((buffer, buffer.num_bytes) for buffer in buffers)


def _width(buffer: Buffer) -> int:
    """Bytes of one element."""
    assert buffer.dtype != "int64"
    return DTYPE_BYTES[buffer.dtype]


def _attention_demand(op: ops.Attention) -> Demand:
    query_bytes = op.sequences * op.query_tokens * op.num_heads * op.head_dim * _width(op.qkv)
    kv_size = 2 * op.sequences * op.context_tokens * op.num_key_value_heads * op.head_dim
    kv_bytes = kv_size * _width(op.kv)
    return Demand(
        attention_flops(op), ((op.qkv, query_bytes), (op.kv, kv_bytes)), _whole(op.output)
    )


def _rotary_demand(op: ops.RotaryWrite) -> Demand:
    token_bytes = op.qkv.num_bytes // (op.num_heads + 2 * op.num_key_value_heads)
    query_bytes = token_bytes * op.num_heads
    kv_bytes = token_bytes * 2 * op.num_key_value_heads * _width(op.kv) // _width(op.qkv)
    return Demand(0, _whole(op.qkv), ((op.qkv, query_bytes), (op.kv, kv_bytes)))


def _norm_demand(op: ops.Norm) -> Demand:
    if op.delta is None:
        return Demand(0, _whole(op.source, op.weight), _whole(op.output))
    reads = _whole(op.source, op.delta, op.weight)
    return Demand(0, reads, _whole(op.source, op.output))


def _residual_demand(op: ops.ResidualAdd) -> Demand:
    size = op.output.num_bytes
    return Demand(0, ((op.source, size), (op.delta, size)), _whole(op.output))


def closed_form_flops(model: ModelSpec, step: Step) -> int:
    """Matmul and attention FLOPs of one step of one replica, from dimensions alone.

    2 FLOPs per weight and token; 4 x head_dim x heads per visible (query, key) pair and layer;
    the LM head works on the last token of each sequence. Source: counted by hand from the paper's
    layer; equal for every placement.
    """
    tokens = step.num_sequences * step.query_tokens
    start = step.context_tokens - step.query_tokens
    pairs = step.query_tokens * start + step.query_tokens * (step.query_tokens + 1) // 2
    attention = 4 * model.query_size * pairs * step.num_sequences
    per_layer = 2 * model.matmul_parameters_per_layer * tokens + attention
    head = 2 * step.num_sequences * model.hidden_size * model.vocab_size * step.gives_output
    return model.num_layers * per_layer + head


def closed_form_weight_and_kv_read_bytes(model: ModelSpec, placement: Placement, step: Step) -> int:
    """Matmul weights and KV that all ranks of one replica read in one step.

    Every microbatch reads every weight once, whatever the placement: tensor parallelism divides
    the weights over ranks, layer-wise placement the layers. KV is read once a step.
    """
    del placement  # equal for all of them: that is the statement
    layers = model.num_layers * model.matmul_parameters_per_layer
    head = model.vocab_size * model.hidden_size * step.gives_output
    weights = layers * DTYPE_BYTES[model.stored_weight_dtype] + head * model.dtype_bytes
    kv = step.num_sequences * step.context_tokens * model.kv_bytes_per_token_per_layer
    return weights * len(step.microbatch_sizes) + model.num_layers * kv

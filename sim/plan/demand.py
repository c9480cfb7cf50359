"""What ops and whole steps ask of the machine: FLOPs, bytes, wires. Closed forms, no clock."""

from __future__ import annotations

from functools import lru_cache

from layerwise.sim.plan import ops
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.model import DTYPE_BYTES, ModelSpec
from layerwise.sim.plan.ops import CollectiveOp, Demand, Op, all_reduce_wire_bytes
from layerwise.sim.plan.placement import Placement
from layerwise.sim.plan.workload import Step


@lru_cache(maxsize=65_536)
def demand_of(op: Op) -> Demand:
    """Return FLOPs and bytes of one op, each input read once and each output written once.

    Pointwise work is counted in bytes only: its FLOPs never bind.
    """
    return op.demand()


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

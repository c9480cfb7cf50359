"""Small models, placements and runs, and cost models whose answers can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from layerwise.sim.cost.kinds import Bound
from layerwise.sim.cost.model import Belief, Calibrated, OpCost, Traffic, TransferCost
from layerwise.sim.cost.unfitted import Change
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.hardware import GPUS, ClusterSpec, LinkSpec, Speed, dgx_cluster
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.ops import Buffer, CollectiveOp, LocalOp, Op
from layerwise.sim.plan.placement import Placement, layer_wise, tensor_pipeline
from layerwise.sim.plan.program import StepPrograms
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario
from layerwise.sim.plan.workload import Step, Workload, decode_steps, prefill_steps, split_evenly
from tests.synthetic import synthetic_profile

H100 = GPUS["h100-sxm"]
CLUSTER = dgx_cluster(H100, 16)
TINY = ModelSpec(
    name="tiny",
    num_layers=8,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=8,
)


@dataclass(frozen=True)
class FlatCost:
    """Every op takes `op_s`, every message `latency_s` + bytes; nothing is contended or cached."""

    op_s: float = 1e-6
    launch_s: float = 0.0
    collective_s: float = 2e-6
    latency_s: float = 0.0
    bytes_per_s: float = 1e30
    port_bytes_per_s: float = math.inf
    issue_s: float = 0.0
    graph_launch_s: float = 0.0
    belief: Belief = "calibrated"
    op_speed: float = 1.0
    message_speed: float = 1.0

    @property
    def is_disturbed_by_messages(self) -> bool:
        return (self.op_speed, self.message_speed) != (1.0, 1.0)

    def speeds_beside_messages(self, bound: Bound) -> tuple[float, float]:
        return self.op_speed, self.message_speed

    @property
    def hit_horizon_bytes(self) -> float:
        return 0.0

    def hit_fraction(self, reuse_distance_bytes: int) -> float:
        return 0.0

    def obeys_windows(self, op: Op) -> bool:
        return True

    def local(self, op: LocalOp, traffic: Traffic) -> OpCost:
        return OpCost(self.launch_s, self.op_s, "compute")

    def changes(self, op: LocalOp) -> tuple[Change, ...]:
        return ()

    def collective(self, op: CollectiveOp) -> OpCost:
        return OpCost(0.0, self.collective_s, "link")

    def transfer(self, payload_bytes: int, link: LinkSpec) -> TransferCost:
        return TransferCost(self.latency_s, self.bytes_per_s)

    def link_bytes_per_s(self, link: LinkSpec) -> float:
        return self.port_bytes_per_s

    def at_speed(self, speed: Speed) -> FlatCost:
        """Ops are bound by the SMs."""
        return replace(self, op_s=self.op_s / speed.clock_share)


@dataclass(frozen=True)
class Uncontended(Calibrated):
    """The calibrated belief with GPUs and ports that nobody has to share."""

    @property
    def is_disturbed_by_messages(self) -> bool:
        return False

    def link_bytes_per_s(self, link: LinkSpec) -> float:
        return math.inf


def uncontended(cluster: ClusterSpec = CLUSTER) -> Uncontended:
    return Uncontended(cluster, synthetic_profile())


def calibrated(cluster: ClusterSpec = CLUSTER) -> Calibrated:
    return Calibrated.about(cluster, synthetic_profile())


def scenario_of(
    placement: PlacementSpec,
    *,
    model: ModelSpec = TINY,
    microbatches: int = 1,
    num_steps: int = 3,
    cluster: ClusterSpec = CLUSTER,
    batch_size: int = 16,
) -> Scenario:
    return Scenario(
        name="test",
        model=model,
        cluster=cluster,
        placement=placement,
        workload=Workload(
            batch_size=batch_size,
            context_tokens=32,
            num_microbatches=microbatches,
        ),
        run=RunSpec(num_steps=num_steps),
    )


def pipeline(stages: int, microbatches: int, num_steps: int, batch_size: int = 24) -> Scenario:
    """Equal stages of one layer each, on one GPU each."""
    return scenario_of(
        PlacementSpec(num_gpus=stages),
        model=replace(TINY, num_layers=stages),
        microbatches=microbatches,
        num_steps=num_steps,
        batch_size=batch_size,
    )


@dataclass(frozen=True)
class Case:
    """A compiled run, with what it was compiled from."""

    model: ModelSpec
    placement: Placement
    steps: tuple[Step, ...]
    run: tuple[StepPrograms, ...]

    def replica_ops(self, step: int, replica: int = 0) -> Iterator[ops.Op]:
        """Every op of every rank of one replica."""
        for program in self.run[step].programs:
            if program.replica == replica:
                yield from (placed.op for placed in program)


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    kv_heads, group = draw(st.sampled_from((1, 2, 4))), draw(st.sampled_from((1, 2, 3)))
    return ModelSpec(
        name="drawn",
        num_layers=draw(st.integers(1, 5)),
        hidden_size=draw(st.sampled_from((16, 40))),
        intermediate_size=4 * draw(st.integers(1, 9)),
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        head_dim=draw(st.sampled_from((4, 8))),
        vocab_size=draw(st.sampled_from((0, 20))),
        dtype=draw(st.sampled_from(("bfloat16", "float32"))),
    )


@st.composite
def placements(draw: st.DrawFn, model: ModelSpec) -> Placement:
    replicas = draw(st.integers(1, 2))
    stages = draw(st.integers(1, model.num_layers))
    if draw(st.booleans()):
        return layer_wise(
            model, num_gpus=stages * replicas, on_chip_bytes=H100.l2_bytes, data_parallel=replicas
        )
    shards = draw(st.sampled_from([d for d in (1, 2, 4) if model.num_key_value_heads % d == 0]))
    return tensor_pipeline(
        model, tensor_parallel=shards, pipeline_parallel=stages, data_parallel=replicas
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    model = draw(models())
    placement = draw(placements(model))
    sequences = draw(st.integers(1, 7))
    sizes = split_evenly(sequences, draw(st.integers(1, sequences)))
    if draw(st.booleans()):
        steps = decode_steps(sizes, draw(st.integers(1, 40)), draw(st.integers(1, 3)))
    else:
        steps = prefill_steps(sizes, draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    run = tuple(compile_step(model, placement, step, KernelChoice()) for step in steps)
    return Case(model, placement, tuple(steps), run)


def matmul_op(name: str, weight_bytes: int, *, rows: int = 1, per_layer: bool = True) -> ops.Matmul:
    """A matmul whose weight has this many bytes; its activations are a few KiB."""
    columns = weight_bytes // (2 * 1024)
    return ops.Matmul(
        name=name,
        source=Buffer(f"{name}.in", "activation", (rows, 1024), "bfloat16"),
        weight=Buffer(f"{name}.w", "weight", (columns, 1024), "bfloat16", per_layer=per_layer),
        output=Buffer(f"{name}.out", "activation", (rows, columns), "bfloat16"),
        rows=rows,
        columns=columns,
        inner=1024,
    )

"""Where figures are taken, and the pieces of the engine that they time."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from layerwise.hw.engine.collectives import ReplacedPeers
from layerwise.hw.engine.execute import Engine
from layerwise.hw.engine.graphs import capture
from layerwise.hw.engine.memory import DeviceMemory, allocate, model_fill, random_fill, slots_of
from layerwise.hw.engine.schedule import Action, actions_of
from layerwise.hw.engine.weights import RandomWeights
from layerwise.hw.host.bandwidth import read_bandwidth
from layerwise.hw.instrument.timing import WARM_UPS, Replay, Timer, timer_of
from layerwise.hw.instrument.tracing import Timing
from layerwise.hw.streams import plan_stream
from layerwise.hw.sweep import let_go
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.ops import Buffer, Op
from layerwise.sim.plan.program import Part, PlacedOp, Program, Segment, buffers_of
from layerwise.sim.plan.scenario import (
    Launch,
    PlacementSpec,
    RunSpec,
    Scenario,
    compile_run,
    paper_scenario,
)
from layerwise.sim.plan.validate import validate_run
from layerwise.sim.plan.workload import Workload

# What the committed profiles of the H100 and the H200 choose; hw reads no profile.
KERNELS = KernelChoice(
    decode_attention="cudnn",
    prefill_attention="cudnn",
    chunked_prefill_attention="flash",
    small_matmul="skinny",
)
# One rank in the middle of the paper's sixteen: it receives and sends, neither first nor last.
PAPER_RANK = 5
# Rotating over twice the L2, nothing is left of a tensor when its turn comes again.
ROTATION = 2
MAX_COPIES = 256
# Tests on the CPU rotate as well, over little.
CPU_L2_BYTES = 2**15


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A device, the kernels that programs ask for, and who takes the time.

    `timings`: who times each op of a traced run, the first that works.
    """

    device: torch.device
    timer: Timer
    kernels: KernelChoice = KERNELS
    launch: Launch = "graph"
    timings: tuple[Timing, ...] = ("cupti", "events")
    read_rate: Callable[[torch.device], float] = read_bandwidth
    progress: Callable[[str], None] = partial(print, file=sys.stderr, flush=True)

    @property
    def l2_bytes(self) -> int:
        """What rotating buffers must exceed."""
        if self.device.type != "cuda":
            return CPU_L2_BYTES
        return torch.cuda.get_device_properties(self.device).L2_cache_size


def bench_on(device: torch.device, kernels: KernelChoice) -> Bench:
    """The bench of a GPU."""
    return Bench(device=device, timer=timer_of(device), kernels=kernels)


@dataclass(frozen=True)
class Lone:
    """One rank's program on its own tensors, its peers replaced, ready to run."""

    engine: Engine
    program: Program
    actions: tuple[Action, ...]

    @property
    def memory(self) -> DeviceMemory:
        """The tensors behind its buffers."""
        return self.engine.memory

    def tensor(self, placed: PlacedOp, buffer: Buffer) -> Tensor:
        """The tensor of one of an op's buffers."""
        return self.memory.tensor(buffer, placed.layer, placed.microbatch)

    def run(self) -> None:
        """Issue it once, eagerly."""
        self.engine.run(self.actions)

    def weights(self) -> dict[str, Tensor]:
        """Every weight of its layers by name; of several layers the last."""
        return {
            buffer.name: self.tensor(placed, buffer)
            for placed in self.program
            for buffer in buffers_of(placed.op)
            if buffer.kind == "weight"
        }


def paper_stage(bench: Bench, name: str, workload: Workload, repeats: int = 30) -> Scenario:
    """One GPU of the paper's layer-wise placement: its one layer, its peers replaced."""
    run = RunSpec(launch=bench.launch, only_rank=PAPER_RANK, repeats=repeats)
    asked = paper_scenario("layer-wise", workload=workload)
    return replace(asked, name=name, run=run, kernels=bench.kernels)


def one_layer(
    bench: Bench,
    model: ModelSpec,
    workload: Workload,
    *,
    steps_per_graph: int = 1,
    repeats: int = 30,
) -> Scenario:
    """One layer by itself on one GPU; its output is its next input."""
    steps = steps_per_graph if bench.launch == "graph" else 1
    return Scenario(
        name=f"h{model.hidden_size}",
        model=replace(model, num_layers=1),
        cluster=dgx_cluster(GPUS["h100-sxm"], 1),
        workload=workload,
        kernels=bench.kernels,
        placement=PlacementSpec(strategy="layer-wise", num_gpus=1),
        run=RunSpec(launch=bench.launch, steps_per_graph=steps, repeats=repeats),
    )


def decoder(hidden: int, *, heads: int = 0, kv_heads: int = 0) -> ModelSpec:
    """A layer of the paper's proportions: heads of 128 dimensions, an MLP four times as wide."""
    heads = heads or hidden // 128
    return ModelSpec(
        name=f"h{hidden}",
        num_layers=1,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        head_dim=128,
    )


def lone(scenario: Scenario, device: torch.device) -> Lone:
    """The repeated step of `run.only_rank`, or of the only rank, with random weights."""
    run = compile_run(scenario)
    validate_run(run)
    rank = max(scenario.run.only_rank, 0)
    program = plan_stream(run, alone=True).body_programs(rank)[0]
    weights = RandomWeights(scenario.model, device)
    memory = allocate(
        slots_of([program]), device, model_fill(scenario.model, weights, program, device, rank)
    )
    return _ready(program, memory)


def rotating(op: Op, copies: int, device: torch.device) -> Lone:
    """One op, run once on each of `copies` sets of tensors: weights, KV and activations."""
    program = rotating_program(op, copies)
    return _ready(program, allocate(slots_of([program]), device, random_fill(device)))


def rotating_program(op: Op, copies: int) -> Program:
    """One op per layer, each layer with its own of every buffer."""
    segment = Segment((_per_layer(op),))
    parts = tuple(Part(segment, f"L{index:02d}", index, 0) for index in range(copies))
    return Program(rank=0, stage=0, replica=0, tensor_rank=0, tensor_parallel=1, parts=parts)


def copies_for(op: Op, l2_bytes: int, at_least: int = 2) -> int:
    """How many sets of an op's tensors exceed the L2 ROTATION times; of tiny ones MAX_COPIES."""
    needed = math.ceil(ROTATION * l2_bytes / sum(each.num_bytes for each in buffers_of(op)))
    return min(MAX_COPIES, max(at_least, needed))


def ops_of(scenario: Scenario) -> dict[str, Op]:
    """The ops of a lone layer's repeated step by their local names (`attn.qkv`)."""
    program = plan_stream(compile_run(scenario), alone=True).body_programs(0)[0]
    return {placed.op.name: placed.op for placed in program}


def replay_of(part: Lone, *, times: int = 1) -> Replay:
    """A graph of `times` runs in a row; on the CPU the runs themselves."""
    if part.memory.device.type == "cuda":
        for _ in range(WARM_UPS):
            part.run()
        return capture(part.engine, [part.actions] * times).replay

    def run() -> None:
        for _ in range(times):
            part.run()

    return run


def matmuls_and_attention(program: Program) -> Iterator[ops.Matmul | ops.Attention]:
    """The ops of a program that compute."""
    for placed in program:
        if isinstance(placed.op, ops.Matmul | ops.Attention):
            yield placed.op


def release(device: torch.device) -> None:
    """Give tensors, graphs and workspaces back; nothing of the figure before may be alive."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        let_go(device)


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float32."""
    wide = expected.float()
    return float((actual.float() - wide).norm() / wide.norm())


def best_of(seconds: Mapping[str, float]) -> str:
    """The name of the shortest time."""
    return min(seconds, key=lambda name: seconds[name])


def in_words(error: Exception) -> str:
    """An error in one line, cut where a compiler goes on for pages."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _ready(program: Program, memory: DeviceMemory) -> Lone:
    return Lone(Engine(program.rank, memory, ReplacedPeers()), program, actions_of(program))


def _per_layer(op: Op) -> Op:
    """The same op, each of its buffers one per layer."""
    own = {
        name: replace(value, per_layer=True, per_microbatch=False)
        for name in type(op).__dataclass_fields__
        if isinstance(value := getattr(op, name), Buffer)
    }
    return replace(op, **own)

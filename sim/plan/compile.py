"""(model, placement, step) -> one program per rank. What compiles runs on both sides."""

from __future__ import annotations

from dataclasses import dataclass

from sim.plan import ops
from sim.plan.layers import LayerBuilder
from sim.plan.model import ModelSpec
from sim.plan.ops import AllReduceAlgorithm, AttentionKernel, Op
from sim.plan.placement import Placement, Stage
from sim.plan.program import Part, Program, Segment, StepPrograms
from sim.plan.workload import Step, split_evenly


@dataclass(frozen=True, kw_only=True)
class KernelChoice:
    """Which kernel each kind of op uses: chosen by calibration, carried by the op.

    `chunked_prefill_attention` serves chunks after a prompt's first one.
    """

    __pydantic_config__ = {"extra": "forbid"}

    decode_attention: AttentionKernel = "math"
    prefill_attention: AttentionKernel = "math"
    chunked_prefill_attention: AttentionKernel = "math"
    all_reduce: AllReduceAlgorithm = "nccl"


def compile_step(
    model: ModelSpec, placement: Placement, step: Step, kernels: KernelChoice
) -> StepPrograms:
    """Compile one step for every rank.

    Each microbatch passes a stage whole before the next one starts: receive, layers, send.
    """
    programs: list[Program] = []
    for replica, stages in enumerate(placement.replicas):
        for index, stage in enumerate(stages):
            programs.extend(_stage_programs(model, step, kernels, stages, replica, index, stage))
    return StepPrograms(step=step, placement=placement, programs=tuple(programs))


def microbatches_of(batch_size: int, data_parallel: int, num_microbatches: int) -> tuple[int, ...]:
    """Sequences per microbatch of one replica; `place` sees to it that replicas are equal."""
    return split_evenly(split_evenly(batch_size, data_parallel)[0], num_microbatches)


def _stage_programs(
    model: ModelSpec,
    step: Step,
    kernels: KernelChoice,
    stages: tuple[Stage, ...],
    replica: int,
    index: int,
    stage: Stage,
) -> list[Program]:
    compilers = [
        _StageCompiler(model, step, kernels, stages, index, tensor_rank)
        for tensor_rank in range(len(stage.ranks))
    ]
    # Ranks of one group differ only in their peers: layer segments are shared between them.
    layers = compilers[0].layer_segments()
    return [
        Program(
            rank=rank,
            stage=index,
            replica=replica,
            tensor_rank=tensor_rank,
            tensor_parallel=len(stage.ranks),
            parts=tuple(compiler.parts(layers)),
        )
        for tensor_rank, (rank, compiler) in enumerate(zip(stage.ranks, compilers, strict=True))
    ]


@dataclass(frozen=True)
class _StageCompiler:
    """Compiles one rank of one stage."""

    model: ModelSpec
    step: Step
    kernels: KernelChoice
    stages: tuple[Stage, ...]
    index: int
    tensor_rank: int

    @property
    def stage(self) -> Stage:
        return self.stages[self.index]

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == len(self.stages) - 1

    @property
    def loops_to_itself(self) -> bool:
        """One stage: the token is already where the next step needs it."""
        return len(self.stages) == 1

    def attention_kernel(self) -> ops.AttentionKernel:
        """Decode, a whole prompt, and a later chunk of one are three different shapes."""
        if self.step.query_tokens == 1:
            return self.kernels.decode_attention
        if self.step.query_tokens == self.step.context_tokens:
            return self.kernels.prefill_attention
        return self.kernels.chunked_prefill_attention

    def builder(self, sequences: int) -> LayerBuilder:
        return LayerBuilder(
            model=self.model, step=self.step, sequences=sequences, group=self.stage.ranks,
            attention_kernel=self.attention_kernel(), all_reduce=self.kernels.all_reduce,
            loops_to_itself=self.loops_to_itself,
        )  # fmt: skip

    def layer_segments(self) -> dict[tuple[int, bool], Segment]:
        """Segments by (sequences, is the stage's first layer): all that layers differ in."""
        return {
            (size, first): Segment(self.builder(size).layer(first_in_stage=first))
            for size in set(self.step.microbatch_sizes)
            for first in (True, False)
        }

    def parts(self, layers: dict[tuple[int, bool], Segment]) -> list[Part]:
        edges = {size: (self._before(size), self._after(size))
                 for size in set(self.step.microbatch_sizes)}  # fmt: skip
        result: list[Part] = []
        for microbatch, size in enumerate(self.step.microbatch_sizes):
            before, after = edges[size]
            result += [self._edge_part(segment, microbatch) for segment in before]
            for layer in range(self.stage.first_layer, self.stage.end_layer):
                segment = layers[size, layer == self.stage.first_layer]
                result.append(Part(segment, f"L{layer:02d}", layer, microbatch))
            result += [self._edge_part(segment, microbatch) for segment in after]
        return result

    def _edge_part(self, segment: Segment, microbatch: int) -> Part:
        return Part(segment, f"P{self.index}", self.stage.first_layer, microbatch)

    def _before(self, sequences: int) -> list[Segment]:
        """What precedes the stage's layers: a receive, an embedding."""
        builder = self.builder(sequences)
        groups: list[tuple[Op, ...]] = []
        if not self.is_first:
            peer = self.stages[self.index - 1].ranks[self.tensor_rank]
            groups.append((self._recv(builder.stage_input, peer, "act"),))
        elif self.step.takes_feedback and not self.loops_to_itself:
            peer = self.stages[-1].ranks[self.tensor_rank]
            groups.append((self._recv(builder.feedback_in, peer, "token"),))
        if self.is_first and self.model.vocab_size:
            groups.append((builder.embed(),))
        return [Segment(group) for group in groups]

    def _after(self, sequences: int) -> list[Segment]:
        """What follows the stage's layers: residual or head, and a send."""
        builder = self.builder(sequences)
        if not self.is_last:
            peer = self.stages[self.index + 1].ranks[self.tensor_rank]
            tail = (builder.stage_output_add(select_last=False),)
            return [Segment(tail), Segment((self._send(builder.stage_output, peer, "act"),))]
        if not self.step.gives_output:
            return []
        gives = self.step.gives_feedback
        tail = builder.head() if self.model.vocab_size else (
            builder.stage_output_add(select_last=gives),
        )  # fmt: skip
        if not gives or self.loops_to_itself:
            return [Segment(tail)]
        peer = self.stages[0].ranks[self.tensor_rank]
        return [Segment(tail), Segment((self._send(builder.feedback_out, peer, "token"),))]

    @staticmethod
    def _send(buffer: ops.Buffer, peer: int, channel: ops.Channel) -> ops.Send:
        return ops.Send(
            name=f"{channel}.send", buffer=buffer, payload_bytes=buffer.num_bytes,
            peer=peer, channel=channel,
        )  # fmt: skip

    @staticmethod
    def _recv(buffer: ops.Buffer, peer: int, channel: ops.Channel) -> ops.Recv:
        return ops.Recv(
            name=f"{channel}.recv", buffer=buffer, payload_bytes=buffer.num_bytes,
            peer=peer, channel=channel,
        )  # fmt: skip

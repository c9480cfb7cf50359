"""(model, placement, step) -> one program per rank. What compiles runs on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from layerwise.sim.plan import ops
from layerwise.sim.plan.layers import LayerBuilder
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.ops import AllReduceAlgorithm, AttentionKernel, MatmulKernel, Op
from layerwise.sim.plan.placement import Placement, Stage
from layerwise.sim.plan.program import Part, Program, ProgramsOnDemand, Segment, StepPrograms
from layerwise.sim.plan.workload import Step, split_evenly


@dataclass(frozen=True, kw_only=True)
class KernelChoice:
    """Which kernel each kind of op uses: chosen by calibration, carried by the op.

    `chunked_prefill_attention` serves chunks after a prompt's first one; `small_matmul` the matmuls
    of few rows that suit it (`ops.suits_skinny`), cuBLAS all others.
    """

    __pydantic_config__ = {"extra": "forbid"}

    decode_attention: AttentionKernel = "math"
    prefill_attention: AttentionKernel = "math"
    chunked_prefill_attention: AttentionKernel = "math"
    all_reduce: AllReduceAlgorithm = "nccl"
    small_matmul: MatmulKernel = "cublas"


@dataclass(frozen=True, kw_only=True)
class GivenKernels:
    """`[kernels]`: the kernels that a user chose; those that are not given are the profile's.

    The keys are KernelChoice's.
    """

    __pydantic_config__ = {"extra": "forbid"}

    decode_attention: AttentionKernel | None = None
    prefill_attention: AttentionKernel | None = None
    chunked_prefill_attention: AttentionKernel | None = None
    all_reduce: AllReduceAlgorithm | None = None
    small_matmul: MatmulKernel | None = None

    @property
    def are_all(self) -> bool:
        """Is nothing left to a profile?"""
        return None not in (getattr(self, f.name) for f in fields(self))

    def over(self, kernels: KernelChoice) -> KernelChoice:
        """Return these kernels where they are given, and the others' where they are not."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(kernels, **{key: name for key, name in given.items() if name is not None})


@dataclass(frozen=True, eq=False)
class SegmentBook:
    """Each distinct segment of a run once, whatever step, stage or rank asks for it; programs too.

    Segments are compared by identity, so this is what lets the simulator see that two stages, or
    two steps, do the same.
    """

    layers: dict[tuple[object, ...], Segment] = field(default_factory=dict)
    edges: dict[tuple[Op, ...], Segment] = field(default_factory=dict)
    programs: dict[tuple[object, ...], Program] = field(default_factory=dict)

    def layer(self, builder: LayerBuilder, *, first_in_stage: bool) -> Segment:
        """The segment of one layer. Ranks without shards do the same on every stage.

        Groups of as many ranks share all ops but their collectives.
        """
        step = builder.step
        group = builder.group if builder.shards > 1 else ()
        alike = (
            builder.sequences,
            first_in_stage,
            len(group),
            step.query_tokens,
            step.context_tokens,
            step.kv_capacity_tokens,
        )
        key = (group, *alike)
        found = self.layers.get(key)
        if found is None:
            other = self.layers.get(alike)
            found = Segment(
                tuple(_among(group, op) for op in other.ops)
                if other
                else builder.layer(first_in_stage=first_in_stage)
            )
            self.layers[key] = found
            self.layers.setdefault(alike, found)
        return found

    def edge(self, found: tuple[Op, ...]) -> Segment:
        """The segment of these ops."""
        return self.edges.setdefault(found, Segment(found))


def _among(group: tuple[int, ...], op: Op) -> Op:
    return replace(op, group=group) if isinstance(op, ops.AllReduce) else op


def compile_step(
    model: ModelSpec,
    placement: Placement,
    step: Step,
    kernels: KernelChoice,
    book: SegmentBook | None = None,
) -> StepPrograms:
    """Compile one step for every rank, each when it is asked for; steps of a run share a `book`.

    Each microbatch passes a stage whole before the next one starts: receive, layers, send.
    """
    shared = book or SegmentBook()
    places = [
        (replica, stages, index, tensor_rank)
        for replica, stages in enumerate(placement.replicas)
        for index, stage in enumerate(stages)
        for tensor_rank in range(len(stage.ranks))
    ]

    def program_of(place: int) -> Program:
        replica, stages, index, tensor_rank = places[place]
        rank = stages[index].ranks[tensor_rank]
        compiler = _StageCompiler(model, step, kernels, stages, index, tensor_rank, shared)
        key = (rank, *compiler.what_matters)
        if key not in shared.programs:
            shared.programs[key] = Program(
                rank=rank,
                stage=index,
                replica=replica,
                tensor_rank=tensor_rank,
                tensor_parallel=len(stages[index].ranks),
                parts=tuple(compiler.parts()),
            )
        return shared.programs[key]

    template = ProgramsOnDemand(len(places), program_of)
    return StepPrograms(step=step, placement=placement, template=template)


def compile_steps(
    model: ModelSpec,
    placement: Placement,
    steps: Sequence[Step],
    kernels: KernelChoice,
    book: SegmentBook | None = None,
) -> list[StepPrograms]:
    """Compile a run. Decode steps that differ only in their context share one template."""
    book = book or SegmentBook()
    compiled: dict[Step, StepPrograms] = {}
    run: list[StepPrograms] = []
    for step in steps:
        kind = step
        if step.query_tokens == 1:
            kind = replace(step, context_tokens=step.kv_capacity_tokens)
        if kind not in compiled:
            compiled[kind] = compile_step(model, placement, step, kernels, book)
        template = compiled[kind]
        run.append(template if step == template.step else replace(template, step=step))
    return run


def microbatches_of(batch_size: int, data_parallel: int, num_microbatches: int) -> tuple[int, ...]:
    """Sequences per microbatch of one replica; `place` sees to it that replicas are equal."""
    return split_evenly(split_evenly(batch_size, data_parallel)[0], num_microbatches)


@dataclass(frozen=True)
class _StageCompiler:
    """Compiles one rank of one stage."""

    model: ModelSpec
    step: Step
    kernels: KernelChoice
    stages: tuple[Stage, ...]
    index: int
    tensor_rank: int
    book: SegmentBook

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

    @property
    def what_matters(self) -> tuple[object, ...]:
        """All of the step that this stage's program depends on: middle stages know no feedback."""
        step = self.step
        return (
            step.microbatch_sizes,
            step.query_tokens,
            step.context_tokens,
            step.kv_capacity_tokens,
            step.takes_feedback and self.is_first,
            step.gives_feedback and self.is_last,
            step.gives_output or not self.is_last,
        )

    def attention_kernel(self) -> ops.AttentionKernel:
        """Decode, a whole prompt, and a later chunk of one are three different shapes."""
        if self.step.query_tokens == 1:
            return self.kernels.decode_attention
        if self.step.query_tokens == self.step.context_tokens:
            return self.kernels.prefill_attention
        return self.kernels.chunked_prefill_attention

    def builder(self, sequences: int) -> LayerBuilder:
        return LayerBuilder(
            model=self.model,
            step=self.step,
            sequences=sequences,
            group=self.stage.ranks,
            attention_kernel=self.attention_kernel(),
            all_reduce=self.kernels.all_reduce,
            small_matmul=self.kernels.small_matmul,
            loops_to_itself=self.loops_to_itself,
        )

    def parts(self) -> list[Part]:
        """The program: microbatch by microbatch the same segments."""
        of_size = {size: self._segments(size) for size in set(self.step.microbatch_sizes)}
        return [
            Part(segment, prefix, layer, microbatch)
            for microbatch, size in enumerate(self.step.microbatch_sizes)
            for segment, prefix, layer in of_size[size]
        ]

    def _segments(self, size: int) -> list[tuple[Segment, str, int]]:
        """What one microbatch passes: (segment, name prefix, layer)."""
        first, builder = self.stage.first_layer, self.builder(size)
        before = [(segment, f"P{self.index}", first) for segment in self._before(size)]
        after = [(segment, f"P{self.index}", first) for segment in self._after(size)]
        layers = [
            (self.book.layer(builder, first_in_stage=layer == first), f"L{layer:02d}", layer)
            for layer in range(first, self.stage.end_layer)
        ]
        return [*before, *layers, *after]

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
        return [self.book.edge(group) for group in groups]

    def _after(self, sequences: int) -> list[Segment]:
        """What follows the stage's layers: residual or head, and a send."""
        builder = self.builder(sequences)
        if not self.is_last:
            peer = self.stages[self.index + 1].ranks[self.tensor_rank]
            tail = (builder.stage_output_add(select_last=False),)
            return [self.book.edge(tail), self._send(builder.stage_output, peer, "act")]
        if not self.step.gives_output:
            return []
        gives = self.step.gives_feedback
        tail = (
            builder.head()
            if self.model.vocab_size
            else (builder.stage_output_add(select_last=gives),)
        )
        if not gives or self.loops_to_itself:
            return [self.book.edge(tail)]
        peer = self.stages[0].ranks[self.tensor_rank]
        return [self.book.edge(tail), self._send(builder.feedback_out, peer, "token")]

    def _send(self, buffer: ops.Buffer, peer: int, channel: ops.Channel) -> Segment:
        send = ops.Send(
            name=f"{channel}.send",
            buffer=buffer,
            payload_bytes=buffer.num_bytes,
            peer=peer,
            channel=channel,
        )
        return self.book.edge((send,))

    @staticmethod
    def _recv(buffer: ops.Buffer, peer: int, channel: ops.Channel) -> ops.Recv:
        return ops.Recv(
            name=f"{channel}.recv",
            buffer=buffer,
            payload_bytes=buffer.num_bytes,
            peer=peer,
            channel=channel,
        )

"""Decode attention: which kernel is fastest where."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from layerwise.hw.engine.memory import budget_of, slots_of
from layerwise.hw.figures.bench import (
    Bench,
    best_of,
    copies_for,
    decoder,
    one_layer,
    ops_of,
    rotating_program,
)
from layerwise.hw.figures.report import Verdict
from layerwise.hw.sweep import measure_programs
from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.ops import AttentionKernel
from layerwise.sim.plan.program import Program
from layerwise.sim.plan.workload import Workload

KERNELS: tuple[AttentionKernel, ...] = ("cudnn", "flash", "split_kv")
# (sequences, query heads, key-value heads, context): one sequence to many, one head to many, whole
# and split over ranks, groups of 1 to 16, short contexts to long ones; up to 17 GB of KV.
SHAPES = (
    (1, 32, 32, 128),
    (1, 32, 32, 1024),
    (1, 32, 32, 10_000),
    (1, 32, 32, 32_768),
    (1, 8, 8, 128),
    (1, 8, 8, 2500),
    (1, 8, 1, 4096),
    (1, 32, 8, 32_768),
    (8, 8, 8, 128),
    (8, 8, 8, 1024),
    (8, 32, 32, 128),
    (8, 32, 32, 1024),
    (8, 32, 32, 10_000),
    (8, 32, 8, 10_000),
    (8, 64, 8, 4096),
    (8, 16, 1, 8192),
    (32, 8, 8, 128),
    (32, 32, 32, 2048),
    (32, 32, 8, 8192),
    (64, 4, 4, 10_000),
    (128, 32, 32, 128),
    (128, 32, 32, 5000),
    (128, 32, 8, 1024),
    (128, 32, 8, 20_000),
    (128, 4, 4, 10_000),
)
WORTH = 0.03
BUDGET_S = 40.0
ALIGNMENT_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class AttentionPoint:
    """Seconds of one shape by kernel, and why a kernel has none."""

    sequences: int
    num_heads: int
    num_key_value_heads: int
    context_tokens: int
    kv_bytes: int
    seconds: Mapping[str, float]
    problems: Mapping[str, str]

    @property
    def best(self) -> str:
        """The fastest kernel; empty when none ran."""
        return best_of(self.seconds) if self.seconds else ""

    @property
    def line(self) -> str:
        """One row of the table, with the rate at which the best one reads."""
        label = (
            f"b{self.sequences:<4}h{self.num_heads:<3}kv{self.num_key_value_heads:<3}"
            f"c{self.context_tokens:<6}"
        )
        times = ", ".join(f"{name} {1e6 * each:.2f}" for name, each in self.seconds.items())
        failed = "".join(f"; {name}: {problem[:80]}" for name, problem in self.problems.items())
        if not self.best:
            return f"{label} nothing ran{failed}"
        rate = self.kv_bytes / self.seconds[self.best] / 1e12
        return f"{label} {times} us; best {self.best}, {rate:.2f} TB/s{failed}"


@dataclass(frozen=True, kw_only=True)
class DecodeAttention:
    """All shapes; `chosen` is the kernel that the engine was told to use."""

    chosen: str
    points: tuple[AttentionPoint, ...]

    def loses_at(self, point: AttentionPoint) -> bool:
        """Is there one faster by more than what is worth a choice?"""
        if self.chosen not in point.seconds:
            return bool(point.seconds)
        return point.seconds[point.best] < (1.0 - WORTH) * point.seconds[self.chosen]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """None: it decides what calibration chooses from."""
        return ()

    @property
    def lines(self) -> tuple[str, ...]:
        """Who wins how often, and the whole table."""
        wins = Counter(point.best for point in self.points if point.best)
        losing = sum(map(self.loses_at, self.points))
        fastest = ", ".join(f"{name} {count}" for name, count in wins.most_common())
        loses = f"loses more than {WORTH:.0%} at {losing} of {len(self.points)} shapes"
        return (
            f"fastest: {fastest}; {self.chosen} {loses}",
            *(point.line for point in self.points),
        )


def attention(bench: Bench) -> DecodeAttention:
    """All kernels at SHAPES, over KV caches that rotate through more than the L2."""
    return attention_points(bench, SHAPES, KERNELS, BUDGET_S)


def attention_points(
    bench: Bench,
    shapes: Sequence[tuple[int, int, int, int]],
    kernels: Sequence[AttentionKernel],
    budget_s: float,
) -> DecodeAttention:
    """(sequences, heads, kv heads, context) by kernel: a sweep of the engine's own."""
    decodes = {shape: _op(bench, *shape) for shape in shapes}
    programs = {
        (shape, kernel): rotating_program(
            replace(op, kernel=kernel), copies_for(op, bench.l2_bytes)
        )
        for shape, op in decodes.items()
        for kernel in kernels
    }
    found = _sweep(bench, {_name(*key): program for key, program in programs.items()}, budget_s)
    return DecodeAttention(
        chosen=bench.kernels.decode_attention,
        points=tuple(_point(shape, op, kernels, found) for shape, op in decodes.items()),
    )


def _op(bench: Bench, sequences: int, heads: int, kv_heads: int, context: int) -> ops.Attention:
    workload = Workload(batch_size=sequences, context_tokens=context, num_microbatches=1)
    model: ModelSpec = decoder(128 * heads, heads=heads, kv_heads=kv_heads)
    op = ops_of(one_layer(bench, model, workload))["attn.sdpa"]
    assert isinstance(op, ops.Attention)
    return op


def _sweep(
    bench: Bench, programs: Mapping[str, Program], budget_s: float
) -> dict[str, dict[str, object]]:
    """The sweep's line of each program by name."""
    largest = max(_pooled_bytes(program) for program in programs.values())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "attention.jsonl"
        measure_programs(
            programs.items(),
            device=str(bench.device),
            out=out,
            budget_s=budget_s,
            pool_bytes=largest,
            progress=bench.progress,
        )
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {line["name"]: line for line in lines}


def _pooled_bytes(program: Program) -> int:
    """What a sweep carves out of its pool: KV, each cache rounded up."""
    return budget_of(slots_of([program])).get("kv", 0) + ALIGNMENT_BYTES * (len(program) + 1)


def _point(
    shape: tuple[int, int, int, int],
    op: ops.Attention,
    kernels: Sequence[AttentionKernel],
    found: Mapping[str, Mapping[str, object]],
) -> AttentionPoint:
    seconds: dict[str, float] = {}
    problems: dict[str, str] = {}
    for kernel in kernels:
        line = found.get(_name(shape, kernel), {"failed": "the time is used up"})
        if "step_s" in line:
            seconds[kernel] = float(str(line["step_s"])) / int(str(line["num_ops"]))
        else:
            problems[kernel] = str(line.get("failed") or line.get("does_not_fit"))
    read = {buffer.kind: size for buffer, size in demand_of(op).reads}
    sequences, heads, kv_heads, context = shape
    return AttentionPoint(
        sequences=sequences,
        num_heads=heads,
        num_key_value_heads=kv_heads,
        context_tokens=context,
        kv_bytes=read["kv"],
        seconds=seconds,
        problems=problems,
    )


def _name(shape: tuple[int, int, int, int], kernel: str) -> str:
    return f"{'.'.join(map(str, shape))}/{kernel}"

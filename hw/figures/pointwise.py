"""The engine's fused pointwise kernels beside what `torch.compile` makes of the same arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from layerwise.hw.figures.bench import (
    Bench,
    Lone,
    copies_for,
    decoder,
    in_words,
    one_layer,
    ops_of,
    relative_error,
    replay_of,
    rotating,
)
from layerwise.hw.figures.report import Verdict
from layerwise.hw.figures.small_layer import MAX_ERROR
from layerwise.hw.instrument.timing import graphed, in_turns, spread_of
from layerwise.hw.sweep import let_go
from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.ops import Op
from layerwise.sim.plan.program import PlacedOp
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.plan.workload import Workload

KERNELS = {
    "norm + residual": "mlp.norm",
    "rope + KV write": "attn.rope",
    "gated activation": "mlp.act",
    "residual add": "out.residual",
}
TOKENS = (1, 8, 128, 1024, 10_000)
HIDDEN_SIZES = (4096, 1024, 8192)
# From here on the tokens are one prompt's, below they are one of each sequence.
PROMPT_FROM = 1024
DECODE_CAPACITY = 16
# At least so many kernels in a graph: the launch of the next graph is then behind them.
MIN_COPIES = 16
MAX_SET_BYTES = 16 * 10**9
ROUNDS, ROUND_S = 3, 0.003
BUDGET_S = 40.0
# (name of the mode, what torch.compile is told)
MODES: dict[str, dict[str, Any]] = {
    "compile": {},
    "compile max-autotune": {"mode": "max-autotune-no-cudagraphs"},
}

Plain = Callable[..., Tensor | None]
"""An op's arithmetic in torch: writes where it is told to, or returns the op's last output."""


@dataclass(frozen=True, kw_only=True)
class PointwisePoint:
    """Seconds of one kernel, ours and as compiled in each mode; `error` is the largest seen."""

    kernel: str
    tokens: int
    hidden_size: int
    ours_s: float
    compiled_s: Mapping[str, float]
    error: float
    problem: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the best compiled; above 1 the compiler wins."""
        return self.ours_s / min(self.compiled_s.values()) if self.compiled_s else None

    @property
    def line(self) -> str:
        """One row of the table."""
        ratio = "-" if self.ratio is None else f"{self.ratio:.3f}"
        compiled = ", ".join(f"{k} {1e6 * v:.2f}" for k, v in self.compiled_s.items())
        return (
            f"{self.kernel:17}{self.tokens:6} x {self.hidden_size:<5} ours {1e6 * self.ours_s:9.2f}"
            f" us, {compiled or self.problem}; ratio {ratio}"
        )


@dataclass(frozen=True, kw_only=True)
class Pointwise:
    """All points measured; `num_left_out` did not fit the time budget."""

    points: tuple[PointwisePoint, ...]
    num_left_out: int = 0

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """None: it decides which of the two the engine uses."""
        return ()

    @property
    def lines(self) -> tuple[str, ...]:
        """The table, and each kernel's mean ratio (of the logarithms)."""
        left_out = f"{self.num_left_out} points left out: {BUDGET_S:.0f} s are used up"
        return (
            *(point.line for point in self.points),
            *(_mean_line(kernel, self.points) for kernel in KERNELS),
            *((left_out,) if self.num_left_out else ()),
        )


def pointwise(bench: Bench) -> Pointwise:
    """Every kernel at TOKENS and HIDDEN_SIZES; the compiler's dearer mode at the paper's width."""
    shapes = [(tokens, hidden) for hidden in HIDDEN_SIZES for tokens in TOKENS]
    return pointwise_points(bench, shapes, MODES, BUDGET_S)


def pointwise_points(
    bench: Bench,
    shapes: Sequence[tuple[int, int]],
    modes: Mapping[str, Mapping[str, Any]],
    budget_s: float,
) -> Pointwise:
    """(tokens, hidden) -> ours against the compiler's, until the time is used up.

    All modes at the first hidden size, the first one at the others.
    """
    started_s, points = time.monotonic(), list[PointwisePoint]()
    for tokens, hidden in shapes:
        chosen = dict(modes) if hidden == shapes[0][1] else dict(list(modes.items())[:1])
        found = ops_of(layer_of(bench, tokens, hidden))
        for kernel, name in KERNELS.items():
            if time.monotonic() - started_s > budget_s:
                break
            points.append(_point(bench, kernel, found[name], tokens, hidden, chosen))
            let_go(bench.device)
        bench.progress(f"figures: pointwise, {tokens} x {hidden} done")
    return Pointwise(points=tuple(points), num_left_out=len(shapes) * len(KERNELS) - len(points))


def layer_of(bench: Bench, tokens: int, hidden: int) -> Scenario:
    """One layer of so many tokens: of one prompt where they are many, else one per sequence."""
    if tokens >= PROMPT_FROM:
        workload = Workload(
            phase="prefill", batch_size=1, context_tokens=tokens, num_microbatches=1
        )
    else:
        workload = Workload(batch_size=tokens, context_tokens=DECODE_CAPACITY, num_microbatches=1)
    return one_layer(bench, decoder(hidden), workload)


def _point(
    bench: Bench,
    kernel: str,
    op: Op,
    tokens: int,
    hidden: int,
    modes: Mapping[str, Mapping[str, Any]],
) -> PointwisePoint:
    copies = copies_for(op, bench.l2_bytes)
    ours = rotating(op, copies, bench.device)
    repeats = max(1, MIN_COPIES // copies)
    replays = {"ours": replay_of(ours, times=repeats)}
    error, problems = 0.0, list[str]()
    torch.compiler.reset()  # a shape is compiled for itself; no graph of another one is alive
    for mode, options in modes.items():
        try:
            compiled = torch.compile(PLAIN[type(op)], dynamic=False, fullgraph=True, **options)
            differs = _difference(ours, compiled)
            if not differs <= MAX_ERROR:  # nor is it where it is not a number
                raise ArithmeticError(f"outputs differ by {differs:.1e}")
            replays[mode] = graphed(_all_sets(ours, compiled, repeats), bench.device)
            error = max(error, differs)
        except Exception as problem:  # a compiler that is missing, or refuses, is an answer
            problems.append(f"{mode}: {in_words(problem)}")
    seconds = in_turns(replays, bench.timer, rounds=ROUNDS, round_s=ROUND_S)
    taken_s = {name: spread_of(s, copies * repeats).median for name, s in seconds.items()}
    return PointwisePoint(
        kernel=kernel,
        tokens=tokens,
        hidden_size=hidden,
        ours_s=taken_s.pop("ours"),
        compiled_s=taken_s,
        error=error,
        problem="; ".join(problems),
    )


def _all_sets(ours: Lone, compiled: Plain, repeats: int) -> Callable[[], None]:
    """The compiled function on each set of the engine's own tensors."""
    calls = [_arguments(ours, placed) for placed in ours.program] * repeats

    @torch.no_grad()
    def run() -> None:
        # Kept until the end: each has memory of its own, as ours have.
        _ = [compiled(*arguments) for arguments in calls]

    return run


def _difference(ours: Lone, compiled: Plain) -> float:
    """The largest relative error over what the op writes, from one and the same start."""
    first = next(iter(ours.program))
    written = [ours.tensor(first, b) for b, _ in demand_of(first.op).writes]
    before = [tensor.clone() for tensor in written]
    ours.run()
    expected = [tensor.clone() for tensor in written]
    for tensor, start in zip(written, before, strict=True):
        tensor.copy_(start)
    with torch.no_grad():
        returned = compiled(*_arguments(ours, first))
    if returned is not None:
        written[-1] = returned
    return max(relative_error(e, t) for e, t in zip(expected, written, strict=True))


def _arguments(ours: Lone, placed: PlacedOp) -> tuple[Any, ...]:
    """What PLAIN's function of this op takes."""
    op = placed.op
    match op:
        case ops.Norm():
            assert op.delta is not None  # the norm within a layer takes up what came before
            named = (op.source, op.delta, op.weight)
            return (*(ours.tensor(placed, buffer) for buffer in named), op.epsilon)
        case ops.RotaryWrite():
            tables = ours.memory.rotary_tables(op.rope_theta, op.head_dim, op.kv.shape[3])
            qkv, kv = ours.tensor(placed, op.qkv), ours.tensor(placed, op.kv)
            return (qkv, kv, *tables, op.start_tokens, op.num_heads, op.num_key_value_heads)
        case ops.GatedActivation():
            return ours.tensor(placed, op.source), ours.tensor(placed, op.output)
        case ops.ResidualAdd():
            return tuple(ours.tensor(placed, b) for b in (op.source, op.delta, op.output))
        case _:
            raise TypeError(f"{op.name} is not pointwise")


def _norm(source: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    total = source + delta
    wide = total.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
    source.copy_(total)
    # Returned, not written into a tensor that is given: of two tensors written beside a reduction
    # torch 2.13's inductor loses one (KeyError: 'buf6').
    return (wide * scale).to(source.dtype) * weight


def _rotary_write(
    qkv: Tensor,
    kv: Tensor,
    cos: Tensor,
    sin: Tensor,
    start: int,
    num_heads: int,
    num_key_value_heads: int,
) -> None:
    sequences, head_dim = kv.shape[1], kv.shape[4]
    rows = qkv.view(sequences, -1, num_heads + 2 * num_key_value_heads, head_dim)
    query, key, value = rows.split([num_heads, num_key_value_heads, num_key_value_heads], dim=2)
    positions = slice(start, start + rows.shape[1])
    cos, sin = cos[positions, None, :], sin[positions, None, :]
    kv[0, :, :, positions] = _rotated(key, cos, sin).transpose(1, 2)
    kv[1, :, :, positions] = value.transpose(1, 2)
    query.copy_(_rotated(query, cos, sin))


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = heads.float()
    low, high = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-high, low), dim=-1) * sin).to(heads.dtype)


def _gated_activation(gate_up: Tensor, out: Tensor) -> None:
    gate, up = gate_up.float().chunk(2, dim=-1)
    out.copy_(functional.silu(gate) * up)


def _residual_add(source: Tensor, delta: Tensor, out: Tensor) -> None:
    out.copy_(source + delta)


PLAIN: dict[type, Plain] = {
    ops.Norm: _norm,
    ops.RotaryWrite: _rotary_write,
    ops.GatedActivation: _gated_activation,
    ops.ResidualAdd: _residual_add,
}


def _mean_line(kernel: str, points: Sequence[PointwisePoint]) -> str:
    ratios = [p.ratio for p in points if p.kernel == kernel and p.ratio is not None]
    if not ratios:
        return f"{kernel}: nothing to compare"
    mean = exp(sum(map(log, ratios)) / len(ratios))
    return (
        f"{kernel}: ours over compiled {mean:.3f} in the mean, {min(ratios):.3f} to "
        f"{max(ratios):.3f} over {len(ratios)} shapes"
    )

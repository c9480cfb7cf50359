"""Which of torch's ways to multiply is fastest, shape by shape: would a choice per shape pay?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from layerwise.hw.figures.bench import (
    Bench,
    best_of,
    copies_for,
    decoder,
    one_layer,
    ops_of,
    rotating,
)
from layerwise.hw.figures.report import Verdict
from layerwise.hw.instrument.timing import Replay, graphed, in_turns, spread_of
from layerwise.hw.sweep import let_go
from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.workload import Workload

ROWS = (1, 8, 32, 128, 1024)
PROMPT_ROWS = 10_000
# What is worth a choice per shape.
WORTH = 0.03
# A graph of short ones holds so many, so that the launch of the next graph is behind them.
MIN_CALLS, SHORT_FLOPS = 12, 10**11
ROUNDS, ROUND_S = 3, 0.004
ENGINE = "mm"

Multiply = Callable[[Tensor, Tensor, Tensor], object]
"""(source [rows, inner], weight [columns, inner], out [rows, columns]); `out` may be ignored."""


def _mm(source: Tensor, weight: Tensor, out: Tensor) -> object:
    return torch.mm(source, weight.t(), out=out)


def _linear(source: Tensor, weight: Tensor, out: Tensor) -> object:
    return functional.linear(source, weight)


# Name -> (library asked for, "" the one that torch takes by itself; the call). `mm` is what the
# engine does; "mm again" is the same, and shows how far two readings of one thing lie apart.
VARIANTS: dict[str, tuple[str, Multiply]] = {
    ENGINE: ("", _mm),
    "mm again": ("", _mm),
    "mm cublas": ("cublas", _mm),
    "mm cublaslt": ("cublaslt", _mm),
    "linear cublas": ("cublas", _linear),
    "linear cublaslt": ("cublaslt", _linear),
}


@dataclass(frozen=True, kw_only=True)
class MatmulPoint:
    """Seconds of one shape by variant. `warm`: one weight over and over, from the L2."""

    what: str
    rows: int
    columns: int
    inner: int
    warm: bool
    seconds: Mapping[str, float]

    @property
    def best(self) -> str:
        """The fastest variant."""
        return best_of(self.seconds)

    @property
    def gain(self) -> float:
        """How much of the engine's time the best one saves."""
        return 1.0 - self.seconds[self.best] / self.seconds[ENGINE]

    @property
    def line(self) -> str:
        """One row of the table."""
        times = ", ".join(f"{name} {1e6 * each:.2f}" for name, each in self.seconds.items())
        heat = "warm" if self.warm else "cold"
        return (
            f"{self.what:18} m{self.rows:<6}{heat}: {times} us; best {self.best}, "
            f"saves {self.gain:.1%}"
        )


@dataclass(frozen=True, kw_only=True)
class Matmuls:
    """All shapes."""

    points: tuple[MatmulPoint, ...]

    @property
    def noise(self) -> float:
        """The largest difference of `mm` from itself, over the shapes."""
        return max(abs(p.seconds["mm again"] / p.seconds[ENGINE] - 1.0) for p in self.points)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """None: it decides whether calibration should choose."""
        return ()

    @property
    def lines(self) -> tuple[str, ...]:
        """Where a choice pays, and the whole table."""
        paying = [point for point in self.points if point.gain > WORTH]
        pays = f"at {len(paying)} of {len(self.points)} shapes"
        noise = f"mm differs from itself by up to {self.noise:.1%}"
        return (
            f"a choice per shape saves more than {WORTH:.0%} {pays}; {noise}",
            *(point.line for point in self.points),
        )


def matmuls(bench: Bench) -> Matmuls:
    """The four matmuls of the paper's layer, and of the small one, which is warm where it lives."""
    paper, small = decoder(4096), decoder(1024)
    return matmul_points(
        bench,
        [
            *((paper, rows, False) for rows in (*ROWS, PROMPT_ROWS)),
            *((small, rows, warm) for warm in (True, False) for rows in ROWS),
        ],
        VARIANTS,
    )


def matmul_points(
    bench: Bench,
    layers: Sequence[tuple[ModelSpec, int, bool]],
    variants: Mapping[str, tuple[str, Multiply]],
) -> Matmuls:
    """(model, rows, warm) -> each of its layer's matmuls by every variant, in turns."""
    points: list[MatmulPoint] = []
    for model, rows, warm in layers:
        bench.progress(f"figures: matmuls of hidden {model.hidden_size}, {rows} rows")
        workload = Workload(batch_size=rows, context_tokens=1, num_microbatches=1)
        for op in ops_of(one_layer(bench, model, workload)).values():
            if isinstance(op, ops.Matmul):
                points.append(_point(bench, f"h{model.hidden_size} {op.name}", op, warm, variants))
                let_go(bench.device)
    return Matmuls(points=tuple(points))


def _point(
    bench: Bench,
    what: str,
    op: ops.Matmul,
    warm: bool,
    variants: Mapping[str, tuple[str, Multiply]],
) -> MatmulPoint:
    copies = 1 if warm else copies_for(op, bench.l2_bytes)
    part = rotating(op, copies, bench.device)
    sets: list[tuple[Tensor, Tensor, Tensor]] = []
    for placed in part.program:
        own = placed.op
        assert isinstance(own, ops.Matmul)
        source, weight, out = (part.tensor(placed, b) for b in (own.source, own.weight, own.output))
        sets.append((source, weight, out))
    is_short = demand_of(op).flops < SHORT_FLOPS
    calls = sets * (max(1, MIN_CALLS // copies) if is_short else 1)
    replays = {
        name: _replay(bench, calls, library, call) for name, (library, call) in variants.items()
    }
    seconds = in_turns(replays, bench.timer, rounds=ROUNDS, round_s=ROUND_S)
    return MatmulPoint(
        what=what,
        rows=op.rows,
        columns=op.columns,
        inner=op.inner,
        warm=warm,
        seconds={name: spread_of(each, len(calls)).median for name, each in seconds.items()},
    )


def _replay(
    bench: Bench, calls: Sequence[tuple[Tensor, Tensor, Tensor]], library: str, call: Multiply
) -> Replay:
    def run() -> None:
        for tensors in calls:
            call(*tensors)

    def run_on_library() -> None:
        with blas_library(library), torch.no_grad():
            run()

    return graphed(run_on_library, bench.device)


@contextmanager
def blas_library(name: str) -> Iterator[None]:
    """Within it, torch's matmuls prefer this library; an empty name changes nothing."""
    if not name:
        yield
        return
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library(name)
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)

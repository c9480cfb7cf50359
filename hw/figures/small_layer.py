"""A layer that lives in the L2, beside the plain layer as torch and `torch.compile` run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from layerwise.hw.figures.bench import (
    Bench,
    Lone,
    decoder,
    in_words,
    lone,
    one_layer,
    relative_error,
    replay_of,
)
from layerwise.hw.figures.plain_layer import PlainLayer
from layerwise.hw.figures.report import Verdict
from layerwise.hw.instrument.timing import Replay, Spread, graphed, in_turns, spread_of
from layerwise.hw.kernels.attention import BACKENDS
from layerwise.sim.plan import ops
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.program import PlacedOp
from layerwise.sim.plan.workload import Workload

BAR_S = 32e-6
# Two orders of the same bf16 sums differ by less; other work differs by far more.
MAX_ERROR = 2e-2
STEPS_PER_GRAPH = 16
ROUNDS, ROUND_S = 11, 0.02
# Small against what a layer adds, so that a wrong layer cannot hide behind its residual.
INPUT_STD = 0.05

Compile = Callable[[PlainLayer], Callable[..., Tensor]]
"""A way to run a plain layer."""


def _plain(layer: PlainLayer) -> Callable[..., Tensor]:
    return layer


def _default(layer: PlainLayer) -> Callable[..., Tensor]:
    return torch.compile(layer, dynamic=False)


def _autotuned(layer: PlainLayer) -> Callable[..., Tensor]:
    return torch.compile(layer, dynamic=False, mode="max-autotune-no-cudagraphs")


# Name -> (how it is run, attention kernel; "" is torch's own choice).
RIVALS: dict[str, tuple[Compile, str]] = {
    "plain torch": (_plain, ""),
    "plain torch, cudnn": (_plain, "cudnn"),
    "compile": (_default, ""),
    "compile, cudnn": (_default, "cudnn"),
    "compile max-autotune": (_autotuned, ""),
    "compile max-autotune, cudnn": (_autotuned, "cudnn"),
}


@dataclass(frozen=True, kw_only=True)
class SmallLayer:
    """Seconds a step of the engine and of each rival, each in a graph of several steps.

    `errors` of each rival's output against the engine's; `problems` of those that did not run, or
    did other work and are not compared.
    """

    engine_s: Spread
    rivals_s: Mapping[str, Spread]
    errors: Mapping[str, float]
    problems: Mapping[str, str]

    @property
    def best_compiled(self) -> str:
        """The fastest compiled rival that did the same work; empty when there is none."""
        compiled = [name for name in self.rivals_s if name.startswith("compile")]
        return min(compiled, key=lambda name: self.rivals_s[name].median, default="")

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Its own bar, and below the best that torch.compile gives."""
        best = self.best_compiled
        ratio = self.engine_s.median / self.rivals_s[best].median if best else None
        note = best or "; ".join(f"{k}: {v}" for k, v in self.problems.items())
        return (
            Verdict(
                what="hidden-1024 layer, warm",
                sense="at most",
                bar=BAR_S,
                seen=self.engine_s.median,
                unit="seconds",
            ),
            Verdict(
                what="hidden-1024 layer against torch.compile",
                sense="below",
                bar=1.0,
                seen=ratio,
                unit="ratio",
                note=note,
            ),
        )

    @property
    def lines(self) -> tuple[str, ...]:
        """Every rival, fast or failed."""
        rivals = sorted(self.rivals_s.items(), key=lambda pair: pair[1].median)
        return (
            f"engine {_shown(self.engine_s)}",
            *(
                f"{name} {_shown(s)}, output differs by {self.errors[name]:.1e}"
                for name, s in rivals
            ),
            *(f"{name} left out: {problem}" for name, problem in self.problems.items()),
        )


def small_layer(bench: Bench) -> SmallLayer:
    """Hidden size 1024, 8 sequences at context 128: 34 MB of weights, 4 MB of KV."""
    workload = Workload(batch_size=8, context_tokens=128, num_microbatches=1)
    return against_plain(bench, decoder(1024), workload, RIVALS)


def against_plain(
    bench: Bench,
    model: ModelSpec,
    workload: Workload,
    rivals: Mapping[str, tuple[Compile, str]],
    *,
    rounds: int = ROUNDS,
    round_s: float = ROUND_S,
) -> SmallLayer:
    """Run the engine's layer and its rivals in turns, on the same weights and the same input."""
    engine = lone(one_layer(bench, model, workload), bench.device)
    source = input_of(engine)
    source.normal_(0.0, INPUT_STD)
    start, kv = source.clone(), cache_of(engine).clone()
    engine.run()
    expected = source.clone()
    replays: dict[str, Replay] = {}
    errors: dict[str, float] = {}
    problems: dict[str, str] = {}
    for name, (how, attention) in rivals.items():
        bench.progress(f"figures: hidden-{model.hidden_size} layer, {name}")
        try:
            layer = how(plain_of(model, engine))
            replay, errors[name] = _rival(bench, engine, layer, attention, start, kv, expected)
        except Exception as error:  # a compiler that is missing, or refuses, is an answer
            problems[name] = in_words(error)
            continue
        if errors[name] < MAX_ERROR:
            replays[name] = replay
        else:
            problems[name] = f"its output differs by {errors[name]:.1e}: not the same work"
    replays["engine"] = replay_of(engine, times=STEPS_PER_GRAPH)
    seconds = in_turns(replays, bench.timer, rounds=rounds, round_s=round_s)
    spreads = {name: spread_of(each, STEPS_PER_GRAPH) for name, each in seconds.items()}
    return SmallLayer(
        engine_s=spreads.pop("engine"), rivals_s=spreads, errors=errors, problems=problems
    )


def plain_of(model: ModelSpec, engine: Lone) -> PlainLayer:
    """The plain layer on the engine's own weights."""
    capacity_tokens = cache_of(engine).shape[3]
    tables = engine.memory.rotary_tables(model.rope_theta, model.head_dim, capacity_tokens)
    return PlainLayer(model, engine.weights(), *tables)


def input_of(engine: Lone) -> Tensor:
    """The residual stream that a lone layer reads and, alone on its GPU, writes."""
    first = next(iter(engine.program))
    assert isinstance(first.op, ops.Norm)  # a layer without an embedding starts with its norm
    return engine.tensor(first, first.op.source)


def cache_of(engine: Lone) -> Tensor:
    """The layer's KV cache."""
    placed, op = _cache_write(engine)
    return engine.tensor(placed, op.kv)


def position_of(engine: Lone) -> int:
    """Where the new token goes."""
    return _cache_write(engine)[1].start_tokens


def _rival(
    bench: Bench,
    engine: Lone,
    layer: Callable[..., Tensor],
    attention: str,
    start: Tensor,
    kv: Tensor,
    expected: Tensor,
) -> tuple[Replay, float]:
    """Its steps in a row, each fed by the one before as the engine's are; and its error."""
    cache, position = kv.clone(), position_of(engine)
    backend = BACKENDS[attention] if attention else None

    @torch.no_grad()
    def steps(count: int) -> Tensor:
        hidden = start
        for _ in range(count):
            hidden = layer(hidden, cache, position, backend)
        return hidden

    error = relative_error(expected, steps(1))
    return graphed(lambda: steps(STEPS_PER_GRAPH), bench.device), error


def _cache_write(engine: Lone) -> tuple[PlacedOp, ops.RotaryWrite]:
    return next((p, p.op) for p in engine.program if isinstance(p.op, ops.RotaryWrite))


def _shown(seconds: Spread) -> str:
    return f"{1e6 * seconds.median:.2f} us ({1e6 * seconds.low:.2f} to {1e6 * seconds.high:.2f})"

"""One layer's prefill against its matmuls and attention alone, under the same power cap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch

from layerwise.hw.figures.bench import (
    Bench,
    copies_for,
    lone,
    matmuls_and_attention,
    paper_stage,
    replay_of,
    rotating,
)
from layerwise.hw.figures.report import Verdict
from layerwise.hw.instrument.timing import Replay, Spread, graphed, in_turns, spread_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.plan.workload import Workload

BAR = 0.92
PROMPT_TOKENS = 10_000
ROUNDS, ROUND_S = 9, 0.06
# About a second of work: the power cap has settled.
SETTLE_ROUNDS = 3
# A square matmul far above all granularity: the best that the tensor cores show here.
PROBE_SIZE = 8192


@dataclass(frozen=True, kw_only=True)
class PrefillShare:
    """`share`: the median over rounds of the sum of the ops alone over the whole stage.

    `alone_s` by op; `flops_per_s` of the stage (its matmuls and attention over its time), of each
    matmul alone, and of the `probe`.
    """

    stage_s: Spread
    alone_s: Mapping[str, Spread]
    shares: Spread
    flops_per_s: Mapping[str, float]

    @property
    def share(self) -> float:
        """What the bar is held against."""
        return self.shares.median

    @property
    def share_of_best_rate(self) -> float:
        """The stage's rate over the best rate of a matmul seen."""
        best = max(rate for name, rate in self.flops_per_s.items() if name != "stage")
        return self.flops_per_s["stage"] / best

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """At least so much of the ops alone."""
        note = f"rounds {self.shares.low:.1%} to {self.shares.high:.1%}"
        return (
            Verdict(
                what="prefill: share of its matmuls and attention alone",
                sense="at least",
                bar=BAR,
                seen=self.share,
                unit="share",
                note=note,
            ),
        )

    @property
    def lines(self) -> tuple[str, ...]:
        """Times and rates."""
        rates = ", ".join(f"{name} {rate / 1e12:.0f}" for name, rate in self.flops_per_s.items())
        alone = ", ".join(f"{name} {1e3 * each.median:.3f}" for name, each in self.alone_s.items())
        return (
            f"prefill: stage {1e3 * self.stage_s.median:.3f} ms; alone in ms: {alone}",
            f"prefill: TFLOP/s: {rates}; {self.share_of_best_rate:.1%} of the best matmul's rate",
        )


def prefill(bench: Bench) -> PrefillShare:
    """The paper's layer and one prompt of 10,000 tokens."""
    workload = Workload(
        phase="prefill", batch_size=1, context_tokens=PROMPT_TOKENS, num_microbatches=1
    )
    return prefill_share(bench, paper_stage(bench, "prefill-1", workload), PROBE_SIZE)


def prefill_share(
    bench: Bench,
    scenario: Scenario,
    probe_size: int,
    *,
    rounds: int = ROUNDS,
    round_s: float = ROUND_S,
) -> PrefillShare:
    """Time a lone rank's step and each op of it that computes, in turns.

    Alone, an op runs through the same engine, in a graph, over rotating sets of tensors.
    """
    stage = lone(scenario, bench.device)
    computing = list(matmuls_and_attention(stage.program))
    copies = {op.name: copies_for(op, bench.l2_bytes) for op in computing}
    alone = {op.name: rotating(op, copies[op.name], bench.device) for op in computing}
    replays: dict[str, Replay] = {"stage": replay_of(stage)}
    replays |= {name: replay_of(part) for name, part in alone.items()}
    replays["probe"] = _probe(bench, scenario.model.dtype, probe_size)
    seconds = in_turns(replays, bench.timer, rounds=rounds, round_s=round_s, settle=SETTLE_ROUNDS)
    alone_s = {name: spread_of(seconds[name], copies[name]) for name in alone}
    shares = [
        sum(seconds[name][index] / copies[name] for name in alone) / stage_s
        for index, stage_s in enumerate(seconds["stage"])
    ]
    work = {"stage": sum(demand_of(op).flops for op in computing), "probe": 2 * probe_size**3}
    work |= {op.name: demand_of(op).flops for op in computing if isinstance(op, ops.Matmul)}
    taken_s = {name: median(each) / copies.get(name, 1) for name, each in seconds.items()}
    return PrefillShare(
        stage_s=spread_of(seconds["stage"]),
        alone_s=alone_s,
        shares=spread_of(shares),
        flops_per_s={name: flops / taken_s[name] for name, flops in work.items()},
    )


def _probe(bench: Bench, dtype: str, size: int) -> Replay:
    left, right, out = (
        torch.empty(size, size, dtype=getattr(torch, dtype), device=bench.device).normal_()
        for _ in range(3)
    )
    return graphed(lambda: torch.mm(left, right.t(), out=out), bench.device)

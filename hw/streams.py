"""Which steps of a run are primed, repeated and drained, and whose times count. Needs no torch.

A decoding stream is primed by its first step, repeats its middle step (which takes and gives
feedback), and is drained by its last one. Where the context grows, a repeat is the whole stream,
each step between the first and the last by itself. Other runs repeat all their steps in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from layerwise.sim.plan.program import (
    Program,
    StepPrograms,
    context_grows,
    kernel_set_hash,
    repeated_steps,
)

if TYPE_CHECKING:
    from layerwise.hw.ranks.session import Session


@dataclass(frozen=True)
class StreamPlan:
    """Which steps prime, repeat and drain. `body` pairs each step with its index in the run.

    `grows`: each step of the body has a longer context than the one before, and is timed by itself.
    """

    prologue: tuple[StepPrograms, ...]
    body: tuple[tuple[int, StepPrograms], ...]
    epilogue: tuple[StepPrograms, ...]
    grows: bool = False

    @property
    def is_stream(self) -> bool:
        """Does one repeat feed the next?"""
        return self.body[0][1].step.takes_feedback

    @property
    def rounds(self) -> tuple[tuple[int, ...], ...]:
        """Places in the body of the steps that are issued, and timed, together."""
        places = range(len(self.body))
        return tuple((place,) for place in places) if self.grows else (tuple(places),)

    def body_programs(self, rank: int) -> list[Program]:
        """What one rank repeats."""
        return [compiled.programs[rank] for _, compiled in self.body]


def plan_stream(run: Sequence[StepPrograms], *, alone: bool) -> StreamPlan:
    """Split a run. A rank alone needs neither priming nor draining: nobody waits for it."""
    body = tuple((index, run[index]) for index in repeated_steps(run))
    if alone or len(body) == len(run):
        return StreamPlan((), body, (), context_grows(run))
    return StreamPlan((run[0],), body, (run[-1],), context_grows(run))


def kernel_set_of(plan: StreamPlan, session: Session) -> str:
    """The kernels of all programs in the trace, over ranks and steps."""
    ranks = [session.rank] if session.store is None else range(session.world_size)
    programs = [program for rank in ranks for program in plan.body_programs(rank)]
    parts = tuple(chain.from_iterable(program.parts for program in programs))
    return kernel_set_hash(replace(programs[0], parts=parts))


def timed_ranks(plan: StreamPlan, session: Session) -> list[int]:
    """Whose step times count: all ranks; of a stream the last stages, where tokens come out."""
    if session.store is None:
        return [session.rank]
    placement = plan.body[0][1].placement
    if plan.is_stream:
        return [stages[-1].ranks[0] for stages in placement.replicas]
    return list(range(session.world_size))


def slowest(
    plan: StreamPlan, session: Session, per_rank: Sequence[tuple[float, ...]]
) -> tuple[float, ...]:
    """Per repeat the slowest of the ranks that count."""
    if session.store is None:
        return per_rank[0]
    ranks = timed_ranks(plan, session)
    return tuple(max(times) for times in zip(*(per_rank[rank] for rank in ranks), strict=True))


def tokens_per_step(plan: StreamPlan, session: Session) -> float:
    """Tokens that one of `untraced_step_s` computes, on the GPUs that were measured."""
    steps = [compiled.step for _, compiled in plan.body]
    replicas = len(plan.body[0][1].placement.replicas) if session.store else 1
    tokens = sum(step.num_sequences * step.query_tokens for step in steps)
    return replicas * tokens / len(plan.rounds)

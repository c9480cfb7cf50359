"""Generation: a run of many decode steps whose context grows, exactly or by sampling.

Exactly, every step is simulated at its own context. Sampled, steady steps are simulated at a few
contexts, step times between them are taken from straight lines, and contexts are added where the
lines are worst until the error they may have made is small.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from layerwise.sim.machine.blocks import BlockCache
from layerwise.sim.plan.compile import SegmentBook, compile_steps
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.program import StepPrograms
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.plan.workload import Step
from layerwise.sim.resolve import Plan
from layerwise.sim.simulate import simulate_scenario

# Steps at one context until their interval is that of a steady stream.
SETTLE_STEPS = 4
# Steps come in teeth of a key tile: few samples at even distances can all fall on the same side of
# them. So many, each moved within its share of the run by the golden ratio, do not.
FIRST_SAMPLES = 17
GOLDEN_RATIO = 0.6180339887498949
MAX_SAMPLES = 257


@dataclass(frozen=True, kw_only=True)
class Generation:
    """`num_tokens` decode steps of a batch, the context growing by one token each.

    `error_bound_s` bounds what sampling did to `total_s`; 0 when every step was simulated.
    `sampled`: (context, steady step) pairs, all contexts of the run when it is exact.
    """

    num_tokens: int
    batch_size: int
    total_s: float
    first_step_s: float
    error_bound_s: float
    sampled: tuple[tuple[int, float], ...]

    @property
    def tokens_per_s(self) -> float:
        """Of the whole batch, fill included."""
        return self.num_tokens * self.batch_size / self.total_s

    @property
    def mean_tpot_s(self) -> float:
        """Mean time between two tokens of one sequence."""
        return self.total_s / self.num_tokens

    def step_s(self, context_tokens: int) -> float:
        """The step at a context, on the line between its neighbours."""
        contexts = [context for context, _ in self.sampled]
        index = min(max(bisect_right(contexts, context_tokens), 1), len(contexts) - 1)
        (low, low_s), (high, high_s) = self.sampled[index - 1], self.sampled[index]
        return low_s + (high_s - low_s) * (context_tokens - low) / (high - low)


def generate_exactly(plan: Plan, num_tokens: int) -> Generation:
    """Simulate every step; raises SpecError like `Plan.compile`, or for fewer than two tokens."""
    _check(plan.scenario, num_tokens)
    growing = _growing(plan, num_tokens)
    run = growing.compile()
    ends = simulate_scenario(growing.scenario, run, plan.cost).step_end_s
    steps = [ends[0], *(after - before for before, after in zip(ends, ends[1:], strict=False))]
    contexts = [compiled.step.context_tokens for compiled in run]
    return Generation(
        num_tokens=num_tokens,
        batch_size=plan.scenario.workload.batch_size,
        total_s=ends[-1],
        first_step_s=ends[0],
        error_bound_s=0.0,
        # The first interval holds the pipeline's fill: the second one stands for its context.
        sampled=tuple(zip(contexts, [steps[1], *steps[1:]], strict=True)),
    )


def generate(plan: Plan, num_tokens: int, *, tolerance: float = 5e-4) -> Generation:
    """Sample steps until the bound on the total's error is below `tolerance` of it.

    The bound takes each stretch between two samples to be as far from its straight line, all
    along, as it was where the line was last tested: at the middle of the stretch before it was cut
    in two, which is at least what a smooth curve leaves of it; and the drain, a share of one step's
    growth, to be off by all of itself: with fewer microbatches than stages there may be none.
    """
    _check(plan.scenario, num_tokens)
    sampler = _Sampler(plan, num_tokens)
    first = plan.scenario.workload.context_tokens
    sampler.sample(_spread(first, first + num_tokens - 1))
    while True:
        stretches = sampler.stretches()
        bound_s = sum(stretch.bound_s for stretch in stretches) + abs(sampler.drain_s())
        total_s = sampler.total_s()
        done = bound_s <= tolerance * total_s or len(sampler.steps) >= MAX_SAMPLES
        wanted = [s.middle for s in stretches if s.high - s.low > 1 and s.bound_s > 0]
        if done or not wanted:
            break
        worst = max(stretch.bound_s for stretch in stretches)
        sampler.sample(
            [s.middle for s in stretches if s.high - s.low > 1 and s.bound_s >= worst / 4]
        )
    return Generation(
        num_tokens=num_tokens,
        batch_size=plan.scenario.workload.batch_size,
        total_s=total_s,
        first_step_s=sampler.first_step_s,
        error_bound_s=bound_s,
        sampled=tuple(sorted(sampler.steps.items())),
    )


def _spread(first: int, last: int) -> list[int]:
    """The two ends, and contexts between them, one in each share of the run at an uneven place."""
    count = min(FIRST_SAMPLES, last - first + 1)
    share = (last - first) / (count - 1)
    inner = [
        first + round((index - 0.5 + index * GOLDEN_RATIO % 1) * share)
        for index in range(1, count - 1)
    ]
    return [first, *inner, last]


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Contexts between two samples, and how much time the line between them may be off."""

    low: int
    high: int
    bound_s: float

    @property
    def middle(self) -> int:
        return (self.low + self.high) // 2


class _Sampler:
    """Steady steps by context; a call simulates all contexts it is given as one stream."""

    def __init__(self, plan: Plan, num_tokens: int) -> None:
        self.plan, self.growing = plan, _growing(plan, num_tokens)
        self.run = _growing(plan, num_tokens, num_steps=3).compile()
        self.capacity = plan.scenario.workload.context_tokens + num_tokens - 1
        self.book, self.blocks = SegmentBook(), BlockCache(plan.cost)
        self.steps: dict[int, float] = {}
        self.first_step_s = 0.0

    def sample(self, contexts: Sequence[int]) -> None:
        """Simulate steady steps at contexts that are not known yet."""
        new = sorted(set(contexts) - self.steps.keys())
        run = self._stream(new)
        growing, cost = self.growing.scenario, self.plan.cost
        ends = simulate_scenario(growing, run, cost, blocks=self.blocks).step_end_s
        if not self.steps:
            self.first_step_s = ends[0]
        for index, context in enumerate(new):
            last = (index + 1) * SETTLE_STEPS
            self.steps[context] = ends[last - 1] - ends[last - 2]

    def _stream(self, contexts: Sequence[int]) -> list[StepPrograms]:
        """SETTLE_STEPS at each context, chained like any stream, and one more that ends it."""
        sizes = self.run[0].step.microbatch_sizes
        all_contexts = [context for context in contexts for _ in range(SETTLE_STEPS)]
        all_contexts.append(contexts[-1])
        steps = [
            Step(
                phase="decode",
                microbatch_sizes=sizes,
                query_tokens=1,
                context_tokens=context,
                kv_capacity_tokens=self.capacity,
                takes_feedback=index > 0,
                gives_feedback=index < len(all_contexts) - 1,
            )
            for index, context in enumerate(all_contexts)
        ]
        plan = self.plan
        return compile_steps(plan.scenario.model, plan.placement, steps, plan.kernels, self.book)

    def total_s(self) -> float:
        """The first step from idle, one steady step at each further context, and the drain."""
        return self.first_step_s + self._sum_s() - self.steps[min(self.steps)] + self.drain_s()

    def drain_s(self) -> float:
        """What the drain takes beyond the fill, which the first step holds: it is at the last context.

        Either passes all stages but one; a steady step is as long as all its microbatches, or stages.
        """
        step = self.run[0]
        stages = step.placement.num_stages
        share = (stages - 1) / max(stages, len(step.step.microbatch_sizes))
        return share * (self.steps[max(self.steps)] - self.steps[min(self.steps)])

    def _sum_s(self) -> float:
        """Sum of the lines over every context of the run."""
        points = sorted(self.steps.items())
        total = points[0][1]
        for (low, low_s), (high, high_s) in zip(points, points[1:], strict=False):
            width = high - low
            # The contexts low + 1 .. high of a straight line.
            total += width * low_s + (high_s - low_s) * (width + 1) / 2
        return total

    def stretches(self) -> list[_Stretch]:
        """Every gap between samples, with a bound from how far its neighbours are from a line."""
        points = sorted(self.steps.items())
        off = {
            middle[0]: abs(middle[1] - _on_line(low, high, middle[0]))
            for low, middle, high in zip(points, points[1:], points[2:], strict=False)
        }
        found: list[_Stretch] = []
        for (low, _), (high, _) in zip(points, points[1:], strict=False):
            worst = max(off.get(low, 0.0), off.get(high, 0.0))
            found.append(_Stretch(low, high, worst * (high - low - 1)))
        return found


def _on_line(low: tuple[int, float], high: tuple[int, float], context: int) -> float:
    share = (context - low[0]) / (high[0] - low[0])
    return low[1] + share * (high[1] - low[1])


def _growing(plan: Plan, num_tokens: int, num_steps: int = 0) -> Plan:
    """The plan as a run of steps, with a cache that has room for all tokens."""
    num_steps = num_steps or num_tokens
    growing = replace(plan.scenario.run, num_steps=num_steps, context_growth_tokens=1, only_rank=-1)
    return plan.with_run(growing)


def _check(scenario: Scenario, num_tokens: int) -> None:
    if scenario.workload.phase != "decode":
        raise SpecError(
            "workload.phase", scenario.workload.phase, "generates no tokens", "use 'decode'"
        )
    if num_tokens < 2:
        raise SpecError("num_tokens", num_tokens, "is too few to have a step time", "use 2 or more")

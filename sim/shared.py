"""What predictions of many scenarios share: each program is compiled once, each block walked once.

Scenarios of a sweep differ in a number or two. Decode programs that differ in their context alone
are one template, completed from it as a growing context completes it; layers of one model are the
same segments wherever they stand.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from layerwise.sim.cost.model import CostModel
from layerwise.sim.machine.blocks import BlockCache
from layerwise.sim.memory import Held
from layerwise.sim.plan.compile import KernelChoice, SegmentBook, compile_steps
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.placement import Placement
from layerwise.sim.plan.program import StepPrograms
from layerwise.sim.plan.scenario import steps_of
from layerwise.sim.plan.workload import Step
from layerwise.sim.resolve import Plan


@dataclass(eq=False)
class Shared:
    """What scenarios of one cluster under one belief have in common; it grows with each of them."""

    cost: CostModel
    blocks: BlockCache = field(init=False)
    books: dict[tuple[object, ...], SegmentBook] = field(
        default_factory=dict[tuple[object, ...], SegmentBook]
    )
    held: dict[tuple[int, ...], Held] = field(default_factory=dict[tuple[int, ...], Held])
    runs: dict[tuple[object, ...], list[StepPrograms]] = field(
        default_factory=dict[tuple[object, ...], list[StepPrograms]]
    )

    def __post_init__(self) -> None:
        self.blocks = BlockCache(self.cost)

    def compile(self, plan: Plan) -> list[StepPrograms]:
        """Compile as `Plan.compile`, but that templates may be of another context and KV capacity."""
        model, placement, kernels = plan.scenario.model, plan.placement, plan.kernels
        steps = steps_of(plan.scenario)
        alike = tuple(_without_context(step) for step in steps)
        key = (model, placement, kernels, alike)
        run = self.runs.get(key)
        if run is None:
            book = self._book(model, placement, kernels)
            run = compile_steps(model, placement, alike, kernels, book)
            self.runs[key] = run
        return [replace(one, step=step) for one, step in zip(run, steps, strict=True)]

    def _book(self, model: ModelSpec, placement: Placement, kernels: KernelChoice) -> SegmentBook:
        """Segments are a model's; programs also a placement's."""
        segments = self.books.setdefault((model, kernels), SegmentBook())
        own = SegmentBook(layers=segments.layers, edges=segments.edges)
        return self.books.setdefault((model, kernels, placement), own)


def _without_context(step: Step) -> Step:
    """A step that decodes, with one token in its cache: `Program.at` gives it any other number."""
    if step.query_tokens > 1:
        return step
    return replace(step, context_tokens=1, kv_capacity_tokens=1)

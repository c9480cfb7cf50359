"""How many tokens the sequences have now: as the op says, or counted on the device.

A captured graph replays the same arguments for ever. So that one graph serves a context that grows,
the count lies on the device: kernels read it, and the last layer's gated activation, which nobody
who reads it follows in the same step, counts on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from layerwise.hw.kernels.dispatch import Context
from layerwise.sim.plan import ops
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.program import PlacedOp, Program


class Contexts(Protocol):
    """The context of each op, and who counts on."""

    def of(self, placed: PlacedOp, context_tokens: int) -> Context: ...
    def growing_after(self, placed: PlacedOp) -> tuple[Tensor | None, int]: ...


class StatedContexts:
    """Every op has the context that it states."""

    def of(self, placed: PlacedOp, context_tokens: int) -> Context:
        """The context as stated."""
        return context_tokens

    def growing_after(self, placed: PlacedOp) -> tuple[Tensor | None, int]:
        """Nothing grows."""
        return None, 0


class DeviceContexts:
    """One count per microbatch, int32 [1], that starts at the first step's context.

    A microbatch's ops follow one another on one stream, and the next microbatch has a count of its
    own: so no kernel reads a count while another one writes it.
    """

    def __init__(
        self, program: Program, context_tokens: int, growth_tokens: int, device: torch.device
    ) -> None:
        self._start_tokens, self._growth_tokens = context_tokens, growth_tokens
        self._last_layer = max(part.layer for part in program.parts)
        microbatches = {part.microbatch for part in program.parts}
        self._counts = {
            each: torch.full((1,), context_tokens, dtype=torch.int32, device=device)
            for each in sorted(microbatches)
        }

    def of(self, placed: PlacedOp, context_tokens: int) -> Context:
        """The count on the device, whatever the op stated when it was compiled."""
        return self._counts[placed.microbatch]

    def growing_after(self, placed: PlacedOp) -> tuple[Tensor | None, int]:
        """(the count, by how much it grows) at the last op that can carry it; else (None, 0)."""
        if placed.layer != self._last_layer or not isinstance(placed.op, ops.GatedActivation):
            return None, 0
        return self._counts[placed.microbatch], self._growth_tokens

    def restart(self) -> None:
        """Back to the first step's context, in the order of the current stream."""
        for count in self._counts.values():
            count.fill_(self._start_tokens)


def check_growth(programs: Sequence[Program], launch: str, steps_per_graph: int) -> None:
    """Refuse a growing context that a graph could not follow.

    Raises SpecError, with what to change, for attention kernels that take the context as a shape.
    """
    if launch != "graph":
        return
    if steps_per_graph > 1:
        raise SpecError(
            "run.steps_per_graph",
            steps_per_graph,
            "cannot hold a context that grows",
            "use 1, or run.context_growth_tokens=0",
        )
    kernels = {
        op.kernel
        for program in programs
        for segment in {part.segment for part in program.parts}
        for op in segment.ops
        if isinstance(op, ops.Attention)
    }
    for kernel in sorted(kernels - {"split_kv"}):
        raise SpecError(
            "kernels.decode_attention",
            kernel,
            "takes the context as a shape, so a graph of it serves one context only",
            "use 'split_kv', which reads it on the device, or run.launch='eager'",
        )

"""A piece of a rank's work as it meets it again, in every step and in every run of its program."""

from __future__ import annotations

from dataclasses import dataclass, field

from layerwise.sim.machine.blocks import Block, Named
from layerwise.sim.machine.l2 import Entry
from layerwise.sim.machine.links import Channel, Load
from layerwise.sim.machine.work import Work
from layerwise.sim.plan.ops import BufferKey

# What an L2 holds, and the weights whose windows hold their lines.
State = tuple[tuple[Entry, ...], frozenset[BufferKey]]
NOTHING: State = ((), frozenset())


@dataclass(slots=True, eq=False)
class Task:
    """A piece of work as one rank meets it again in every step.

    `received`: the receives right before a block, whose buffers it finds in the L2. `moves`: where
    each state of the L2 leads, and the block found on the way; of blocks whose caches still fit
    the L2 by context, and of others once.
    """

    work: Work
    named: Named | None = None
    received: tuple[Work, ...] = ()
    moves: dict[tuple[int, int], tuple[Block | None, int]] = field(
        default_factory=dict[tuple[int, int], tuple[Block | None, int]]
    )
    channel: Channel | None = None
    load: Load | None = None
    meets: tuple[object, ...] = ()

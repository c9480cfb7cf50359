"""What a program does to the L2 of its rank, named so that ranks which do the same share it.

Layers are counted from the rank's first one, and of peers only their number and their wires count:
so the middle stages of a pipeline take one route, in every step and in every run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from layerwise.sim.machine.blocks import Block, BlockCache, Named, Timed
from layerwise.sim.machine.l2 import Entry, L2State
from layerwise.sim.machine.work import Work
from layerwise.sim.plan import ops
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.ops import Buffer, BufferKey, Op
from layerwise.sim.plan.program import Part, Program, Segment

# What an L2 holds, and the weights whose windows hold their lines.
State = tuple[tuple[Entry, ...], frozenset[BufferKey]]
NOTHING: State = ((), frozenset())
Received = tuple[Buffer, int, int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an L2 changes: at a block, `received` right before it, or at a collective.

    `received`: buffers that messages have filled, each with its layer and microbatch.
    """

    parts: tuple[Part, ...]
    received: tuple[Received, ...] = ()
    is_collective: bool = False


@dataclass(slots=True, eq=False)
class Stop:
    """A place on a route. `named`: its parts, where they are a block.

    `moves`: where each state of the L2 leads, and the block found on the way; of blocks whose
    caches still fit the L2 by context, and of others once.
    """

    place: Place
    named: Named | None
    moves: dict[tuple[int, int], tuple[Block | None, int]] = field(
        default_factory=dict[tuple[int, int], tuple[Block | None, int]]
    )


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """The stops of a program in order."""

    stops: tuple[Stop, ...]


@dataclass(slots=True, eq=False)
class Atlas:
    """Routes of one machine, and the states of the L2 that were met on them, by token."""

    routes: dict[tuple[object, ...], Route] = field(default_factory=dict[tuple[object, ...], Route])
    tokens: dict[State, int] = field(default_factory=lambda: {NOTHING: 0})
    states: list[State] = field(default_factory=lambda: [NOTHING])

    def remember(self, state: State) -> int:
        """The token of a state of the L2."""
        token = self.tokens.setdefault(state, len(self.states))
        if token == len(self.states):
            self.states.append(state)
        return token


# Of one run: by route, state and context, the blocks of a pass and the state after it.
Passes = dict[tuple[Route, int, int], tuple[list[Timed], int]]


class Traveller:
    """The L2 of one rank on its way through the routes of its programs."""

    __slots__ = ("_atlas", "_blocks", "_l2", "_passes", "_token")

    def __init__(self, l2: L2State, blocks: BlockCache, atlas: Atlas, passes: Passes) -> None:
        self._l2, self._blocks, self._atlas, self._passes = l2, blocks, atlas, passes
        self._token = 0

    def route_of(
        self, program: Program, work: list[Work], cluster: ClusterSpec, *, alone: bool
    ) -> Route:
        """The route of a program: one for all GPUs as fast, with an L2 set aside alike."""
        l2 = self._l2
        # By identity: nothing that belongs to the blocks may keep them alive.
        shape = _shape_of(program, work, cluster)
        key = (*shape, id(self._blocks), l2.persisting, l2.left, l2.set_aside)
        found = self._atlas.routes.get(key)
        if found is None:
            stops = tuple(
                Stop(place, None if place.is_collective else self._blocks.name(place.parts))
                for place in _places_of(work, alone=alone)
            )
            found = self._atlas.routes[key] = Route(stops)
        return found

    def travel(self, route: Route, context_tokens: int) -> list[Timed]:
        """Go all the way; return its blocks, as long as they take at this context."""
        key = (route, self._token, context_tokens)
        found = self._passes.get(key)
        if found is None:
            blocks = [self._stop(stop, context_tokens) for stop in route.stops]
            timed = [block.at(context_tokens) for block in blocks if block is not None]
            found = self._passes[key] = (timed, self._token)
        timed, self._token = found
        return timed

    def _stop(self, stop: Stop, context_tokens: int) -> Block | None:
        """Move the L2 through one stop, remembering where each state leads."""
        named = stop.named
        changes = named is not None and not named.pattern.outgrows(
            self._l2.limit_bytes, context_tokens
        )
        key = (self._token, context_tokens if changes else 0)
        found = stop.moves.get(key)
        if found is None:
            entries, kept = self._atlas.states[self._token]
            self._l2.entries, self._l2.kept = list(entries), set(kept)
            block = self._move(stop, context_tokens)
            after = (tuple(self._l2.entries), frozenset(self._l2.kept))
            found = stop.moves[key] = (block, self._atlas.remember(after))
        block, self._token = found
        return block

    def _move(self, stop: Stop, context_tokens: int) -> Block | None:
        if stop.named is not None:
            for buffer, layer, microbatch in stop.place.received:
                self._l2.receive(buffer, layer, microbatch)
            return self._blocks.run(stop.named, self._l2, context_tokens)
        # A collective leaves its buffer in the L2.
        (part,) = stop.place.parts
        self._l2.traffic_of(part.segment.ops[0], part.layer, part.microbatch)
        return None


def _shape_of(program: Program, work: list[Work], cluster: ClusterSpec) -> list[object]:
    """What tells routes apart: ops, or the buffers of receives, and where they stand.

    The same parts are cut into as many works only where they are cut in the same places.
    """
    first = _first_layer(program.parts)
    names: dict[Segment, tuple[object, ...]] = {}
    shape: list[object] = [len(work)]
    for segment, _, layer, microbatch in program.parts:
        name = names.get(segment)
        if name is None:
            name = names[segment] = tuple([_name_of(op, cluster) for op in segment.ops])
        shape += (name, layer - first, microbatch)
    return shape


def _name_of(op: Op, cluster: ClusterSpec) -> object:
    """What an op is to the L2 and the clock of its rank, whoever its peers are.

    Local ops go by identity: stages share them. The members of a collective count as many as they
    are, on so many nodes, with ports so slow.
    """
    match op:
        case ops.Send():
            return "send"
        case ops.Recv():
            return op.buffer
        case ops.AllReduce() | ops.AllGather():
            num_nodes = len({cluster.node_of(rank) for rank in op.group})
            ports = [
                cluster.port_share(wire.name, op.group) for wire in (cluster.nvlink, cluster.nic)
            ]
            return (replace(op, group=()), len(op.group), num_nodes, *ports)
        case _:
            return id(op)


def _first_layer(parts: Iterable[Part]) -> int:
    return min([part.layer for part in parts])


def _places_of(work: list[Work], *, alone: bool) -> Iterator[Place]:
    """Where work changes the L2, its layers counted from the first one.

    `alone`: peers are replaced by nothing, so messages and collectives leave nothing behind.
    """
    first = _first_layer(part for one in work for part in one.parts)
    received: tuple[Received, ...] = ()
    for one in work:
        parts = tuple(part._replace(layer=part.layer - first) for part in one.parts)
        match one.kind:
            case "block":
                yield Place(parts, received)
            case "collective" if not alone:
                yield Place(parts, is_collective=True)
            case "recv" if not alone:
                op = one.op
                assert isinstance(op, ops.Recv)
                received = (*received, (op.buffer, parts[0].layer, parts[0].microbatch))
                continue
            case _:
                pass
        received = ()

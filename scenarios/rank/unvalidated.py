"""What a placement rests on that nothing measured here has checked, and how far that is known to be off.

Collectives of four and eight GPUs are other people's timings. Of theirs with two GPUs it is known how
far they are from what this project's engine takes, payload by payload: it measured two itself. That is
taken for the error of the larger groups too. Of messages between nodes, of collectives that cross
them and of a host's time for a launch nobody knows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from layerwise.calibration.data import transfers_path
from layerwise.sim.cost.model import Calibrated
from layerwise.sim.plan import ops
from layerwise.sim.plan.ops import CollectiveOp
from layerwise.sim.predict import Prediction
from layerwise.sim.profile import TransferFit
from layerwise.sim.simulate import Simulation

# How a table's source says that it was fitted to other people's timings.
PUBLISHED = "as published by"
# The GPU of which this project has measured two.
MEASURED_PAIR = "h200"
COLLECTIVES = {
    "all_reduce.nccl": "NCCL all-reduces",
    "all_reduce.one_shot": "one-shot all-reduces",
    "all_gather.nccl": "NCCL all-gathers",
}
Pairs = Mapping[str, tuple[TransferFit, TransferFit]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing that no measurement here has checked.

    `share`: of the step, what it decides. `carried`: what its known error moves the step by, as ln;
    None: its error is not known.
    """

    name: str
    share: float
    carried: float | None = None


def measured_pairs() -> Pairs:
    """By what is done (`all_reduce.nccl`): other people's table of two GPUs, and this project's own."""
    from layerwise.calibration.transfers import read_transfers

    own_path, public_path = transfers_path(MEASURED_PAIR), transfers_path()
    if not (own_path.is_file() and public_path.is_file()):
        return {}
    own, public = read_transfers(own_path), read_transfers(public_path)
    return {
        name.removesuffix(".2"): (public[name], own[name])
        for name in sorted(own.keys() & public.keys())
        if name.endswith(".2") and is_public(public[name]) and not is_public(own[name])
    }


def is_public(table: TransferFit) -> bool:
    """Was it fitted to other people's timings?"""
    return PUBLISHED in table.source


def parts_of(found: Prediction, cost: Calibrated, pairs: Pairs) -> tuple[Part, ...]:
    """What a calibrated prediction rests on unchecked, by name; none where it has no interval."""
    if found.uncertainty is None or found.simulation is None:
        return ()
    shares = {(one.kind, one.dimensions): one.share for one in found.uncertainty.contributions}
    parts: dict[str, Part] = {}
    seen: set[tuple[object, str]] = set()
    for source, part in _resting(found.simulation, cost, pairs):
        if (source, part.name) in seen or not shares.get(source):
            continue
        seen.add((source, part.name))
        _add(parts, part, shares[source])
    if found.simulation.machine.launch == "eager":
        name = "the host's time to launch an op (one machine's)"
        parts[name] = Part(name=name, share=found.share.get("launch", 0.0))
    return tuple(parts[name] for name in sorted(parts))


def width_of_ratio(one: tuple[Part, ...], other: tuple[Part, ...]) -> float:
    """What the known errors may move the ratio of two steps by, as ln.

    A table that is off is off for both: only what it weighs more on one of them counts. Errors of
    different tables are added up: they come from the same two machines.
    """
    return sum(
        abs((first.carried or 0.0) - (second.carried or 0.0))
        for first, second in paired(one, other)
    )


def paired(one: tuple[Part, ...], other: tuple[Part, ...]) -> list[tuple[Part, Part]]:
    """The parts of either, each with the other's of this name, which may have no share."""
    pairs: dict[str, tuple[Part, Part]] = {}
    for part in one:
        pairs[part.name] = part, _absent(part)
    for part in other:
        first, _ = pairs.get(part.name, (_absent(part), part))
        pairs[part.name] = first, part
    return [pairs[name] for name in sorted(pairs)]


def _absent(part: Part) -> Part:
    return replace(part, share=0.0, carried=None if part.carried is None else 0.0)


def _add(parts: dict[str, Part], part: Part, share: float) -> None:
    """One more payload: `part` has its weight in its source's share, and its error."""
    own = part.share * share
    carried = None if part.carried is None else own * part.carried
    if before := parts.get(part.name):
        own += before.share
        if carried is not None and before.carried is not None:
            carried += before.carried
    parts[part.name] = Part(name=part.name, share=own, carried=carried)


def _resting(
    simulation: Simulation, cost: Calibrated, pairs: Pairs
) -> Iterator[tuple[tuple[str, tuple[float, ...]], Part]]:
    """For every op that meets another rank: its source in `layerwise.sim.uncertainty`, and what it rests on."""
    machine = simulation.machine
    for rank in simulation.ranks:
        # In the order of the program: a set has another one in each process, and sums follow it.
        segments = dict.fromkeys(part.segment for part in machine.run[0].template[rank].parts)
        for op in (op for segment in segments for op in segment.ops):
            match op:
                case ops.Send() | ops.Recv():
                    link = machine.cluster.link_between(rank, op.peer)
                    if is_public(cost.profile.transfers[f"send.{link.name}"]):
                        name = f"messages over {link.name} (public data)"
                        yield ("send", (op.payload_bytes,)), Part(name=name, share=1.0)
                case ops.AllReduce() | ops.AllGather():
                    kind = "all_reduce" if isinstance(op, ops.AllReduce) else "all_gather"
                    for part in _of_collective(op, cost, pairs):
                        yield (kind, (len(op.group), op.payload_bytes)), part
                case _:
                    continue


def _of_collective(op: CollectiveOp, cost: Calibrated, pairs: Pairs) -> Iterator[Part]:
    """A node's own table, and what is derived where the group crosses nodes."""
    stem = f"all_reduce.{op.algorithm}" if isinstance(op, ops.AllReduce) else "all_gather.nccl"
    nodes = {cost.cluster.node_of(rank) for rank in op.group}
    local_ranks = len(op.group) // len(nodes)
    inside = 0.0
    if local_ranks > 1:
        table = cost.profile.transfers[f"{stem}.{local_ranks}"]
        inside = min(1.0, table.seconds(op.payload_bytes) / cost.collective(op).kernel_s)
        if is_public(table):
            name = f"{COLLECTIVES[stem]} over {local_ranks} GPUs (public data)"
            error = _error(pairs, stem, op.payload_bytes)
            yield Part(name=name, share=inside, carried=error)
    if len(nodes) > 1:
        yield Part(name="collectives across nodes (derived)", share=1 - inside)


def _error(pairs: Pairs, stem: str, payload_bytes: int) -> float | None:
    """|ln(measured / public)| of two GPUs at this payload; None where no two were measured."""
    if stem not in pairs:
        return None
    public, own = pairs[stem]
    return abs(math.log(own.seconds(payload_bytes) / public.seconds(payload_bytes)))

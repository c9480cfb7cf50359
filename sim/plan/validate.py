"""Do the programs of all ranks fit together? Checked before anything runs on either side."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import closed_form_flops, demand_of
from layerwise.sim.plan.errors import DeadlockError, ProgramError
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.program import PlacedOp, Program, StepPrograms

Edge = tuple[int, int, str]


def validate_run(run: Sequence[StepPrograms]) -> None:
    """Check a run: unique names, sends and receives that match, no deadlock.

    Raises ProgramError or DeadlockError naming the ranks and ops at fault.
    """
    for compiled in run:
        for program in compiled.programs:
            _check_unique_names(program)
    _check_point_to_point(run)
    _dry_run(run)


def validate_work(model: ModelSpec, run: Sequence[StepPrograms]) -> None:
    """Check that programs compute what the model asks for: FLOPs equal the closed form.

    Raises ProgramError naming the step. Holds for every placement, so it is checked per replica.
    """
    for index, compiled in enumerate(run):
        replicas = compiled.placement.data_parallel
        found = sum(
            demand_of(op).flops
            for program in compiled.programs
            for part in program.parts
            for op in part.segment.ops
        )
        expected = replicas * closed_form_flops(model, compiled.step)
        if found != expected:
            raise ProgramError(
                f"step {index}: the programs compute {found:,} FLOPs, the model asks for "
                f"{expected:,}"
            )


def _check_unique_names(program: Program) -> None:
    counts = Counter(placed.name for placed in program)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise ProgramError(f"rank {program.rank}: op names occur more than once: {repeated[:5]}")


def _rank_ops(run: Sequence[StepPrograms], rank: int) -> Iterator[PlacedOp]:
    for compiled in run:
        yield from compiled.programs[rank]


def _check_point_to_point(run: Sequence[StepPrograms]) -> None:
    """Per directed edge and channel, the payloads sent and received are the same row."""
    sent: dict[Edge, list[int]] = defaultdict(list)
    received: dict[Edge, list[int]] = defaultdict(list)
    for rank in range(len(run[0].programs)):
        for placed in _rank_ops(run, rank):
            if isinstance(placed.op, ops.Send):
                sent[rank, placed.op.peer, placed.op.channel].append(placed.op.payload_bytes)
            elif isinstance(placed.op, ops.Recv):
                received[placed.op.peer, rank, placed.op.channel].append(placed.op.payload_bytes)
    for edge in sorted(sent.keys() | received.keys()):
        if sent[edge] != received[edge]:
            source, target, channel = edge
            raise ProgramError(
                f"{channel} messages from rank {source} to rank {target}: "
                f"{len(sent[edge])} sent, {len(received[edge])} received, "
                f"payloads {'differ' if len(sent[edge]) == len(received[edge]) else 'cannot match'}"
            )


@dataclass
class _DryRun:
    """Ranks as queues of ops; messages and collective arrivals counted as they happen."""

    queues: list[deque[PlacedOp]]
    messages: Counter[Edge] = field(default_factory=Counter)

    def advance(self, rank: int) -> bool:
        """Run one rank as far as it can go; True if it moved."""
        queue, moved = self.queues[rank], False
        while queue and self._can_run(rank, queue[0].op):
            queue.popleft()
            moved = True
        return moved

    def _can_run(self, rank: int, op: ops.Op) -> bool:
        match op:
            case ops.Send():
                self.messages[rank, op.peer, op.channel] += 1
                return True
            case ops.Recv():
                edge = (op.peer, rank, op.channel)
                arrived = self.messages[edge] > 0
                self.messages[edge] -= arrived
                return arrived
            case ops.AllReduce() | ops.AllGather():
                return self._collective(rank, op)
            case _:
                return True

    def _collective(self, rank: int, op: ops.CollectiveOp) -> bool:
        """A collective runs when it is at the head of every member's queue; one member pops all."""
        name = self.queues[rank][0].name
        heads = [self.queues[member][0] if self.queues[member] else None for member in op.group]
        if any(head is None or head.name != name or head.op != op for head in heads):
            return False
        for member in op.group:
            if member != rank:
                self.queues[member].popleft()
        return True


def _dry_run(run: Sequence[StepPrograms]) -> None:
    """Execute without time: sends leave at once (own stream), receives and collectives wait."""
    num_ranks = len(run[0].programs)
    state = _DryRun([deque(_rank_ops(run, rank)) for rank in range(num_ranks)])
    while any([state.advance(rank) for rank in range(num_ranks)]):
        pass
    stuck = [
        f"rank {rank} waits at {queue[0].name}" for rank, queue in enumerate(state.queues) if queue
    ]
    if stuck:
        raise DeadlockError("; ".join(stuck[:8]))

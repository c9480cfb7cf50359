"""A rank's step taken apart: ops, transfers and waits, what lay between, what ran side by side.

A collective's or receive's wait is told from its transfer without a common clock: a member's
transfer is the shortest span over the members, its wait the rest of its own span. In a prediction
both are known. A wait counts as far as the rank did nothing else meanwhile: a receive that is
posted ahead waits behind the compute of another microbatch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from layerwise.sim.plan import ops
from layerwise.sim.plan.program import StepPrograms
from layerwise.sim.trace import Row

RowKey = tuple[int, int, str]
"""(step, rank, op)"""

Span = tuple[float, float]
MESSAGES = ("Send", "Recv")
COLLECTIVES = ("AllReduce", "AllGather")


def op_label(name: str) -> str:
    """The op's name without its microbatch: `L07.attn.qkv@m3` is `L07.attn.qkv`."""
    return name.partition("@")[0]


@dataclass(slots=True)
class StepAccount:
    """One rank's step in one repeat, in seconds.

    `span_s` is the sum of all `work_s` and `wait_s` and `between_s`, less `overlapped_s`.
    """

    span_s: float
    overlapped_s: float = 0.0
    work_s: dict[str, float] = field(default_factory=dict)
    wait_s: dict[str, float] = field(default_factory=dict)

    @property
    def between_s(self) -> float:
        """In which nothing ran."""
        busy_s = sum(self.work_s.values()) + sum(self.wait_s.values()) - self.overlapped_s
        return self.span_s - busy_s


def members_of(
    run: Sequence[StepPrograms], ranks: Iterable[int], steps: Iterable[int]
) -> dict[RowKey, tuple[RowKey, ...]]:
    """The other members of each message and collective. A token is received one step later."""
    found: dict[RowKey, tuple[RowKey, ...]] = {}
    known = set(ranks)
    for step in steps:
        recvs: dict[tuple[int, int, str, int], RowKey] = {}
        sends: dict[tuple[int, int, str, int], RowKey] = {}
        for rank in known:
            for part in run[step].template[rank].parts:
                for op in part.segment.ops:
                    key = (step, rank, part.name_of(op))
                    match op:
                        case ops.AllReduce() | ops.AllGather():
                            others = (r for r in op.group if r != rank and r in known)
                            found[key] = tuple((step, other, key[2]) for other in others)
                        case ops.Send():
                            sends[rank, op.peer, op.channel, part.microbatch] = key
                        case ops.Recv():
                            recvs[op.peer, rank, op.channel, part.microbatch] = key
                        case _:
                            pass
        for flow in sends.keys() | recvs.keys():
            later = 1 if flow[2] == "token" else 0
            if flow in recvs and flow in sends:
                _, sender, name = sends[flow]
                found[recvs[flow]] = ((step - later, sender, name),)
                _, receiver, name = recvs[flow]
                found[sends[flow]] = ((step + later, receiver, name),)
    return found


def measured_transfers(
    rows: Iterable[Row], members: Mapping[RowKey, tuple[RowKey, ...]]
) -> dict[tuple[int, RowKey], float]:
    """The transfer of each message and collective in each repeat: the shortest span of a member.

    Where one step is repeated as a stream, what is received was sent in the repeat before. A
    partner that was not traced (the first repeat's sender) is stood in for by that of this repeat.
    """
    spans = {
        (row.repeat, (row.step, row.rank, row.op)): row.duration_s
        for row in rows
        if row.kind in (*MESSAGES, *COLLECTIVES) and not row.replaced
    }
    steps = {key[0] for _, key in spans}
    found: dict[tuple[int, RowKey], float] = {}
    for (repeat, key), own_s in spans.items():
        each = [own_s]
        for step, rank, op in members.get(key, ()):
            moved = step - key[0]
            at = (
                (repeat, (step, rank, op))
                if step in steps
                else (repeat + moved, (key[0], rank, op))
            )
            each.append(spans.get(at, spans.get((repeat, (key[0], rank, op)), own_s)))
        found[repeat, key] = min(each)
    return found


@dataclass(frozen=True, slots=True)
class _Piece:
    """A row: waits from `due_s`, works from `split_s` until `end_s`."""

    row: Row
    due_s: float
    split_s: float
    end_s: float


def measured_accounts(
    rows: Iterable[Row], members: Mapping[RowKey, tuple[RowKey, ...]]
) -> dict[tuple[int, int], dict[int, StepAccount]]:
    """By (step, rank) and repeat."""
    known = tuple(rows)
    transfers = measured_transfers(known, members)
    pieces: dict[tuple[int, int, int], list[_Piece]] = defaultdict(list)
    for row in known:
        transfer_s = transfers.get((row.repeat, (row.step, row.rank, row.op)), row.duration_s)
        split_s = max(row.start_s, row.end_s - transfer_s)
        pieces[row.step, row.rank, row.repeat].append(_Piece(row, row.start_s, split_s, row.end_s))
    found: dict[tuple[int, int], dict[int, StepAccount]] = defaultdict(dict)
    for (step, rank, repeat), each in pieces.items():
        found[step, rank][repeat] = _account(each)
    return found


def predicted_accounts(
    rows: Iterable[Row], members: Mapping[RowKey, tuple[RowKey, ...]], steps: set[int]
) -> dict[tuple[int, int], StepAccount]:
    """By (step, rank), of these steps. `rows` hold the steps around them too: senders of tokens."""
    known = tuple(rows)
    sent = {(r.step, r.rank, r.op): r.duration_s for r in known if r.kind == "Send"}
    pieces: dict[tuple[int, int], list[_Piece]] = defaultdict(list)
    for row in known:
        if row.step in steps:
            split_s, due_s = row.start_s, row.start_s
            if row.kind == "Recv":
                # It may have been on its way before it was due.
                sender = next(iter(members.get((row.step, row.rank, row.op), ())), None)
                split_s = row.end_s - sent.get(sender, row.duration_s) if sender else split_s
                due_s = row.ready_s
            elif row.kind in COLLECTIVES:
                due_s = row.ready_s
            pieces[row.step, row.rank].append(_Piece(row, due_s, split_s, row.end_s))
    return {key: _account(each) for key, each in pieces.items()}


def _account(pieces: Sequence[_Piece]) -> StepAccount:
    """Of one step of one rank."""
    begin_s = min(piece.due_s for piece in pieces)
    end_s = max(piece.end_s for piece in pieces)
    scored = [piece for piece in pieces if not piece.row.replaced]
    busy = _Union((piece.split_s, piece.end_s) for piece in scored)
    account = StepAccount(span_s=end_s - begin_s)
    until_s = begin_s
    for piece in sorted(scored, key=lambda piece: piece.due_s):
        op = piece.row.op
        account.work_s[op] = piece.end_s - piece.split_s
        if piece.row.kind in (*MESSAGES, *COLLECTIVES):
            # Of two waits at a time the later one counts from where the earlier one ends.
            account.wait_s[op] = busy.outside(max(piece.due_s, until_s), piece.split_s)
            until_s = max(until_s, piece.split_s)
    worked_s = sum(account.work_s.values())
    account.overlapped_s = worked_s - busy.length_within(begin_s, end_s)
    return account


class _Union:
    """Spans as one set of times: disjoint, in order, with how long they are up to each."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.begins: list[float] = []
        self.ends: list[float] = []
        for begin, end in sorted(spans):
            if self.ends and begin <= self.ends[-1]:
                self.ends[-1] = max(self.ends[-1], end)
            else:
                self.begins.append(begin)
                self.ends.append(end)
        self.before = [0.0]
        for begin, end in zip(self.begins, self.ends, strict=True):
            self.before.append(self.before[-1] + end - begin)

    def _upto(self, time: float) -> float:
        index = bisect_right(self.begins, time)
        if not index:
            return 0.0
        return self.before[index - 1] + min(time, self.ends[index - 1]) - self.begins[index - 1]

    def length_within(self, begin: float, end: float) -> float:
        """How much of this span is covered."""
        return max(0.0, self._upto(end) - self._upto(begin)) if end > begin else 0.0

    def outside(self, begin: float, end: float) -> float:
        """How much of it is not."""
        return max(0.0, end - begin - self.length_within(begin, end)) if end > begin else 0.0

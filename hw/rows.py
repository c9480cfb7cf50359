"""Spans of ops -> rows of a trace. Pure: no torch, no device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from layerwise.hw.errors import UnmeasuredOpError
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.ops import Buffer
from layerwise.sim.plan.program import PlacedOp, Program, buffers_of
from layerwise.sim.trace import Row

Spans = Mapping[str, tuple[float, float]]
"""Op name -> (start, end) in seconds on one clock."""

_Key = tuple[object, ...]


def rows_of(program: Program, spans: Spans, *, repeat: int, step: int, replaced: bool) -> list[Row]:
    """One row per op, in issue order, with times from the start of the step's first op.

    `ready_s` is when the stream was free and all that the op waits for had ended: writers of what
    it reads, readers of what it overwrites. With `replaced`, messages to and from other ranks are
    rows of no length at the time they were due. Raises UnmeasuredOpError for an op with no span.
    """
    names = (p.name for p in program if not (replaced and p.op.meets))
    origin = min((spans[name][0] for name in names if name in spans), default=0.0)
    stream_free: dict[str, float] = {}
    last_use: dict[_Key, float] = {}
    last_write: dict[_Key, float] = {}
    rows: list[Row] = []
    for placed in program:
        stream, (read, written) = placed.op.stream, _uses(placed)
        due = max(
            stream_free.get(stream, 0.0),
            0.0,
            *(last_write.get(key, 0.0) for key in read),
            *(last_use.get(key, 0.0) for key in written),
        )
        is_replaced = replaced and placed.op.meets is not None
        start, end = (due, due) if is_replaced else _span(placed, spans, origin, program.rank)
        rows.append(
            Row(
                repeat=repeat,
                step=step,
                rank=program.rank,
                op=placed.name,
                kind=placed.op.kind,
                stream=stream,
                ready_s=min(due, start),
                start_s=start,
                end_s=end,
                replaced=is_replaced,
            )
        )
        stream_free[stream] = end
        last_write |= dict.fromkeys(written, end)
        last_use |= dict.fromkeys((*read, *written), end)
    return rows


def _span(placed: PlacedOp, spans: Spans, origin: float, rank: int) -> tuple[float, float]:
    if placed.name not in spans:
        raise UnmeasuredOpError(
            f"rank {rank}: {placed.name} ran and no kernel of it was seen; "
            "measure with --timing events, or trace fewer repeats"
        )
    start, end = spans[placed.name]
    return start - origin, end - origin


def _uses(placed: PlacedOp) -> tuple[list[_Key], list[_Key]]:
    """Keys of the tensors read and written."""
    written = {buffer for buffer, _ in demand_of(placed.op).writes}
    keys = _keys(placed, buffers_of(placed.op))
    return (
        [key for key, buffer in keys if buffer not in written],
        [key for key, buffer in keys if buffer in written],
    )


def _keys(placed: PlacedOp, buffers: Iterable[Buffer]) -> list[tuple[_Key, Buffer]]:
    return [((*b.key(placed.layer, placed.microbatch), b.shape), b) for b in buffers]

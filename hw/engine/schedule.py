"""What the host does, in which order: a program with its receives posted ahead.

A receive is posted as soon as the last op before it that touches its buffer is issued. So the
message of microbatch k + 1 travels while microbatch k computes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from layerwise.hw.engine.memory import TensorKey, tensor_key
from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.ops import Buffer
from layerwise.sim.plan.program import PlacedOp, buffers_of

Verb = Literal["run", "post", "wait"]
LABEL_BYTES = 64


@dataclass(frozen=True, slots=True)
class Action:
    """Launch an op, post a receive, or wait for one that was posted.

    `sent_before`: a buffer that the op overwrites and that a send may still be reading. `label`:
    the op's name in LABEL_BYTES bytes, for whoever looks where a rank is.
    """

    verb: Verb
    placed: PlacedOp
    sent_before: Buffer | None = None
    label: bytes = b""


def actions_of(program: Iterable[PlacedOp]) -> tuple[Action, ...]:
    """The actions of one step, in issue order."""
    placed_ops = tuple(program)
    sent = {_key(p, p.op.buffer) for p in placed_ops if isinstance(p.op, ops.Send)}
    posts = _posts(placed_ops)
    actions: list[Action] = []
    for index, placed in enumerate(placed_ops):
        actions += [Action("post", each, None, label_of(each.name)) for each in posts[index]]
        verb: Verb = "wait" if isinstance(placed.op, ops.Recv) else "run"
        overwritten = _overwritten(placed, sent)
        actions.append(Action(verb, placed, overwritten, label_of(placed.name)))
    return tuple(actions)


@lru_cache(maxsize=65_536)
def label_of(name: str) -> bytes:
    """A name in LABEL_BYTES bytes, cut or filled with spaces."""
    return name.encode()[:LABEL_BYTES].ljust(LABEL_BYTES)


def _posts(placed_ops: tuple[PlacedOp, ...]) -> dict[int, list[PlacedOp]]:
    """Index of an op -> the receives to post before it. Receives stay in order."""
    posts: dict[int, list[PlacedOp]] = defaultdict(list)
    touched: dict[TensorKey, int] = {}
    earliest = 0
    for index, placed in enumerate(placed_ops):
        if isinstance(placed.op, ops.Recv):
            free_from = touched.get(_key(placed, placed.op.buffer), -1) + 1
            earliest = max(earliest, free_from)
            posts[earliest].append(placed)
        for buffer in buffers_of(placed.op):
            touched[_key(placed, buffer)] = index
    return posts


def _overwritten(placed: PlacedOp, sent: set[TensorKey]) -> Buffer | None:
    if not sent or isinstance(placed.op, ops.Send | ops.Recv):
        return None
    written = (buffer for buffer, _ in demand_of(placed.op).writes)
    return next((buffer for buffer in written if _key(placed, buffer) in sent), None)


def _key(placed: PlacedOp, buffer: Buffer) -> TensorKey:
    return tensor_key(buffer, placed.layer, placed.microbatch)

"""Seconds of each kind of op in a run, alike for predicted and measured rows.

`L07.attn.qkv@m3` counts as `attn.qkv`: layers, stages and microbatches of these runs are alike. A
collective counts without its wait, by the shortest span over its members; a message by its send,
for a receive that was posted ahead is all wait.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from statistics import median

from layerwise.scenarios.compare.accounts import (
    COLLECTIVES,
    measured_transfers,
    members_of,
    op_label,
)
from layerwise.sim.plan.program import StepPrograms
from layerwise.sim.trace import Row

PLACE = re.compile(r"^[LP]\d+\.")


def op_medians(run: list[StepPrograms], rows: Iterable[Row]) -> dict[str, float]:
    """Median seconds by kind of op, over ranks, layers, microbatches and repeats."""
    kept = [row for row in rows if not row.replaced and row.kind != "Recv"]
    ranks = range(len(run[0].template)) if run else range(0)
    members = members_of(run, ranks, sorted({row.step for row in kept}))
    transfers = measured_transfers((row for row in kept if row.kind in COLLECTIVES), members)
    found: dict[str, list[float]] = defaultdict(list)
    for row in kept:
        key = row.repeat, (row.step, row.rank, row.op)
        found[kind_of_op(row.op)].append(transfers.get(key, row.duration_s))
    return {kind: median(seconds) for kind, seconds in sorted(found.items())}


def kind_of_op(name: str) -> str:
    """`L07.attn.qkv@m3` is `attn.qkv`, `P0.act.send@m1` is `act.send`."""
    return PLACE.sub("", op_label(name))

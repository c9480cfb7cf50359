"""Of two placements of the same work, is the one predicted faster that was measured faster?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

from layerwise.scenarios.accuracy.scored import Scored
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.uncertainty import half_width_of_ratio


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Two placements of the same work. Gaps are ln(slower / faster), as measured.

    `half_width`: of the predicted gap's 90 % interval.
    """

    faster: str
    slower: str
    measured_gap: float
    predicted_gap: float
    half_width: float

    @property
    def is_asked(self) -> bool:
        """Does the measured gap exceed the interval? Closer placements may come out either way."""
        return self.measured_gap > self.half_width

    @property
    def is_right(self) -> bool:
        """Is the faster one predicted faster?"""
        return self.predicted_gap > 0


def rank(scored: Iterable[Scored]) -> list[Ranked]:
    """Every two measurements of the same work, placed otherwise."""
    by_work: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        if one.work:
            by_work[one.work].append(one)
    return [pair for found in by_work.values() for pair in _pairs(found)]


def asked_of(ranked: Iterable[Ranked]) -> list[Ranked]:
    """The pairs that tell: their measured gap exceeds the interval."""
    return [pair for pair in ranked if pair.is_asked]


def work_of(scenario: Scenario) -> str:
    """What two placements must share to be ranked: all but how the work is placed and cut."""
    workload = scenario.workload
    parts = (
        scenario.model,
        scenario.cluster.gpu.name,
        scenario.cluster.num_gpus,
        workload.phase,
        workload.batch_size,
        workload.context_tokens,
        scenario.run.launch,
    )
    return " ".join(map(repr, parts))


def placement_of(scenario: Scenario) -> str:
    """How the work is placed and cut: runs of one placement are not ranked among themselves."""
    return f"{scenario.placement!r} {scenario.workload.num_microbatches}"


def _pairs(found: list[Scored]) -> Iterator[Ranked]:
    for one, other in combinations(sorted(found, key=lambda each: each.measured_s), 2):
        if one.placement == other.placement:
            continue
        yield Ranked(
            faster=one.name,
            slower=other.name,
            measured_gap=math.log(other.measured_s / one.measured_s),
            predicted_gap=math.log(other.predicted_s / one.predicted_s),
            half_width=half_width_of_ratio(one.uncertainty, other.uncertainty)
            if one.uncertainty and other.uncertainty
            else 0.0,
        )

"""Both sides of a comparison as accounts: what one op of one rank took in one step, on each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from layerwise.scenarios.compare.accounts import (
    COLLECTIVES,
    MESSAGES,
    RowKey,
    StepAccount,
    measured_accounts,
    op_label,
    predicted_accounts,
)
from layerwise.scenarios.compare.scores import Part, Times, combined
from layerwise.scenarios.predict.alone import PredictedRun
from layerwise.sim.cost.unfitted import Change
from layerwise.sim.trace import Trace
from layerwise.sim.uncertainty import changes_by_name, half_widths_of


@dataclass(frozen=True)
class Sides:
    """Both sides of a comparison, of which every row has a partner.

    `others`: the speed of light and the uncalibrated prediction of the same programs. `members`:
    who meets whom (`compare.accounts.members_of`); empty for a rank by itself.
    """

    trace: Trace
    predicted: PredictedRun
    others: tuple[PredictedRun, PredictedRun]
    members: Mapping[RowKey, tuple[RowKey, ...]]
    step_factor: float

    @cached_property
    def measured(self) -> dict[tuple[int, int], dict[int, StepAccount]]:
        """By (step, rank) and repeat."""
        return measured_accounts(self.trace.rows, self.members)

    @cached_property
    def believed(self) -> tuple[dict[tuple[int, int], StepAccount], ...]:
        """By (step, rank), under every belief in the order of `Times`."""
        steps = {step for step, _ in self.measured}
        return tuple(
            predicted_accounts(run.rows, self.members, steps)
            for run in (*self.others, self.predicted)
        )

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Of each op, by its label."""
        return {op_label(row.op): row.kind for row in self.trace.rows}

    @cached_property
    def replaced(self) -> frozenset[str]:
        """Labels of messages that nobody sent, on either side."""
        rows = (*self.trace.rows, *self.predicted.rows)
        return frozenset(op_label(row.op) for row in rows if row.replaced)

    @cached_property
    def keys(self) -> dict[str, list[RowKey]]:
        """What is scored, by label in the order of the first rank that runs it."""
        found: dict[str, list[RowKey]] = defaultdict(list)
        for (step, rank), repeats in sorted(self.measured.items()):
            for op in next(iter(repeats.values())).work_s:
                if (label := op_label(op)) not in self.replaced:
                    found[label].append((step, rank, op))
        return found

    @cached_property
    def extrapolated(self) -> frozenset[str]:
        """Labels of ops outside what was calibrated."""
        return frozenset(
            op_label(row.op) for row in self.predicted.rows if row.bound.endswith("extrapolated")
        )

    @cached_property
    def unfitted(self) -> dict[str, tuple[Change, ...]]:
        """What no fit has seen of an op, by its label; only of those where there is something."""
        return changes_by_name(self.predicted.simulation, {step for step, _ in self.measured})

    @cached_property
    def half_widths(self) -> dict[str, float]:
        """Of each op's interval, by its label."""
        return half_widths_of(self.predicted.simulation, {step for step, _ in self.measured})

    @cached_property
    def stage_of(self) -> dict[int, int]:
        """The pipeline stage of each rank that ran."""
        template = self.predicted.run[0].template
        return {rank: template[rank].stage for _, rank in sorted(self.measured)}

    def is_link(self, label: str) -> bool:
        """Does it need another rank?"""
        return self.kinds[label] in (*MESSAGES, *COLLECTIVES)

    def times(self, part: Part, key: RowKey) -> Times:
        """One op of one rank in one step; or one of PARTS_OF_A_STEP, whatever the op."""
        step, rank, op = key
        accounts = [side[step, rank] for side in self.believed]
        repeats = self.measured[step, rank].values()
        measured_s = median(seconds_of(part, op, account) for account in repeats)
        if part == "between":
            measured_s = self._left_s[step, rank]
        believed = Times(*(seconds_of(part, op, account) for account in accounts))
        return believed.with_measured(measured_s)

    def step_s(self, ranks: tuple[int, ...]) -> float:
        """The measured step of these ranks; remembered, for every line asks."""
        if ranks not in self._steps_s:
            keys = [(step, rank, "") for step, rank in self.measured if rank in ranks]
            self._steps_s[ranks] = over_steps(self, "step", keys)[0].measured_s
        return self._steps_s[ranks]

    @cached_property
    def _steps_s(self) -> dict[tuple[int, ...], float]:
        return {}

    @cached_property
    def _left_s(self) -> dict[tuple[int, int], float]:
        """What is left of a rank's measured step, so that nothing is lost.

        Medians over repeats of its parts do not add up to that of the whole.
        """
        found: dict[tuple[int, int], float] = {}
        for place, repeats in self.measured.items():
            each = list(repeats.values())
            left_s = median(a.span_s for a in each) + median(a.overlapped_s for a in each)
            left_s -= sum(median(a.work_s[op] for a in each) for op in each[0].work_s)
            left_s -= sum(median(a.wait_s[op] for a in each) for op in each[0].wait_s)
            found[place] = left_s
        return found


def seconds_of(part: Part, op: str, account: StepAccount) -> float:
    """One part of an account: of this op, or of the whole step."""
    match part:
        case "work":
            return account.work_s[op]
        case "wait":
            return account.wait_s[op]
        case "between":
            return account.between_s
        case "overlapped":
            return -account.overlapped_s
        case "step":
            return account.span_s


def over_steps(
    sides: Sides, part: Part, keys: Iterable[RowKey]
) -> tuple[Times, Times | None, Times | None]:
    """One step of one rank; and of the first and the last step, where the context grows."""
    places: dict[int, dict[int, list[Times]]] = defaultdict(lambda: defaultdict(list))
    for key in keys:
        places[key[0]][key[1]].append(sides.times(part, key))
    steps = {
        step: combined((combined(each, "sum") for each in ranks.values()), "mean")
        for step, ranks in places.items()
    }
    if not sides.predicted.grows:
        return combined(steps.values(), "mean"), None, None
    return combined(steps.values(), "median"), steps[min(steps)], steps[max(steps)]

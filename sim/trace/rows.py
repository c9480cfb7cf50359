"""What a trace holds: rows of what ran when, and the run that they are of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

# The ratio of traced to untraced time above which the split by op is not that of the real run.
TRACED_RATIO_LIMIT = 1.03
# Keys of a trace's environment that say `no`, or why the GPU slowed itself down: where it was
# sampled during the repeats, and where only before and after them.
THROTTLE_NOTES = (
    {"throttled": "in the timed repeats", "throttled_traced": "in the traced repeats"},
    {"throttled_before": "before the run", "throttled_after": "at the end of the run"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One op of one rank in one step.

    `ready_s`: dependencies met and stream free. `start_s`: its first kernel starts. `end_s`: its
    last kernel ends. `bound` (predicted) names what limits it. `replaced` (measured or predicted)
    marks a peer's message that was replaced by a local buffer: kept out of every score.
    """

    repeat: int
    step: int
    rank: int
    op: str
    kind: str
    stream: str
    ready_s: float
    start_s: float
    end_s: float
    bound: str = ""
    replaced: bool = False

    @property
    def duration_s(self) -> float:
        """From first kernel start to last kernel end."""
        return self.end_s - self.start_s

    @property
    def key(self) -> tuple[int, int, int, str]:
        """What predicted and measured rows are joined on: (repeat, step, rank, op)."""
        return (self.repeat, self.step, self.rank, self.op)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A run and where it came from.

    `scenario` is the scenario as data. `kernel_set` must be equal in traces that are compared.
    `untraced_step_s`: step times with no tracer attached, one per repeat; `traced_step_s` beside.
    `measured`: other readings taken in the same call (bandwidths in bytes/s, ...).
    """

    source: Literal["predicted", "measured"]
    name: str
    scenario: dict[str, Any]
    kernel_set: str
    rows: tuple[Row, ...] = ()
    untraced_step_s: tuple[float, ...] = ()
    traced_step_s: tuple[float, ...] = ()
    timing: str = "none"
    measured: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    purpose: Literal["fit", "validation", "other"] = "other"

    @property
    def traced_ratio(self) -> float:
        """Median step with the tracer attached over median step without; 0 where one is missing."""
        if not (self.traced_step_s and self.untraced_step_s):
            return 0.0
        return median(self.traced_step_s) / median(self.untraced_step_s)

    @property
    def is_disturbed(self) -> bool:
        """Did the tracer slow the run by more than TRACED_RATIO_LIMIT allows?"""
        return self.traced_ratio > TRACED_RATIO_LIMIT

    def cautions(self) -> tuple[str, ...]:
        """What a reader has to know before believing the trace, in a sentence each."""
        notes: list[str] = []
        if self.is_disturbed:
            ratio = f"x{self.traced_ratio:.3f}"
            notes.append(f"the per-op split is disturbed by the tracer ({ratio})")
        if reason := self.environment.get("timing_fallback"):
            notes.append(f"ops were timed by CUDA events, not by CUPTI: {reason}")
        if reason := self.environment.get("ended_early"):
            notes.append(f"the run ended early: {reason}")
        for key, when in THROTTLE_NOTES[0 if "throttled" in self.environment else 1].items():
            if (reasons := self.environment.get(key, "no")) != "no":
                notes.append(f"the GPU throttled {when}: {reasons}")
        return tuple(notes)


def is_held_down(reasons: str) -> bool:
    """Was the GPU hot, or slowed by its hardware? The power cap alone is how large runs always run."""
    return "thermal" in reasons or "hardware" in reasons


def as_data(value: Any) -> dict[str, Any]:
    """A frozen spec as plain data, for a trace's header: as it is when it is read again."""
    return json.loads(json.dumps(asdict(value)))

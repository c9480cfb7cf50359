"""What a comparison consists of: a line on any of its levels, the whole stage, both together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, quantiles
from typing import Literal

from layerwise.scenarios.compare.fitted import FittedShapes
from layerwise.sim.cost.unfitted import Change, sentences
from layerwise.sim.trace import Trace
from layerwise.sim.uncertainty import Interval, around

# The bar for a whole stage.
STAGE_TOLERANCE = 0.06

Level = Literal["op", "layer", "stage", "run"]
LEVELS: tuple[Level, ...] = ("op", "layer", "stage", "run")
# `work`: ops, or what messages and collectives transfer. `wait`: the part of their spans before,
# in which the rank did nothing else. `between`: nothing ran. `overlapped`: what ran beside other
# ops, below zero. These four add up to `step`, from a rank's first start to its last end.
Part = Literal["work", "wait", "between", "overlapped", "step"]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one thing, under every belief and as measured."""

    speed_of_light_s: float = 0.0
    uncalibrated_s: float = 0.0
    predicted_s: float = 0.0
    measured_s: float = 0.0

    @property
    def values(self) -> tuple[float, float, float, float]:
        """In the order of the fields."""
        return self.speed_of_light_s, self.uncalibrated_s, self.predicted_s, self.measured_s

    def with_measured(self, measured_s: float) -> Times:
        """The same predictions of what took so long."""
        return replace(self, measured_s=measured_s)

    @property
    def error(self) -> float:
        """Signed: predicted over measured, less one; 0 where nothing was measured."""
        return self.predicted_s / self.measured_s - 1 if self.measured_s else 0.0


def combined(each: Iterable[Times], how: Literal["sum", "mean", "median"]) -> Times:
    """Times of several things as one, belief by belief."""
    found = [times.values for times in each]
    if how == "median":
        return Times(*(median(column) for column in zip(*found, strict=True)))
    if not found:
        return Times()
    divisor = len(found) if how == "mean" else 1
    return Times(*(sum(column) / divisor for column in zip(*found, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Score:
    """One line: an op over its microbatches, a layer, a rank, or the run; of one step of one rank.

    Over ranks that run the same op: their mean. Over steps: their mean, or their median where the
    context grows; then `first` and `last` are those of the first and the last measured step.
    `spread`: interquartile range over median of the repeats, 0 with fewer than four of them.
    `share`: of the measured step of these ranks. `extrapolated`: outside what was calibrated;
    `unfitted`: what no fit has seen of it.
    `half_width`: of the 90 % interval, as ln(measured / predicted); None where there is none.
    """

    level: Level
    name: str
    part: Part = "work"
    ranks: tuple[int, ...]
    count: int
    times: Times
    share: float
    half_width: float | None = None
    spread: float = 0.0
    extrapolated: bool = False
    unfitted: tuple[Change, ...] = ()
    first: Times | None = None
    last: Times | None = None

    @property
    def op(self) -> str:
        """Its name, where it is an op."""
        return self.name

    @property
    def predicted_s(self) -> float:
        """Calibrated."""
        return self.times.predicted_s

    @property
    def measured_s(self) -> float:
        """Median over the repeats."""
        return self.times.measured_s

    @property
    def error(self) -> float:
        """Signed: predicted over measured, less one."""
        return self.times.error

    @property
    def interval(self) -> Interval | None:
        """Where 90 % of measured values lie."""
        return None if self.half_width is None else around(self.predicted_s, self.half_width)

    @property
    def is_inside(self) -> bool | None:
        """Does the measurement lie in the interval? None where there is none."""
        return self.interval.holds(self.measured_s) if self.interval else None


@dataclass(frozen=True, kw_only=True)
class StageScore:
    """The whole step, with no tracer attached. `half_width`, `spread`: as in Score.

    `quarantine`: why the run has no say, whatever its purpose. `uncalibrated_s` 0: nobody asked.
    `half_width` None: what ran has no interval, for nobody measured how far its kernels scatter.
    """

    name: str
    gpu: str
    validation: bool
    predicted_s: float
    speed_of_light_s: float
    measured_s: float
    traced_ratio: float
    hbm_floor_fraction: float
    half_width: float | None = 0.0
    uncalibrated_s: float = 0.0
    spread: float = 0.0
    quarantine: tuple[str, ...] = ()

    @property
    def interval(self) -> Interval | None:
        """Where 90 % of measured steps lie."""
        return None if self.half_width is None else around(self.predicted_s, self.half_width)

    @property
    def is_inside(self) -> bool | None:
        """Does the measurement lie in the interval? None where there is none."""
        return self.interval.holds(self.measured_s) if self.interval else None

    @property
    def error(self) -> float:
        """Signed: predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1

    @property
    def passes(self) -> bool:
        """Within STAGE_TOLERANCE."""
        return abs(self.error) <= STAGE_TOLERANCE

    @property
    def is_scored(self) -> bool:
        """Was it made for validation, and is there nothing against it?"""
        return self.validation and not self.quarantine


@dataclass(frozen=True, kw_only=True)
class Pacing:
    """The rank that computes longest in a step, as measured and as predicted."""

    measured: int
    predicted: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measured trace beside its prediction. An untraced run has lines of level `run` only.

    `num_replaced`: messages to ranks that did not run. `pacing`: None for a rank by itself.
    `unfitted`: what no fit has seen of the kernels, head sizes and dtypes that ran.
    """

    stage: StageScore
    scores: tuple[Score, ...]
    num_replaced: int
    pacing: Pacing | None
    fitted: FittedShapes
    trace: Trace = field(repr=False)
    unfitted: tuple[Change, ...] = ()

    @property
    def cautions(self) -> tuple[str, ...]:
        """What to know before believing either side, each once."""
        unfitted = sentences(self.unfitted)
        return tuple(dict.fromkeys((*self.stage.quarantine, *self.trace.cautions(), *unfitted)))

    def of(self, level: Level) -> tuple[Score, ...]:
        """The lines of one level."""
        return tuple(score for score in self.scores if score.level == level)

    @property
    def ops(self) -> tuple[Score, ...]:
        """Every op; of messages and collectives the transfer."""
        return tuple(score for score in self.of("op") if score.part == "work")

    @property
    def counted_ops(self) -> tuple[Score, ...]:
        """Those that count in errors over several traces.

        None of a run that has something against it, or that its tracer disturbed.
        """
        left_out = self.stage.quarantine or self.trace.is_disturbed
        return () if left_out else self.ops

    @property
    def median_op_error(self) -> float | None:
        """Median of the signed errors over ops."""
        return median_error(self.ops)

    @property
    def median_absolute_op_error(self) -> float | None:
        """Median of the errors' sizes over ops: errors of either sign do not cancel in it."""
        return median_size(self.ops)


def median_error(scores: Iterable[Score]) -> float | None:
    """Median of the signed errors; None of nothing."""
    errors = [score.error for score in scores]
    return median(errors) if errors else None


def median_size(scores: Iterable[Score]) -> float | None:
    """Median of the errors' sizes; None of nothing."""
    sizes = [abs(score.error) for score in scores]
    return median(sizes) if sizes else None


def spread_of(values: Sequence[float]) -> float:
    """Interquartile range over median; 0 of fewer than four."""
    if len(values) < 4 or not median(values):
        return 0.0
    low, _, high = quantiles(values, n=4)
    return (high - low) / median(values)

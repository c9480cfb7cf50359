"""One measurement beside its prediction, and what many of them sum up to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean, median

from layerwise.sim.uncertainty import Uncertainty

# Of all intervals together: the share of measurements inside, and the median half-width over the
# median error, on so many measurements at least.
MIN_COVERAGE, MAX_COVERAGE, MAX_WIDTH_RATIO, MIN_INTERVALS = 0.85, 0.95, 3.0, 200
WINDOWS, READS, MOVED = "layers with windows", "read bandwidth", "moved from h100-sxm"
# A pass of the read kernel is no op of a model, what windows do was told never to be known, and
# what a move by datasheet ratios adds to the error is not in the intervals of the profile moved.
WITHOUT_INTERVALS = (READS, WINDOWS, MOVED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One measurement beside its prediction, now and (0: none) before it was made.

    `half_width`: of today's 90 % interval, as ln(measured / predicted). `spread`: of the repeats,
    relative. `kernel_set`: hash of the kernels that ran; empty where there is no choice. `work`:
    what placements are ranked among, empty where there is one only; `placement`: which one it is.
    """

    group: str
    part: str
    name: str
    measured_s: float
    predicted_s: float
    blind_s: float = 0.0
    half_width: float = 0.0
    spread: float = 0.0
    kernel_set: str = ""
    work: str = ""
    placement: str = ""
    uncertainty: Uncertainty | None = field(default=None, repr=False, compare=False)

    @property
    def log_error(self) -> float:
        """ln(measured / predicted): what the interval is about."""
        return math.log(self.measured_s / self.predicted_s)

    @property
    def is_covered(self) -> bool:
        """Does the measurement lie in the interval?"""
        return abs(self.log_error) <= self.half_width

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1

    @property
    def blind_error(self) -> float | None:
        """The same for the prediction that was committed before the run."""
        return self.blind_s / self.measured_s - 1 if self.blind_s else None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A group's errors: how many, signed median; of sizes the median, mean, 90th and worst."""

    num: int
    signed: float
    median: float
    mean: float
    p90: float
    worst: float


def summary_of(errors: Iterable[float]) -> Summary:
    """Of at least one signed error."""
    signed = list(errors)
    sizes = sorted(abs(error) for error in signed)
    return Summary(
        num=len(sizes),
        signed=median(signed),
        median=median(sizes),
        mean=fmean(sizes),
        p90=sizes[min(len(sizes) - 1, round(0.9 * (len(sizes) - 1)))],
        worst=sizes[-1],
    )


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many measurements lie in their intervals, and how wide these are for their errors."""

    num: int
    covered: float
    median_half_width: float
    median_error: float

    @property
    def width_ratio(self) -> float:
        """Median half-width over median |error|; a Laplace law's own is 3.3."""
        if not self.median_error:
            return 0.0 if not self.median_half_width else math.inf
        return self.median_half_width / self.median_error

    @property
    def misses(self) -> dict[str, str]:
        """What is wrong with enough of them: too few or too many inside, or too wide."""
        found: dict[str, str] = {}
        if not MIN_COVERAGE <= self.covered <= MAX_COVERAGE:
            allowed = f"{MIN_COVERAGE:.0%} to {MAX_COVERAGE:.0%}"
            found["coverage"] = f"{self.covered:.1%} where {allowed} is allowed"
        if self.width_ratio > MAX_WIDTH_RATIO:
            found["width"] = f"ratio {self.width_ratio:.2f} where {MAX_WIDTH_RATIO:g} is allowed"
        return found

    @property
    def passes(self) -> bool:
        """Are there enough of them, neither too narrow nor too wide?"""
        return self.num >= MIN_INTERVALS and not self.misses


def coverage_of(scored: Iterable[Scored]) -> Coverage | None:
    """Of everything that carries an interval; None where nothing does."""
    found = [one for one in scored if one.group not in WITHOUT_INTERVALS]
    if not found:
        return None
    return Coverage(
        num=len(found),
        covered=sum(one.is_covered for one in found) / len(found),
        median_half_width=median(one.half_width for one in found),
        median_error=median(abs(one.log_error) for one in found),
    )

"""What samples of power and clocks say of the windows that were timed. Pure functions.

Source of SENSOR_PERIOD_S: an H100's sensor averages 25 ms of every 100 ms (Yang, Adamek, Armour,
"Part-time Power Measurements", arXiv 2312.02741). Steps that repeat within milliseconds are seen well by such a
sensor; a single one is not. Counter and integrated power agree within 1 %:
github.com/ml-energy/zeus/issues/12.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from layerwise.hw.host.environment import THROTTLE_REASONS

# How often the sensor has a new value, and the windows below which it cannot say an energy.
SENSOR_PERIOD_S = 0.1
MIN_ENERGY_WINDOW_S = 0.5
MIN_TIMED_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One reading. `at_s` is on the host's `time.perf_counter`; `energy_j` None: no counter."""

    at_s: float
    power_w: float
    sm_clock_hz: float
    temperature_c: float
    throttle_reasons: int
    energy_j: float | None = None


@dataclass(frozen=True)
class Window:
    """Timed repeats, on the host's clock; `num_steps` counts as `Trace.untraced_step_s` does."""

    start_s: float
    end_s: float
    num_steps: float

    @property
    def span_s(self) -> float:
        """From the start of the first repeat to the end of the last."""
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True)
class WindowPower:
    """What the samples say of one stream's windows. None: they are too short to tell.

    `throttled`: the share of samples with each reason; `throttled_share` with any of them.
    `energy_uncertainty` is relative: the time between two samples over that between the updates
    of the sensor that were counted.
    """

    num_samples: int
    span_s: float
    mean_sm_clock_hz: float
    min_sm_clock_hz: float
    max_temperature_c: float
    throttled_share: float
    throttled: Mapping[str, float]
    mean_power_w: float | None = None
    max_power_w: float | None = None
    energy_per_step_j: float | None = None
    energy_window_s: float = 0.0
    energy_uncertainty: float = 0.0
    has_counter: bool = False


@dataclass(frozen=True, kw_only=True)
class RankPower:
    """One rank's readings, to be gathered. `problem` says why there are none, or how they ended."""

    problem: str = ""
    cost: str = ""
    untraced: WindowPower | None = None
    traced: WindowPower | None = None


def window_power(samples: Sequence[Sample], windows: Sequence[Window]) -> WindowPower | None:
    """Cut samples to windows; None where not one sample is in any of them.

    Clocks, temperature and throttling are of all windows, with the sample that ended each; power
    leaves out what the sensor may have measured before the window began.
    """
    ordered = sorted(samples, key=lambda sample: sample.at_s)
    inside = _dedupe(_closed(ordered, window) for window in windows)
    if not inside:
        return None
    warm = _dedupe(
        _between(ordered, window.start_s + SENSOR_PERIOD_S, window.end_s) for window in windows
    )
    clocks_hz = [sample.sm_clock_hz for sample in inside]
    powers_w = [sample.power_w for sample in warm]
    named = {
        bit: name
        for bit, name in THROTTLE_REASONS.items()
        if any(sample.throttle_reasons & bit for sample in inside)
    }
    return WindowPower(
        num_samples=len(inside),
        span_s=sum(window.span_s for window in windows),
        mean_sm_clock_hz=fmean(clocks_hz),
        min_sm_clock_hz=min(clocks_hz),
        max_temperature_c=max(sample.temperature_c for sample in inside),
        throttled_share=_share(inside, sum(named)),
        throttled={name: _share(inside, bit) for bit, name in named.items()},
        mean_power_w=fmean(powers_w) if powers_w else None,
        max_power_w=max(powers_w, default=None),
        **_energy(ordered, _whole(windows)),
    )


def _energy(ordered: Sequence[Sample], window: Window) -> dict[str, Any]:
    """Joules per step of a window that is long enough, or nothing.

    The counter moves in steps: the energy between its first and its last movement in the window,
    over the time between them, is the window's mean power. Without a counter it is the mean of
    the sampled power.
    """
    inside = _between(ordered, window.start_s, window.end_s)
    if window.span_s < MIN_ENERGY_WINDOW_S or len(inside) < 2:
        return {"energy_window_s": window.span_s}
    has_counter = all(sample.energy_j is not None for sample in inside)
    if has_counter:
        moved = [b for a, b in pairwise(inside) if b.energy_j != a.energy_j]
        blur_s = max(b.at_s - a.at_s for a, b in pairwise(inside))
    else:
        moved = _between(ordered, window.start_s + SENSOR_PERIOD_S, window.end_s)
        blur_s = SENSOR_PERIOD_S
    counted_s = moved[-1].at_s - moved[0].at_s if moved else 0.0
    if counted_s < window.span_s / 2:
        return {"energy_window_s": window.span_s}
    if has_counter:
        power_w = ((moved[-1].energy_j or 0.0) - (moved[0].energy_j or 0.0)) / counted_s
    else:
        power_w = _integral(moved) / counted_s
    return {
        "energy_per_step_j": power_w * window.span_s / window.num_steps,
        "energy_window_s": window.span_s,
        "energy_uncertainty": blur_s / counted_s,
        "has_counter": has_counter,
    }


def combined(
    ranks: Sequence[RankPower], tokens_per_step: float
) -> tuple[dict[str, float], dict[str, str]]:
    """A trace's `measured` and `environment` of the power of all ranks.

    Energy is the sum over GPUs, throttled shares those of the GPU that had most; power, clocks
    and temperature are of one GPU: means and extremes over them.
    """
    problem = next((each.problem for each in ranks if each.problem), "")
    untraced = [each.untraced for each in ranks if each.untraced]
    traced = [each.traced for each in ranks if each.traced]
    if problem or not untraced:
        return {}, {"power": f"not sampled: {problem or 'no sample in the timed repeats'}"}
    measured = _clocks(untraced) | _power(untraced) | _total_energy(untraced, tokens_per_step)
    notes = {
        "power": ranks[0].cost,
        "energy": _energy_note(untraced),
        "throttled": throttled_text(untraced),
    }
    if traced:
        measured |= {f"traced_{key}": value for key, value in _clocks(traced).items()}
        notes["throttled_traced"] = throttled_text(traced)
    return measured, notes


def throttled_text(found: Sequence[WindowPower]) -> str:
    """`no`, or each reason with its share of the samples of the GPU that had most of it."""
    most: dict[str, float] = {}
    for each in found:
        for name, share in each.throttled.items():
            most[name] = max(share, most.get(name, 0.0))
    return ", ".join(f"{name} ({share:.0%} of samples)" for name, share in most.items()) or "no"


def _clocks(found: Sequence[WindowPower]) -> dict[str, float]:
    return {
        "mean_sm_clock_hz": fmean(each.mean_sm_clock_hz for each in found),
        "min_sm_clock_hz": min(each.min_sm_clock_hz for each in found),
        "max_temperature_c": max(each.max_temperature_c for each in found),
        "throttled_share": max(each.throttled_share for each in found),
    }


def _power(found: Sequence[WindowPower]) -> dict[str, float]:
    means_w = [each.mean_power_w for each in found if each.mean_power_w is not None]
    most_w = [each.max_power_w for each in found if each.max_power_w is not None]
    if len(means_w) < len(found):
        return {}
    return {"mean_power_w": fmean(means_w), "max_power_w": max(most_w)}


def _total_energy(found: Sequence[WindowPower], tokens_per_step: float) -> dict[str, float]:
    steps_j = [each.energy_per_step_j for each in found if each.energy_per_step_j is not None]
    if len(steps_j) < len(found):
        return {}
    return {
        "energy_per_step_j": sum(steps_j),
        "energy_per_token_j": sum(steps_j) / tokens_per_step,
        "energy_window_s": min(each.energy_window_s for each in found),
        "energy_uncertainty": max(each.energy_uncertainty for each in found),
    }


def _energy_note(found: Sequence[WindowPower]) -> str:
    window_s = min(each.energy_window_s for each in found)
    if window_s < MIN_ENERGY_WINDOW_S:
        return (
            f"too short to measure: {window_s:.3g} s of repeats, and the sensor needs "
            f"{MIN_ENERGY_WINDOW_S} s; more run.repeats, or --energy-s 2"
        )
    if any(each.energy_per_step_j is None for each in found):
        return f"not measured: too few new values of the sensor in {window_s:.3g} s"
    how = "energy counter" if all(each.has_counter for each in found) else "integrated power"
    return f"{how} of {len(found)} GPU{'s' if len(found) > 1 else ''} over {window_s:.3g} s"


def _whole(windows: Sequence[Window]) -> Window:
    """All windows as one, where next to nothing lies between them; else the last one."""
    first, last = windows[0], windows[-1]
    hull_s, timed_s = last.end_s - first.start_s, sum(window.span_s for window in windows)
    if timed_s < MIN_TIMED_SHARE * hull_s:
        return last
    # The gaps are paid for with as many steps as they would have held.
    num_steps = sum(window.num_steps for window in windows) * hull_s / timed_s
    return Window(first.start_s, last.end_s, num_steps)


def _between(ordered: Sequence[Sample], start_s: float, end_s: float) -> list[Sample]:
    return [sample for sample in ordered if start_s <= sample.at_s <= end_s]


def _closed(ordered: Sequence[Sample], window: Window) -> list[Sample]:
    """The window's samples, and the one that was taken as it ended."""
    closing = next((sample for sample in ordered if sample.at_s > window.end_s), None)
    return _between(ordered, window.start_s, window.end_s) + ([closing] if closing else [])


def _dedupe(parts: Iterable[list[Sample]]) -> list[Sample]:
    return list({sample.at_s: sample for part in parts for sample in part}.values())


def _integral(samples: Sequence[Sample]) -> float:
    return sum((a.power_w + b.power_w) / 2 * (b.at_s - a.at_s) for a, b in pairwise(samples))


def _share(samples: Sequence[Sample], bits: int) -> float:
    return sum(bool(sample.throttle_reasons & bits) for sample in samples) / len(samples)

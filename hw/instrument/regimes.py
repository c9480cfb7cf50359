"""The two regimes of a GPU's clock: work that lasts, and bursts after a rest.

A GPU runs at full clock until its power limit acts, some 40 ms after a rest of 50 ms or more, and
then at the clock that holds the limit (seen on an H200: calibration/traces/fit-h200). What is
timed in between is neither, so a run says which of the two it is, and is brought there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from layerwise.hw.instrument.energy import window_power
from layerwise.hw.instrument.power import PERIOD_S, Gauge, Sampling
from layerwise.hw.instrument.stopwatch import Stopwatch
from layerwise.hw.ranks.agreement import agree
from layerwise.hw.ranks.session import Session

# Sustained work: back to back for 5 s, of which the last 3 s count. A burst: 20 ms after 1 s idle.
SETTLING_S, SCORED_S = 2.0, 3.0
REST_S, BURST_S = 1.0, 0.02
# Step times of a trace: more would be a file of megabytes, and say no more.
MAX_REPEATS = 10_000
MAX_MARKS = 2_000


def rest() -> None:
    """Leave the GPU idle for as long as it takes to be at full clock again. Needs a CUDA GPU."""
    torch.cuda.synchronize()
    time.sleep(REST_S)


def repeats_of_burst(session: Session, repeat_s: float, repeats: int) -> int:
    """How many of these repeats one burst holds, and at least one: the same on every rank."""

    def decide(ranks: list[float]) -> int:
        return max(1, min(repeats, int(BURST_S / max(ranks))))

    return agree(session, "burst", repeat_s, decide)


@dataclass(frozen=True, kw_only=True)
class Both:
    """One kind of work in both regimes: seconds of a step, and what the sustained one drew.

    `rest_power_w` is read at the end of the rest. None: there is no such reading.
    """

    burst_step_s: float
    step_s: float
    num_replays: int
    rest_power_w: float | None
    power_w: float | None
    energy_per_step_j: float | None
    mean_sm_clock_hz: float | None
    throttled: dict[str, float]


def time_both(replay: Callable[[], None], step_s: float, gauge: Gauge | None) -> Both:
    """Rest, then repeat work that takes about `step_s` for as long as sustained work lasts.

    The first BURST_S are the burst, the last SCORED_S the sustained regime. Needs a CUDA GPU.
    """
    rest()
    rest_power_w = gauge.read().power_w if gauge else None
    watch, sampling = Stopwatch(torch.device("cuda")), Sampling(gauge, PERIOD_S)
    num_burst = max(1, int(BURST_S / step_s))
    rest_of_it = max(3, round((SETTLING_S + SCORED_S) / step_s) - num_burst)
    # A mark is work too: later replays are timed in groups.
    group = max(1, rest_of_it // MAX_MARKS)
    sizes = [1] * num_burst + [group] * (rest_of_it // group)
    sampling.start()
    watch.mark()
    for size in sizes:
        for _ in range(size):
            replay()
        watch.mark()
    spans_s = list(watch.repeats(0, end_to_end=True))
    ended_s = time.perf_counter()
    lasted_s, num_scored = 0.0, 0
    while lasted_s < SCORED_S and num_scored < len(spans_s) - num_burst:
        num_scored += 1
        lasted_s += spans_s[-num_scored]
    step_s = median(spans_s[-num_scored:]) / group
    sampling.window_ended(ended_s, lasted_s, num_scored * group)
    sampling.stop()
    drawn = window_power(sampling.samples, sampling.windows)
    return Both(
        burst_step_s=median(spans_s[:num_burst]),
        step_s=step_s,
        num_replays=sum(sizes),
        rest_power_w=rest_power_w,
        power_w=drawn.mean_power_w if drawn else None,
        energy_per_step_j=drawn.energy_per_step_j if drawn else None,
        mean_sm_clock_hz=drawn.mean_sm_clock_hz if drawn else None,
        throttled=dict(drawn.throttled) if drawn else {},
    )

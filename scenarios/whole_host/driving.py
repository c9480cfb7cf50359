"""The stages of a host's run, in the order in which a budget buys most; each leaves its files.

`OUT/` afterwards: predictions.json, machine.json, links.json, traces/NAME.jsonl.gz, failed.jsonl,
stages.json, report.json, report.txt. A second call goes on where the first stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from layerwise.hw.links.measuring import measure_links
from layerwise.hw.links.ops import OPS, PEER_MEMORY_OPS
from layerwise.hw.links.series import MIB, Request, score_sizes_between, sizes_between
from layerwise.hw.pool import RankPool, rank_pool
from layerwise.hw.ranks.session import usable_device
from layerwise.hw.series import measure_scenarios, trace_path
from layerwise.scenarios.whole_host.asked import HostRun, Scale, host_runs
from layerwise.scenarios.whole_host.journal import Journal, open_journal
from layerwise.scenarios.whole_host.machine import check_machine, expected_s
from layerwise.scenarios.whole_host.predictions import (
    check_runs,
    committed_path,
    host_profile,
    keep_on_disk,
    predict_host,
    read_prediction,
    write_prediction,
)
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.profile import Profile
from layerwise.sim.trace import Trace

Progress = Callable[[str], None]
# Two H200s: 14 series in 8 s, 21 runs in 28 s, 12 s until two ranks had met. More ranks open more
# communicators and gather more rows: taken to grow with their number.
SERIES_S, RUN_S, STARTING_S, REPORT_S = 0.6, 1.4, 12.0, 30.0
LINKS_SHARE = 0.3
RUN_TIMEOUT_S = 90.0
TRACED_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class HostRequest:
    """What a call is asked for. `prediction`: a file to take; None the committed one, or a new one.

    `gpu` names the shipped profile, and the GPU that scenarios are put on.
    """

    out: Path
    num_gpus: int
    gpu: str = "h200"
    device: Literal["cuda", "cpu"] = "cuda"
    budget_s: float = 540.0
    prediction: Path | None = None

    @property
    def scale(self) -> Scale:
        """A CPU goes through every stage with tiny models: what it measures means nothing."""
        return "full" if self.device == "cuda" else "quick"


def run_host(request: HostRequest, progress: Progress = print) -> int:
    """Go through every stage. How many runs have no trace yet.

    Raises SpecError or FileFormatError, before anything is measured, for predictions that are not
    of what would run; NotAvailableError for too few GPUs.
    """
    usable_device(request.device, request.num_gpus)
    journal = open_journal(request.out / "stages.json", request.budget_s)
    profile = host_profile(request.gpu) if request.scale == "full" else None
    runs = runs_of(request, profile)
    _settle_predictions(request, runs, profile, progress)
    _note_expectations(request, runs, journal, progress)
    _check(request, journal, progress)
    with rank_pool(request.num_gpus, request.device) as pool:
        _time_links(request, pool, journal, progress, LINKS_SHARE * journal.left_s)
        _measure(request, runs, pool, journal, progress)
        _time_links(request, pool, journal, progress, journal.left_s - REPORT_S)
        if journal.left_s > RUN_TIMEOUT_S + REPORT_S:
            _measure(request, runs, pool, journal, progress)  # those that failed, once more
    return len(_todo(request.out, runs))


def runs_of(request: HostRequest, profile: Profile | None) -> tuple[HostRun, ...]:
    """Every run of a request, in the kernels of the profile."""
    kernels = profile.kernels if profile else None
    return host_runs(request.gpu, request.num_gpus, request.scale, kernels)


def traces_folder(out: Path) -> Path:
    """Where traces lie in an output folder."""
    return out / "traces"


def _settle_predictions(
    request: HostRequest, runs: Sequence[HostRun], profile: Profile | None, progress: Progress
) -> None:
    """Have `predictions.json` on the disk: an earlier call's, the committed one, or one made now."""
    path = request.out / "predictions.json"
    committed = request.prediction or committed_path(request.gpu, request.num_gpus)
    if not path.exists():
        if request.scale == "full" and (earlier := read_prediction(committed)):
            check_runs(earlier, runs, committed)
            keep_on_disk(committed, path)
            progress(f"predictions: {committed.name}, made {earlier.created}")
        else:
            made = predict_host(runs, profile)
            write_prediction(made, path)
            progress(f"predictions: {len(made.runs)} runs, made now, {made.created}")
    found = read_prediction(path)
    assert found is not None
    check_runs(found, runs, path)


def _note_expectations(
    request: HostRequest, runs: Sequence[HostRun], journal: Journal, progress: Progress
) -> None:
    todo = _todo(request.out, runs)
    check_s = 0.0 if (request.out / "machine.json").exists() else expected_s(request.num_gpus)
    links_s = 0.0 if _links_done(request.out) else links_expected_s(request.num_gpus)
    runs_s = runs_expected_s(request.num_gpus, len(todo))
    total_s = check_s + STARTING_S + links_s + runs_s + REPORT_S
    progress(
        f"expected: check {check_s:.0f} s, links {links_s:.0f} s, {len(todo)} runs {runs_s:.0f} s, "
        f"{total_s:.0f} s in all; the budget is {journal.budget_s:.0f} s"
    )
    if total_s > journal.budget_s:
        progress("more than the budget: the last runs, and links in eager mode, are left out first")


def links_expected_s(num_gpus: int) -> float:
    """Of every series of links: groups, both modes, and every other pair once."""
    num_groups = num_gpus.bit_length() - 1
    num_series = 2 * (2 + 5 * num_groups) + num_gpus * (num_gpus - 1) // 2
    return SERIES_S * num_series * max(1.0, num_gpus / 4)


def runs_expected_s(num_gpus: int, num_runs: int) -> float:
    """Of so many runs that take all GPUs."""
    return RUN_S * num_runs * max(1.0, num_gpus / 2)


def _check(request: HostRequest, journal: Journal, progress: Progress) -> None:
    out = request.out / "machine.json"
    if out.exists():
        return
    usual_s = expected_s(request.num_gpus)
    with journal.stage("machine", usual_s):
        progress(f"machine: about {usual_s:.0f} s")
        check_machine(out, request.device, min(2 * usual_s + 30.0, journal.left_s))


def _time_links(
    request: HostRequest, pool: RankPool, journal: Journal, progress: Progress, budget_s: float
) -> None:
    """Time what `links.json` does not hold yet; eager series, the last ones, may stay out."""
    if budget_s <= 0 or _links_done(request.out):
        return
    with journal.stage("links", links_expected_s(request.num_gpus)) as left:
        progress(f"links: at most {budget_s:.0f} s")
        wanted = links_request(request, budget_s)
        num = pool.call(measure_links, wanted, timeout_s=budget_s + 30.0)
        progress(f"links: {num} timings")
        if not _links_done(request.out):
            left.append("some series")


def links_request(request: HostRequest, budget_s: float) -> Request:
    """Messages and collectives of 512 B to 512 MiB, in graphs and eager; few on the CPU."""
    on_gpus = request.device == "cuda"
    largest = 512 * MIB if on_gpus else 1024
    return Request(
        out=(request.out / "links.json").absolute(),
        device=request.device,
        ops=tuple(op for op in OPS if on_gpus or op not in PEER_MEMORY_OPS),
        modes=("graph", "eager") if on_gpus else ("eager",),
        sizes_bytes=sizes_between(512, largest),
        score_bytes=score_sizes_between(512, largest),
        budget_s=budget_s,
        goes_on=True,
    )


def _links_done(out: Path) -> bool:
    from layerwise.sim.plan.reading import read_json

    path = out / "links.json"
    if not path.exists():
        return False
    data = read_json(path)
    return data.get("num_series_done") == data.get("num_series")


def _measure(
    request: HostRequest,
    runs: Sequence[HostRun],
    pool: RankPool,
    journal: Journal,
    progress: Progress,
) -> None:
    todo = _todo(request.out, runs)
    if not todo:
        return

    def measure(scenario: Scenario) -> Trace:
        timeout_s = max(20.0, min(RUN_TIMEOUT_S, journal.left_s))
        return pool.measure(scenario, timeout_s=timeout_s, traced_repeats=TRACED_REPEATS)

    with journal.stage("runs", runs_expected_s(request.num_gpus, len(todo))) as left:
        outcome = measure_scenarios(
            [run.scenario for run in todo],
            measure=measure,
            folder=traces_folder(request.out),
            purpose="validation",
            budget_s=journal.left_s - REPORT_S,
            failed=request.out / "failed.jsonl",
            progress=progress,
        )
        if outcome.num_missing:
            left.append(f"{outcome.num_missing} runs, {outcome.num_failed} of which failed")


def _todo(out: Path, runs: Sequence[HostRun]) -> list[HostRun]:
    return [run for run in runs if not trace_path(traces_folder(out), run.scenario).exists()]

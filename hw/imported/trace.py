"""A measured trace from another profiler's files: Nsight Systems' exports, torch.profiler's traces.

Nothing runs here. The scenario says which ops each rank repeats; the files say which kernels ran in
their ranges. Each process of the files is one rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from layerwise.hw.imported.kineto import GZIP_MAGIC, read_kineto
from layerwise.hw.imported.nsys import SQLITE_MAGIC, read_nsys
from layerwise.hw.imported.ranks import assign_ranks, find_processes, names_of
from layerwise.hw.imported.repeats import Member, join, keep_last, last_steps, require_equal_counts
from layerwise.hw.instrument.spans import JoinedStep, Recording
from layerwise.hw.measure import TRACED_REPEATS
from layerwise.hw.rows import Spans, rows_of
from layerwise.hw.streams import StreamPlan, plan_stream
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import FileFormatError, SpecError, TraceMismatchError
from layerwise.sim.plan.program import kernel_set_hash
from layerwise.sim.plan.scenario import Scenario, compile_run
from layerwise.sim.plan.validate import validate_run, validate_work
from layerwise.sim.trace import Row, Trace, as_data


def import_trace(
    scenario: Scenario,
    paths: Sequence[Path],
    *,
    rank_of: Mapping[int, int] | None = None,
    untraced: Trace | None = None,
    repeats: int = TRACED_REPEATS,
) -> Trace:
    """The last `repeats` repeats that the files show of a scenario, as a measured trace.

    `rank_of`: process id -> rank. Other processes take the ranks whose ops their ranges name, in
    order of file, device and first kernel. A profiler disturbs: `untraced_step_s` is empty unless
    a trace of the same work brings it (`untraced`).

    Raises FileFormatError, SpecError; UnmeasuredOpError for an op without a kernel, or a kernel
    without an op within a repeat; TraceMismatchError for an `untraced` of other work.
    """
    scenario = scenario.with_kernels(KernelChoice())  # as a run's header has them
    run = compile_run(scenario)
    validate_run(run)
    validate_work(scenario.model, run)
    plan, num_ranks = plan_stream(run, alone=True), run[0].placement.num_ranks
    ranks = range(num_ranks) if scenario.run.only_rank < 0 else (scenario.run.only_rank,)
    programs = {rank: plan.body_programs(rank) for rank in ranks}
    recordings = [read_recording(path) for path in paths]
    tools = sorted({recording.tool for recording in recordings})
    if len(tools) != 1:
        raise SpecError("--import", tools, "mixes tools", "give the files of one tool, one or more")
    found, others = find_processes(paths, recordings, programs)
    chosen = assign_ranks(found, {r: names_of(ps) for r, ps in programs.items()}, rank_of or {})
    members = [join(rank, each, plan, programs[rank], scenario) for rank, each in chosen.items()]
    require_equal_counts(members)
    is_alone = num_ranks == 1 or scenario.run.only_rank >= 0
    kept = [keep_last(member, repeats, is_alone) for member in members]
    parts = tuple(chain.from_iterable(p.parts for ps in programs.values() for p in ps))
    kernel_set = kernel_set_hash(replace(programs[ranks[0]][0], parts=parts))
    trace = Trace(
        source="measured",
        name=scenario.name,
        scenario=as_data(scenario),
        kernel_set=kernel_set,
        rows=tuple(row for member in kept for row in _rows(member, plan, is_alone)),
        traced_step_s=_step_seconds(members, kept, plan, scenario),
        timing=tools[0],
        environment=_environment(paths, recordings, members, kept, others),
    )
    return trace if untraced is None else _with_untraced(trace, untraced)


def read_recording(path: Path) -> Recording:
    """Read a file of either tool, told by its first bytes. Raises FileFormatError."""
    try:
        with path.open("rb") as file:
            start = file.read(len(SQLITE_MAGIC))
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror}") from error
    if start == SQLITE_MAGIC:
        return read_nsys(path)
    if start.startswith(GZIP_MAGIC) or start.lstrip()[:1] in (b"{", b"["):
        return read_kineto(path)
    raise FileFormatError(
        f"{path}: is neither an export of Nsight Systems nor a trace of torch.profiler; "
        "give the file that `nsys export --type sqlite REPORT.nsys-rep` or "
        "`profiler.export_chrome_trace` writes"
    )


def _rows(member: Member, plan: StreamPlan, is_alone: bool) -> Iterable[Row]:
    for repeat, rounds in enumerate(member.repeats):
        for (step, _), (program, joined) in zip(plan.body, last_steps(member, rounds), strict=True):
            spans = _in_seconds(joined)
            yield from rows_of(program, spans, repeat=repeat, step=step, replaced=is_alone)


def _in_seconds(step: JoinedStep) -> Spans:
    # Nanoseconds since the epoch have more digits than a float: subtract first.
    origin_ns = min((span.start_ns for span in step.spans.values()), default=0)
    return {
        name: ((span.start_ns - origin_ns) * 1e-9, (span.end_ns - origin_ns) * 1e-9)
        for name, span in step.spans.items()
    }


def _step_seconds(
    members: Sequence[Member], kept: Sequence[Member], plan: StreamPlan, scenario: Scenario
) -> tuple[float, ...]:
    """Per round the slowest rank; of a stream from end to end, on the last stages.

    The first round of a stream has no end before it, and gives no time where nothing else does.
    """
    end_to_end = plan.is_stream and not plan.grows
    placement = plan.body[0][1].placement
    last_stages = {stages[-1].ranks[0] for stages in placement.replicas}
    is_whole = len(members) == placement.num_ranks
    asked = last_stages if plan.is_stream and is_whole else {m.rank for m in members}
    num_rounds = len(kept[0].repeats) * len(plan.rounds)
    per_rank = [
        _round_seconds(member, end_to_end)[-num_rounds:]
        for member in members
        if member.rank in asked
    ]
    in_one = scenario.run.steps_per_graph if scenario.run.launch == "graph" else 1
    return tuple(max(times) / in_one for times in zip(*per_rank, strict=True))


def _round_seconds(member: Member, end_to_end: bool) -> list[float]:
    spans = [
        [span for step in each for span in step.spans.values()]
        for rounds in member.repeats
        for each in rounds
    ]
    ends = [max((span.end_ns for span in every), default=0) for every in spans]
    if end_to_end:
        return [(end - before) * 1e-9 for before, end in zip(ends, ends[1:], strict=False)]
    starts = [min((span.start_ns for span in every), default=0) for every in spans]
    return [(end - start) * 1e-9 for start, end in zip(starts, ends, strict=True)]


def _environment(
    paths: Sequence[Path],
    recordings: Sequence[Recording],
    members: Sequence[Member],
    kept: Sequence[Member],
    others: int,
) -> dict[str, str]:
    """Where the numbers are from, and what of the files is not in them."""
    versions = dict.fromkeys(f"{recording.tool} {recording.version}" for recording in recordings)
    gpus = dict.fromkeys(gpu for recording in recordings for gpu in recording.gpus)
    seen = len(members[0].repeats)
    return {
        "imported_from": "; ".join(versions),
        "imported_files": ", ".join(path.name for path in paths),
        "imported_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "imported_ranks": "; ".join(f"{m.rank}: {m.found}" for m in members),
        "imported_repeats": f"the last {len(kept[0].repeats)} of {seen}",
        "partial_steps": str(sum(member.num_partial_steps for member in members)),
        "unmatched_kernels": str(others + sum(member.num_unmatched for member in members)),
    } | ({"gpu": ", ".join(gpus)} if gpus else {})


def _with_untraced(trace: Trace, untraced: Trace) -> Trace:
    """The step times of a run that nothing watched, and where that run was."""

    def work(one: Trace) -> tuple[object, ...]:
        keys = ("model", "cluster", "placement", "workload")
        run = {k: v for k, v in one.scenario.get("run", {}).items() if k != "repeats"}
        return (one.kernel_set, run, *(one.scenario.get(key) for key in keys))

    if untraced.source != "measured" or _plain(work(untraced)) != _plain(work(trace)):
        raise TraceMismatchError(
            f"trace {untraced.name!r} is no measurement of this scenario with these kernels; "
            "measure it with --timing none, and give that trace"
        )
    return replace(
        trace,
        untraced_step_s=untraced.untraced_step_s,
        measured=untraced.measured,
        environment=untraced.environment | trace.environment,
    )


def _plain(value: object) -> object:
    """As a file holds it: a sequence is a list."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value

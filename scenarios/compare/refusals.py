"""Traces that are refused, naming the row, and what keeps one that is shown out of every score."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from layerwise.scenarios.compare.accounts import COLLECTIVES, MESSAGES, RowKey
from layerwise.scenarios.compare.fitted import FittedShapes
from layerwise.sim.plan.errors import ProfileMismatchError, TraceMismatchError
from layerwise.sim.plan.hardware import GpuSpec
from layerwise.sim.profile import Profile
from layerwise.sim.trace import THROTTLE_NOTES, Row, Trace, is_held_down

NAMED = 3  # of what is wrong, so many are named in a message
FIRST_ROW_LINE = 2  # of a trace file: the header comes first


def check_gpu(trace: Trace, gpu: GpuSpec, profile: Profile) -> None:
    """Raise ProfileMismatchError for a trace of another GPU than its scenario or the profile says."""
    if gpu.name != profile.gpu:
        raise ProfileMismatchError(
            f"trace {trace.name!r} is of a scenario with cluster.gpu={gpu.name!r} and profile "
            f"{profile.name!r} is of {profile.gpu}; give a profile of {gpu.name}"
        )
    for key, expected in (("num_sms", gpu.num_sms), ("l2_bytes", gpu.l2_bytes)):
        found = trace.environment.get(key)
        if found is not None and found != str(expected):
            raise ProfileMismatchError(
                f"trace {trace.name!r}: environment.{key}={found!r} on "
                f"{trace.environment.get('gpu', 'an unknown GPU')} and a {gpu.name} has {expected}: "
                "it was measured on another GPU; name the GPU that was measured in cluster.gpu"
            )


def check_rows(trace: Trace) -> None:
    """Raise TraceMismatchError for rows that are there twice or not in every repeat.

    Also for an op that says it was replaced and is no message.
    """
    lines: dict[tuple[int, int, int, str], int] = {}
    repeats: dict[RowKey, dict[int, int]] = defaultdict(dict)
    for line, row in enumerate(trace.rows, FIRST_ROW_LINE):
        if row.replaced and row.kind not in (*MESSAGES, *COLLECTIVES):
            raise _bad(trace, row, line, "is no message and cannot have been replaced")
        if row.key in lines:
            raise _bad(trace, row, line, f"stands in line {lines[row.key]} already")
        lines[row.key] = line
        repeats[row.step, row.rank, row.op][row.repeat] = line
    every = {row.repeat for row in trace.rows}
    for (step, rank, op), found in repeats.items():
        if missing := sorted(every - found.keys()):
            some = next(iter(found.values()))
            raise TraceMismatchError(
                f"trace {trace.name!r}: repeat {missing[0]} lacks step {step} rank {rank} {op}, "
                f"which line {some} has for repeat {trace.rows[some - FIRST_ROW_LINE].repeat}; "
                "a repeat that is not whole is not averaged with others: measure again"
            )


def _bad(trace: Trace, row: Row, line: int, problem: str) -> TraceMismatchError:
    return TraceMismatchError(
        f"trace {trace.name!r}: line {line}: repeat {row.repeat} step {row.step} rank {row.rank} "
        f"{row.op} {problem}; measure again, or take another copy"
    )


def check_joined(trace: Trace, predicted: Mapping[RowKey, str]) -> None:
    """Raise TraceMismatchError unless every row of either side has a partner of the same kind.

    `predicted`: the kind of each op of the measured steps, on the ranks that ran.
    """
    measured = {
        (row.step, row.rank, row.op): line for line, row in enumerate(trace.rows, FIRST_ROW_LINE)
    }
    extra = sorted(measured.keys() - predicted.keys())
    if extra:
        names = ", ".join(f"{_name(key)} (line {measured[key]})" for key in extra[:NAMED])
        raise _unmatched(trace, len(extra), "measured and not predicted", names)
    missing = sorted(predicted.keys() - measured.keys())
    if missing:
        names = ", ".join(map(_name, missing[:NAMED]))
        raise _unmatched(trace, len(missing), "predicted and not measured", names)
    for line, row in enumerate(trace.rows, FIRST_ROW_LINE):
        kind = predicted[row.step, row.rank, row.op]
        if row.kind != kind:
            raise _bad(trace, row, line, f"is a {row.kind} and its scenario has a {kind} there")


def _name(key: RowKey) -> str:
    return f"step {key[0]} rank {key[1]} {key[2]}"


def _unmatched(trace: Trace, count: int, how: str, names: str) -> TraceMismatchError:
    return TraceMismatchError(
        f"trace {trace.name!r}: {count} rows are {how}: {names}; "
        "it is of another model, or of another version: measure again with this one"
    )


def quarantine_of(trace: Trace, fitted: FittedShapes) -> tuple[str, ...]:
    """Why a trace is shown and has no say, a phrase each; empty where nothing is against it."""
    found: list[str] = []
    environment = trace.environment
    if "ended_early" in environment:
        found.append(f"the run ended early: {environment['ended_early']}")
    for key, when in THROTTLE_NOTES[0 if "throttled" in environment else 1].items():
        reasons = environment.get(key, "no")
        if is_held_down(reasons):
            found.append(f"the GPU throttled {when}: {reasons}")
    if environment.get("device") == "cpu":
        found.append("it was measured on a CPU")
    if fitted.is_all:
        found.append(f"all of its {fitted.num_shapes} op shapes were fitted")
    return tuple(found)


def require_unseen(trace: Trace, file_hash: str, profile: Profile) -> None:
    """Raises TraceMismatchError for a trace that a fit has seen, by its purpose or its file."""
    if trace.purpose == "fit":
        raise TraceMismatchError(
            f"trace {trace.name!r} has purpose='fit': the profile has seen it, so it validates "
            "nothing; compare it with --measured, or take it out of the validation folder"
        )
    seen = [name for name, known in profile.data_hashes.items() if known == file_hash]
    if trace.purpose == "validation" and seen:
        raise TraceMismatchError(
            f"trace {trace.name!r} has purpose='validation' and profile {profile.name} "
            f"{profile.digest} was fitted to the same file, as {seen[0]} ({file_hash}); measure "
            "again for validation, or fit without it"
        )


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, dotted, each with both values."""
    ours, theirs = dict(_flat(one)), dict(_flat(other))
    return [
        f"{key}={theirs.get(key)!r} where the scenario has {ours.get(key)!r}"
        for key in dict.fromkeys((*ours, *theirs))
        if ours.get(key) != theirs.get(key)
    ]


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

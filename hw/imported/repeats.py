"""From the records of one process to the repeats of one rank: whole, and with nothing unexplained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from layerwise.hw.engine.schedule import actions_of
from layerwise.hw.errors import UnmeasuredOpError
from layerwise.hw.imported.ranks import HOW_TO_PROFILE, Found, names_of, some_of
from layerwise.hw.instrument.spans import (
    GraphNodeMismatchError,
    JoinedStep,
    OpSpan,
    count_unmatched,
    join_eager,
    join_graph,
    name_nodes,
)
from layerwise.hw.streams import StreamPlan
from layerwise.sim.plan.program import Program
from layerwise.sim.plan.scenario import Scenario

Round = Sequence[JoinedStep]
"""Steps that were issued together."""


@dataclass(frozen=True)
class Member:
    """One rank of the run: its whole repeats, each a list of rounds, and what was left out."""

    rank: int
    found: Found
    programs: Sequence[Program]
    repeats: Sequence[Sequence[Round]]
    num_partial_steps: int
    num_unmatched: int


def join(
    rank: int, found: Found, plan: StreamPlan, programs: Sequence[Program], scenario: Scenario
) -> Member:
    """Join one process's kernels with the ops of its rank, and find the repeats."""
    names = names_of(programs)
    own = replace(found.process, markers=tuple(m for m in found.process.markers if m.name in names))
    launched = {actions_of(program)[0].placed.name for program in programs}
    first = launched.pop() if len(launched) == 1 else ""
    if scenario.run.launch == "graph":
        _require_nodes(replace(found, process=own))
        rounds, spans = _replayed(replace(found, process=own), plan, scenario, first)
        repeats, partial = _group(found, rounds, len(plan.rounds)), 0
    else:
        _refuse_nodes(found)
        steps = join_eager(own.kernels, own.api_calls, own.markers, first)
        spans = [step.spans for step in steps]
        whole, partial = _whole_repeats(found, steps, [names_of([program]) for program in programs])
        repeats = [[[each[place] for place in places] for places in plan.rounds] for each in whole]
    unmatched = count_unmatched(own.kernels, spans)
    return Member(rank, found, programs, repeats, partial, unmatched)


def _require_nodes(found: Found) -> None:
    """Raise UnmeasuredOpError, saying how to profile, where replays cannot be told apart."""
    process = found.process
    if not any(kernel.graph_node_id for kernel in process.kernels):
        if process.num_whole_graphs:
            raise UnmeasuredOpError(
                f"{found}: {process.num_whole_graphs} graph launches were recorded as one thing "
                "each, their kernels unseen; profile with `nsys profile --cuda-graph-trace=node`"
            )
        raise UnmeasuredOpError(
            f"{found}: run.launch='graph' and there is no graph replay; set run.launch='eager' if "
            f"that is how it ran, or else {HOW_TO_PROFILE}"
        )
    if not process.created_nodes:
        problem = (
            "a trace of torch.profiler does not say where a graph's nodes were captured; "
            "profile eagerly (run.launch='eager'), or with nsys"
            if found.tool == "kineto"
            else f"there is no table CUDA_GRAPH_NODE_EVENTS; {HOW_TO_PROFILE}"
        )
        raise UnmeasuredOpError(f"{found}: its graph nodes cannot be named: {problem}")


def _refuse_nodes(found: Found) -> None:
    process = found.process
    if process.num_whole_graphs or any(kernel.graph_node_id for kernel in process.kernels):
        raise UnmeasuredOpError(
            f"{found}: run.launch='eager' and there are graph replays; set run.launch='graph', or "
            "profile the eager run by itself"
        )


def _replayed(
    found: Found, plan: StreamPlan, scenario: Scenario, first: str
) -> tuple[list[Round], list[Mapping[str, OpSpan]]]:
    """The steps of each replay; and all spans of each, by their names in the capture."""
    process = found.process
    try:
        nodes = name_nodes(process, process.markers, first)
    except GraphNodeMismatchError as error:
        raise UnmeasuredOpError(f"{found}: {error}; {HOW_TO_PROFILE}") from error
    if not nodes:
        raise UnmeasuredOpError(
            f"{found}: no node that ran was created within an op's range: the graph was captured "
            f"without ranges; {HOW_TO_PROFILE}"
        )
    replays = join_graph(process.kernels, nodes)
    num_steps = len(plan.rounds[0]) * scenario.run.steps_per_graph
    return [_steps_of(replay, num_steps) for replay in replays], [r.spans for r in replays]


def _steps_of(replay: JoinedStep, num_steps: int) -> list[JoinedStep]:
    """A replay cut into the steps that were captured; a second capture's steps count on."""
    # What ran astray is of the whole replay, and noted once.
    steps = [
        JoinedStep(frozenset(), {}, () if index else replay.strays) for index in range(num_steps)
    ]
    for key, span in replay.spans.items():
        step, _, name = key.partition("|")
        steps[int(step) % num_steps].spans[name] = span
    return steps


def _group(found: Found, rounds: Sequence[Round], size: int) -> list[list[Round]]:
    if len(rounds) % size:
        raise UnmeasuredOpError(
            f"{found}: {len(rounds)} replays are no multiple of the {size} that make a repeat; "
            "profile whole repeats"
        )
    return [list(rounds[at : at + size]) for at in range(0, len(rounds), size)]


def _whole_repeats(
    found: Found, steps: Sequence[JoinedStep], wanted: Sequence[frozenset[str]]
) -> tuple[list[Sequence[JoinedStep]], int]:
    """Repeats whose steps went through all their ranges; and how many steps are no whole repeat.

    A recording may begin within a step (where one step is a repeat), and end within one.
    """
    size = len(wanted)

    def is_whole(at: int) -> bool:
        return [step.names for step in steps[at : at + size]] == list(wanted)

    begin = at = 1 if size == 1 and len(steps) > 1 and not is_whole(0) else 0
    repeats: list[Sequence[JoinedStep]] = []
    while is_whole(at):
        repeats.append(steps[at : at + size])
        at += size
    rest = [step.names for step in steps[at:]]
    is_cut_short = len(rest) <= size and rest[:-1] == list(wanted[: len(rest[:-1])])
    if not repeats or not is_cut_short:
        place = next((i for i, own in enumerate(rest[:size]) if own != wanted[i]), 0)
        lacking = wanted[place] - rest[place] if rest else wanted[place]
        raise UnmeasuredOpError(
            f"{found}: step {at + place} of {len(steps)} went through no range of "
            f"{some_of(lacking)}; profile whole steps of this very scenario"
        )
    return repeats, begin + len(rest)


def require_equal_counts(members: Sequence[Member]) -> None:
    """Raise UnmeasuredOpError where one rank was seen for longer than another."""
    counts = {str(member.found): len(member.repeats) for member in members}
    if len(set(counts.values())) > 1:
        raise UnmeasuredOpError(
            f"the ranks show different numbers of whole repeats: {counts}; "
            "profile all ranks over the same ones"
        )


def keep_last(member: Member, repeats: int, is_alone: bool) -> Member:
    """The last repeats only, each checked. Raises UnmeasuredOpError."""
    kept = replace(member, repeats=member.repeats[-repeats:])
    for index, rounds in enumerate(kept.repeats):
        strays = [kernel.name for each in rounds for step in each for kernel in step.strays]
        if strays:
            raise UnmeasuredOpError(
                f"{member.found} (rank {member.rank}): {len(strays)} kernels ran within repeat "
                f"{index} and in no op's range: {some_of(strays)}; profile the run without them"
            )
        lacking = [
            placed.name
            for program, step in last_steps(kept, rounds)
            for placed in program
            if placed.name not in step.spans and not (is_alone and placed.op.meets)
        ]
        if lacking:
            raise UnmeasuredOpError(
                f"{member.found} (rank {member.rank}): no kernel was seen of {some_of(lacking)} in "
                f"repeat {index}; profile again, with fewer repeats if records were lost"
            )
    return kept


def last_steps(member: Member, rounds: Sequence[Round]) -> list[tuple[Program, JoinedStep]]:
    """Each program of the body with its step; where a graph holds it several times, the last."""
    size = len(member.programs) // len(rounds)
    steps = chain.from_iterable(each[-size:] for each in rounds)
    return list(zip(member.programs, steps, strict=True))

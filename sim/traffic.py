"""What each op moves in a steady step, as the state of the L2 has it: to be held against counters.

A simulation keeps no bytes: it prices an op and forgets them. So the ops are walked once more, in
the order and through the state that the simulator walks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from layerwise.sim.cost import forms
from layerwise.sim.cost.model import Traffic
from layerwise.sim.machine.blocks import BlockCache, Walked, walk
from layerwise.sim.machine.cluster import SimulatedCluster
from layerwise.sim.machine.l2 import Entry, L2State
from layerwise.sim.machine.work import Work
from layerwise.sim.plan import ops
from layerwise.sim.plan.errors import ProfileMismatchError
from layerwise.sim.plan.ops import BufferKey
from layerwise.sim.plan.program import Program, repeated_steps
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import Plan, resolve

# Far more than an L2 needs to forget where it started.
MAX_REPEATS = 16


def traffic_of(scenario: Scenario, profile: Profile | None) -> dict[str, Traffic]:
    """Bytes per op name in one steady repeat of what a measurement repeats, on one rank alone.

    The rank is `run.only_rank`, or the first one; its messages move nothing, as when it is measured
    alone. Of a prefill, bytes are summed over its steps. Without a profile: the speed of light.
    Raises SpecError when the number of microbatches is open, and what `resolve` raises.
    """
    return walk_steady(resolve(scenario, profile))


def walk_steady(plan: Plan) -> dict[str, Traffic]:
    """Walk the same of a resolved plan."""
    run, spec = plan.compile(), plan.scenario.run
    rank = max(spec.only_rank, 0)
    machine = SimulatedCluster(
        run,
        plan.cost,
        plan.scenario.cluster,
        blocks=BlockCache(plan.cost),
        alone=rank,
        persisting_weights=spec.persisting_weights,
    )
    steps = [machine.work_of(run[index].programs[rank]) for index in repeated_steps(run)]
    state = machine.l2_of(rank)
    found: dict[str, Traffic] = {}
    for _ in range(MAX_REPEATS):
        before, found = list(state.entries), _one_repeat(steps, state)
        if state.entries == before:
            break
    return found


class Moved(NamedTuple):
    """What one op moved, and the bytes that its GPU's L2 held when it was over."""

    traffic: Traffic
    l2_bytes: int


def walk_rank(machine: SimulatedCluster, rank: int) -> Iterator[dict[str, Moved]]:
    """By op name, step by step: what the local ops of one simulated rank moved in its run.

    The L2 starts empty, and messages and collectives pass through it, as in the simulation. Lines
    that are set aside for persisting windows are not counted as held.
    """
    state = machine.l2_of(rank)
    # A step that begins as another one did goes the same way: most steps of a stream do.
    known: dict[tuple[object, ...], tuple[dict[str, Moved], list[Entry], set[BufferKey]]] = {}
    for compiled in machine.run:
        program, context = compiled.template[rank], compiled.step.context_tokens
        begin = (id(program), context, tuple(state.entries), frozenset(state.kept))
        if begin not in known:
            found = _walk_step(machine, program, context, state)
            known[begin] = (found, list(state.entries), set(state.kept))
        found, entries, kept = known[begin]
        state.entries, state.kept = list(entries), set(kept)
        yield found


def _walk_step(
    machine: SimulatedCluster, program: Program, context_tokens: int, state: L2State
) -> dict[str, Moved]:
    is_alone = machine.alone >= 0
    most_bytes = round(machine.cluster.gpu.l2_bytes * state.left)
    found: dict[str, Moved] = {}
    received: list[Work] = []
    for work in machine.work_of(program):
        if work.kind == "block":
            _receive(received, state)
            for traffic, name in _walk_block(work, state, context_tokens):
                held = sum(size for _, size, _ in state.entries)
                found[name] = Moved(traffic, min(held, most_bytes))
        elif work.kind == "collective" and not is_alone:
            part = work.parts[0]
            state.traffic_of(work.op, part.layer, part.microbatch)
        received = [*received, work] if work.kind == "recv" and not is_alone else []
    return found


def add_up(each: Iterable[Traffic]) -> Traffic:
    """Bytes of several ops together; what is no number of bytes is the last one's."""
    total = Traffic(0, 0, 0)
    for one in each:
        total = replace(
            one,
            hbm_read_bytes=total.hbm_read_bytes + one.hbm_read_bytes,
            l2_read_bytes=total.l2_read_bytes + one.l2_read_bytes,
            written_bytes=total.written_bytes + one.written_bytes,
            written_back_bytes=total.written_back_bytes + one.written_back_bytes,
        )
    return total


def read_traffic(working_set_bytes: int, profile: Profile, l2_bytes: int) -> Traffic:
    """One pass of the read kernel over a working set that it has passed over before.

    One kernel has the whole L2: the ramp is that of the read curve, not that of kernels in turn.
    """
    missing = {"l2_full_hit", "l2_no_hit"} - profile.machine.keys()
    if missing:
        raise ProfileMismatchError(
            f"profile {profile.name!r} has no machine constant {sorted(missing)}; it is from "
            "another version: calibrate again"
        )
    full, none = (profile.machine[name].value * l2_bytes for name in ("l2_full_hit", "l2_no_hit"))
    hit_bytes = round(forms.ramp(working_set_bytes, full, none) * working_set_bytes)
    return Traffic(working_set_bytes - hit_bytes, hit_bytes, 0)


def _receive(received: Iterable[Work], state: L2State) -> None:
    """A block finds in the L2 what arrived right before it."""
    for one in received:
        op, part = one.op, one.parts[0]
        assert isinstance(op, ops.Recv)
        state.receive(op.buffer, part.layer, part.microbatch)


def _walk_block(one: Work, state: L2State, context_tokens: int) -> Iterator[tuple[Traffic, str]]:
    """Op by op, so that the state can be looked at between two."""
    for part in one.parts:
        for op in part.segment.at(context_tokens).ops:
            yield state.traffic_of(op, part.layer, part.microbatch), part.name_of(op)


def _one_repeat(steps: Sequence[Sequence[Work]], state: L2State) -> dict[str, Traffic]:
    found: dict[str, list[Traffic]] = {}
    for one in (one for step in steps for one in step if one.kind == "block"):
        for walked in walk(one.parts, state):
            found.setdefault(_name_of(one, walked), []).append(walked.traffic)
    return {name: add_up(each) for name, each in found.items()}


def _name_of(one: Work, walked: Walked) -> str:
    return one.parts[walked.part_index].name_of(walked.op)

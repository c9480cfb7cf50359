"""What each op moves in a steady step, as the state of the L2 has it: to be held against counters.

A simulation keeps no bytes: it prices an op and forgets them. So the ops are walked once more, in
the order and through the state that the simulator walks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sim.cost import forms
from sim.cost.model import CostModel, Traffic
from sim.machine.blocks import BlockCache, Walked, walk
from sim.machine.cluster import SimulatedCluster
from sim.machine.l2 import L2State
from sim.machine.work import Work
from sim.plan.errors import ProfileMismatchError
from sim.plan.program import repeated_steps
from sim.plan.scenario import Scenario, compile_run
from sim.predict import cost_model
from sim.profile import Profile

# Far more than an L2 needs to forget where it started.
MAX_REPEATS = 16


def traffic_of(scenario: Scenario, profile: Profile | None) -> dict[str, Traffic]:
    """Bytes per op name in one steady repeat of what a measurement repeats, on one rank alone.

    The rank is `run.only_rank`, or the first one; its messages move nothing, as when it is measured
    alone. Of a prefill, bytes are summed over its steps. Without a profile: the speed of light.
    Raises SpecError when the number of microbatches is open, and what `cost_model` raises.
    """
    if profile and not scenario.kernels:
        scenario = scenario.with_kernels(profile.kernels)
    return walk_steady(scenario, cost_model(scenario.cluster, profile))


def walk_steady(scenario: Scenario, cost: CostModel) -> dict[str, Traffic]:
    """`traffic_of` under a cost model at hand; the scenario's kernels are the caller's to give."""
    run, rank = compile_run(scenario), max(scenario.run.only_rank, 0)
    machine = SimulatedCluster(
        run, cost, scenario.cluster, blocks=BlockCache(cost), alone=rank,
        persisting_weights=scenario.run.persisting_weights,
    )  # fmt: skip
    steps = [machine.work_of(run[index].programs[rank]) for index in repeated_steps(run)]
    state = machine.l2_of(rank)
    found: dict[str, Traffic] = {}
    for _ in range(MAX_REPEATS):
        before, found = list(state.entries), _one_repeat(steps, state)
        if state.entries == before:
            break
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


def _one_repeat(steps: Sequence[Sequence[Work]], state: L2State) -> dict[str, Traffic]:
    found: dict[str, list[Traffic]] = {}
    for one in (one for step in steps for one in step if one.kind == "block"):
        for walked in walk(one.parts, state):
            found.setdefault(_name_of(one, walked), []).append(walked.traffic)
    return {name: add_up(each) for name, each in found.items()}


def _name_of(one: Work, walked: Walked) -> str:
    return one.parts[walked.part_index].name_of(walked.op)

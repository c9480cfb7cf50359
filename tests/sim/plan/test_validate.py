"""Programs that were broken on purpose are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from layerwise.sim.plan import ops
from layerwise.sim.plan.errors import DeadlockError, ProgramError
from layerwise.sim.plan.ops import Buffer, Op
from layerwise.sim.plan.program import Part, Program, Segment, StepPrograms
from layerwise.sim.plan.scenario import PlacementSpec, compile_run
from layerwise.sim.plan.validate import validate_run, validate_work
from tests.sim.scenes import scenario_of

Change = Callable[[Part], list[Part]]
STAGES = PlacementSpec(num_gpus=2)
SHARDS = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2)


def broken(spec: PlacementSpec, rank: int, change: Change) -> list[StepPrograms]:
    """The first step's program of one rank, each part replaced by what `change` returns."""
    first, *others = compile_run(scenario_of(spec, num_steps=1))
    program = first.programs[rank]
    parts = tuple(new for part in program.parts for new in change(part))
    programs = list(first.programs)
    programs[rank] = replace(program, parts=parts)
    return [replace(first, template=tuple(programs)), *others]


def has(part: Part, kind: type[Op]) -> bool:
    return any(isinstance(op, kind) for op in part.segment.ops)


def with_ops(part: Part, change: Callable[[Op], Op]) -> Part:
    return part._replace(segment=Segment(tuple(change(op) for op in part.segment.ops)))


def test_dropped_send_is_refused() -> None:
    run = broken(STAGES, 0, lambda part: [] if has(part, ops.Send) else [part])

    with pytest.raises(ProgramError, match="act messages from rank 0 to rank 1: 0 sent, 1 rec"):
        validate_run(run)


def test_dropped_receive_is_refused() -> None:
    run = broken(STAGES, 1, lambda part: [] if has(part, ops.Recv) else [part])

    with pytest.raises(ProgramError, match="from rank 0 to rank 1: 1 sent, 0 received"):
        validate_run(run)


def test_payload_of_another_size_is_refused() -> None:
    def shrink(op: Op) -> Op:
        return replace(op, payload_bytes=2) if isinstance(op, ops.Send) else op

    with pytest.raises(ProgramError, match="rank 0 to rank 1: 1 sent, 1 received, payloads diff"):
        validate_run(broken(STAGES, 0, lambda part: [with_ops(part, shrink)]))


def test_send_to_another_peer_is_refused() -> None:
    def misdirect(op: Op) -> Op:
        return replace(op, peer=0) if isinstance(op, ops.Send) else op

    with pytest.raises(ProgramError, match="from rank 0 to rank 0: 1 sent, 0 received"):
        validate_run(broken(STAGES, 0, lambda part: [with_ops(part, misdirect)]))


def test_name_used_twice_is_refused() -> None:
    run = broken(STAGES, 0, lambda part: [part, part] if part.layer == 1 else [part])

    with pytest.raises(ProgramError, match="rank 0: op names occur more than once: .*L01.attn"):
        validate_run(run)


def test_rank_missing_at_a_collective_is_refused() -> None:
    def without(part: Part) -> list[Part]:
        left = tuple(op for op in part.segment.ops if not isinstance(op, ops.AllReduce))
        return [part._replace(segment=Segment(left))]

    with pytest.raises(DeadlockError, match="rank 0 waits at L00.attn.all_reduce@m0"):
        validate_run(broken(SHARDS, 1, without))


def test_collectives_of_other_sizes_are_refused() -> None:
    def shrink(op: Op) -> Op:
        return replace(op, payload_bytes=2) if isinstance(op, ops.AllReduce) else op

    with pytest.raises(DeadlockError, match="rank 1 waits at L00.attn.all_reduce@m0"):
        validate_run(broken(SHARDS, 1, lambda part: [with_ops(part, shrink)]))


def test_ranks_that_wait_for_each_other_are_refused() -> None:
    compiled = compile_run(scenario_of(STAGES, num_steps=1))[0]
    buffer = Buffer("b", "communication", (2,), "bfloat16")

    def crossing(rank: int) -> Program:
        common = {"buffer": buffer, "payload_bytes": 4, "peer": 1 - rank, "channel": "act"}
        waits = Segment((ops.Recv(name="recv", **common), ops.Send(name="send", **common)))
        return replace(compiled.programs[rank], parts=(Part(waits, "P0", 0, 0),))

    run = [replace(compiled, template=(crossing(0), crossing(1)))]

    with pytest.raises(DeadlockError, match="rank 0 waits at P0.recv@m0; rank 1 waits at P0.recv"):
        validate_run(run)


def test_layer_left_out_is_refused() -> None:
    scenario = scenario_of(STAGES, num_steps=1)
    validate_work(scenario.model, compile_run(scenario))
    run = broken(STAGES, 1, lambda part: [] if part.prefix == "L07" else [part])

    with pytest.raises(ProgramError, match="step 0: the programs compute"):
        validate_work(scenario.model, run)

"""Where a program is cut into work, and when one rank may stand for its stage."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerwise.sim.machine.work import Work, cut_into_work, ranks_that_stand, stages_are_alike
from layerwise.sim.plan import ops
from layerwise.sim.plan.hardware import ClusterSpec, SlowParts
from layerwise.sim.plan.program import Program
from layerwise.sim.plan.scenario import PlacementSpec, compile_run, place
from tests.sim.scenes import CLUSTER, H100, pipeline, scenario_of

# Two layers a stage, each with two all-reduces.
SHARDS = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2, pipeline_parallel=4)
LAYERS = 2


def shard(microbatches: int = 1) -> Program:
    """The first rank of the second stage in the middle of a stream."""
    return compile_run(scenario_of(SHARDS, microbatches=microbatches))[1].programs[2]


def kinds(work: list[Work]) -> list[str]:
    return [one.kind for one in work]


def test_collectives_that_meet_are_work_of_their_own() -> None:
    layer = ["block", "collective", "block", "collective"]

    assert ["recv", *layer * LAYERS, "block", "send"] == kinds(
        cut_into_work(shard(), collectives_meet=True)
    )


def test_collectives_of_members_that_arrive_together_are_ops_of_a_block() -> None:
    work = cut_into_work(shard(), collectives_meet=False)
    inside = [op for part in work[1].parts for op in part.segment.ops]

    assert ["recv", "block", "send"] == kinds(work)
    assert 2 * LAYERS == sum(isinstance(op, ops.AllReduce) for op in inside)


def test_collective_that_is_a_part_by_itself_is_no_meeting_either() -> None:
    program = shard()
    cut = [part for one in cut_into_work(program, collectives_meet=True) for part in one.parts]
    program = replace(program, parts=tuple(cut))

    assert ["recv", "block", "send"] == kinds(cut_into_work(program, collectives_meet=False))


def test_each_microbatch_is_received_worked_on_and_sent() -> None:
    work = cut_into_work(shard(3), collectives_meet=False)

    assert ["recv", "block", "send"] * 3 == kinds(work)
    assert [n for n in range(3) for _ in range(3)] == [one.parts[0].microbatch for one in work]


@pytest.mark.parametrize("meet", [True, False])
def test_rank_without_collectives_is_cut_at_its_messages(*, meet: bool) -> None:
    first, last = compile_run(pipeline(2, 1, num_steps=1))[0].programs

    assert ["block", "send"] == kinds(cut_into_work(first, collectives_meet=meet))
    assert ["recv", "block"] == kinds(cut_into_work(last, collectives_meet=meet))


@pytest.mark.parametrize("meet", [True, False])
def test_cut_work_is_the_whole_program_in_its_order(*, meet: bool) -> None:
    program = shard(2)
    work = cut_into_work(program, collectives_meet=meet)
    names = [part.name_of(op) for one in work for part in one.parts for op in part.segment.ops]

    assert [placed.name for placed in program] == names
    assert len(program) == sum(one.num_ops for one in work)


def test_meeting_is_one_op() -> None:
    work = cut_into_work(shard(), collectives_meet=True)
    meetings = [one for one in work if one.kind != "block"]

    assert [1] * len(meetings) == [one.num_ops for one in meetings]
    assert all(one.op.meets for one in meetings)


def test_repeated_microbatches_are_cut_into_the_same_segments() -> None:
    # By identity: that is how a repeat is known.
    work = cut_into_work(shard(4), collectives_meet=True)
    collectives = [one.parts[0].segment for one in work if one.kind == "collective"]

    assert collectives[: 2 * LAYERS] * 4 == collectives


def nodes_of(gpus: int, num_nodes: int = 8) -> ClusterSpec:
    return ClusterSpec(
        name="test",
        gpu=H100,
        num_nodes=num_nodes,
        gpus_per_node=gpus,
        nvlink=CLUSTER.nvlink,
        nic=CLUSTER.nic,
    )


@pytest.mark.parametrize(
    ("shards", "stages", "replicas", "gpus_per_node", "expected"),
    [
        (2, 2, 1, 8, True),
        # Each stage fills a node: all ranks cross.
        (4, 2, 1, 4, True),
        # Ranks 0 1 | 2 3 on nodes of three: one rank of the second stage is with its peer.
        (2, 2, 1, 3, False),
        # A group on both nodes, whose peer is itself.
        (2, 1, 1, 1, True),
        # The same, but for one replica of four: 0 1 and 2 | 3, nodes of three.
        (2, 1, 4, 3, False),
        # Two replicas of two stages, each on a node of its own.
        (1, 2, 2, 2, True),
        # Replicas 0 1 2 and 3 | 4 5: only the second one crosses after its first stage.
        (1, 3, 2, 4, False),
    ],
)
def test_stages_are_alike_where_all_their_ranks_meet_over_the_same_wires(
    shards: int, stages: int, replicas: int, gpus_per_node: int, *, expected: bool
) -> None:
    spec = PlacementSpec(
        strategy="tensor-pipeline",
        tensor_parallel=shards,
        pipeline_parallel=stages,
        data_parallel=replicas,
    )
    cluster = nodes_of(gpus_per_node)

    assert expected == stages_are_alike(place(scenario_of(spec, cluster=cluster)), cluster)


@pytest.mark.parametrize(
    ("slow", "expected"),
    [
        (SlowParts(), {0: (1, 4, 5), 2: (3, 6, 7)}),
        # At full speed nobody is slow.
        (SlowParts(gpus=(1,), ports=(1,)), {0: (1, 4, 5), 2: (3, 6, 7)}),
        # Its column, its group, and no other replica.
        (SlowParts(gpus=(3,), hbm_share=0.5), {0: (), 2: (), 1: (), 3: (), 4: (5,), 6: (7,)}),
        # A whole group that is slow in the same way.
        (SlowParts(ports=(0, 1), nic_share=0.5), {0: (1,), 2: (3,), 4: (5,), 6: (7,)}),
        # Two replicas that are slow in the same place.
        (SlowParts(gpus=(1, 5), hbm_share=0.5), {0: (4,), 2: (6,), 1: (5,), 3: (7,)}),
    ],
)
def test_ranks_stand_for_those_that_are_as_fast(
    slow: SlowParts, expected: dict[int, tuple[int, ...]]
) -> None:
    spec = PlacementSpec(
        strategy="tensor-pipeline", tensor_parallel=2, pipeline_parallel=2, data_parallel=2
    )
    cluster = replace(nodes_of(8, num_nodes=1), slow=slow)

    assert expected == ranks_that_stand(place(scenario_of(spec, cluster=cluster)), cluster)

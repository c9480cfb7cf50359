"""The host's order: receives are posted as early as their buffers allow."""

from __future__ import annotations

from layerwise.hw.engine.schedule import Action, actions_of
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.placement import tensor_pipeline
from layerwise.sim.plan.program import Program
from layerwise.sim.plan.workload import Step
from tests.hw.scenes import TINY


def program(stage: int, microbatches: int = 2) -> Program:
    step = Step(
        phase="decode",
        microbatch_sizes=(1,) * microbatches,
        query_tokens=1,
        context_tokens=4,
        kv_capacity_tokens=4,
        takes_feedback=True,
        gives_feedback=True,
    )
    placement = tensor_pipeline(TINY, pipeline_parallel=2)
    return compile_step(TINY, placement, step, KernelChoice()).programs[stage]


def verbs(actions: tuple[Action, ...], name: str) -> list[str]:
    return [action.verb for action in actions if action.placed.name == name]


def test_all_receives_of_a_step_are_posted_before_it_computes() -> None:
    actions = actions_of(program(1))
    assert ["P1.act.recv@m0", "P1.act.recv@m1"] == [a.placed.name for a in actions[:2]]
    assert ["post", "post", "wait"] == [action.verb for action in actions[:3]]


def test_every_receive_is_posted_once_and_waited_for_once() -> None:
    actions = actions_of(program(0))
    assert ["post", "wait"] == verbs(actions, "P0.token.recv@m1")


def test_every_other_op_runs_once_in_order() -> None:
    ran = [action.placed.name for action in actions_of(program(1)) if action.verb == "run"]
    assert [p.name for p in program(1) if not p.name.startswith("P1.act.recv")] == ran


def test_an_op_that_overwrites_a_sent_buffer_is_guarded() -> None:
    guarded = [a.placed.name for a in actions_of(program(0)) if a.sent_before is not None]
    assert ["P0.out.residual@m0", "P0.out.residual@m1"] == guarded


def test_a_receive_into_a_buffer_in_use_is_posted_after_its_last_use() -> None:
    once = program(1, microbatches=1)
    twice = [*once, *once]
    posts = [index for index, action in enumerate(actions_of(twice)) if action.verb == "post"]
    last_use = len(once)  # out.residual reads act.in; one post and one wait stand before it
    assert [0, last_use] == posts

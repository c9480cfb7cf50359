"""A context that grows: stated step by step, or counted on the device for one graph to serve."""

from __future__ import annotations

import pytest
import torch

from layerwise.hw.engine.collectives import ReplacedPeers
from layerwise.hw.engine.contexts import DeviceContexts, check_growth
from layerwise.hw.engine.execute import Engine
from layerwise.hw.engine.memory import DeviceMemory, allocate, random_fill, slots_of
from layerwise.hw.engine.schedule import actions_of
from layerwise.hw.measure import measure
from layerwise.hw.streams import plan_stream
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice, compile_steps
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.placement import tensor_pipeline
from layerwise.sim.plan.program import Program
from layerwise.sim.plan.scenario import compile_run
from layerwise.sim.plan.workload import decode_steps
from tests.hw.scenes import TINY, scenario

CPU = torch.device("cpu")
SPLIT = KernelChoice(decode_attention="split_kv")
START, STEPS = 5, 4


def programs(growth_tokens: int = 1) -> list[Program]:
    """Two microbatches of two sequences; the token of a step is the next one's input."""
    steps = decode_steps((2, 2), START, STEPS, context_growth_tokens=growth_tokens, primed=True)
    return [step.programs[0] for step in compile_steps(TINY, tensor_pipeline(TINY), steps, SPLIT)]


def memory_of(run: list[Program]) -> DeviceMemory:
    return allocate(slots_of(run), CPU, random_fill(CPU, seed=3))


def caches(memory: DeviceMemory, run: list[Program]) -> list[torch.Tensor]:
    return [
        memory.tensor(slot.buffer, slot.layer, slot.microbatch)
        for slot in slots_of(run).values()
        if slot.buffer.kind == "kv"
    ]


@pytest.mark.parametrize("growth_tokens", [1, 3])
def test_one_step_repeated_with_counts_does_what_the_steps_do(growth_tokens: int) -> None:
    run = programs(growth_tokens)
    stated, counted = memory_of(run), memory_of(run)
    for program in run:
        Engine(0, stated, ReplacedPeers()).run(actions_of(program))
    contexts = DeviceContexts(run[0], START, growth_tokens, CPU)
    engine = Engine(0, counted, ReplacedPeers(), contexts=contexts)
    for _ in run:
        engine.run(actions_of(run[1]))
    for expected, found in zip(caches(stated, run), caches(counted, run), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_counts_grow_once_a_step_for_each_microbatch_and_restart() -> None:
    run = programs(growth_tokens=2)
    contexts = DeviceContexts(run[0], START, 2, CPU)
    engine = Engine(0, memory_of(run), ReplacedPeers(), contexts=contexts)
    attentions = [p for p in run[0] if isinstance(p.op, ops.Attention)]

    def counts() -> set[int]:
        return {int(contexts.of(placed, 0)) for placed in attentions}

    engine.run(actions_of(run[0]))
    assert {START + 2} == counts()
    contexts.restart()
    assert {START} == counts()


def test_a_graph_is_refused_with_a_kernel_that_takes_the_context_as_a_shape() -> None:
    steps = decode_steps((4,), START, STEPS)
    run = compile_steps(TINY, tensor_pipeline(TINY), steps, KernelChoice(decode_attention="cudnn"))
    with pytest.raises(SpecError, match="'cudnn' takes the context as a shape.*'split_kv'"):
        check_growth([run[0].programs[0]], "graph", 1)


def test_a_graph_of_several_steps_is_refused() -> None:
    with pytest.raises(SpecError, match="run.steps_per_graph=4 cannot hold a context that grows"):
        check_growth(programs(), "graph", 4)


def test_eager_steps_state_their_context_to_any_kernel() -> None:
    steps = decode_steps((4,), START, STEPS)
    run = compile_steps(TINY, tensor_pipeline(TINY), steps, KernelChoice(decode_attention="math"))
    check_growth([run[0].programs[0]], "eager", 1)


def test_a_growing_stream_is_all_its_steps_but_the_first_and_the_last() -> None:
    run = compile_run(scenario(num_steps=6, context_growth_tokens=1))
    plan = plan_stream(run, alone=False)
    assert ([1, 2, 3, 4], True) == ([index for index, _ in plan.body], plan.grows)
    assert ((0,), (1,), (2,), (3,)) == plan.rounds


def test_a_growing_run_times_every_step_of_every_repeat() -> None:
    asked = scenario(num_steps=6, context_growth_tokens=1, repeats=2)
    trace = measure(asked, timing="clock", device="cpu", traced_repeats=2)
    assert trace is not None
    assert 2 * 4 == len(trace.untraced_step_s)
    assert {(repeat, step) for repeat in (0, 1) for step in (1, 2, 3, 4)} == {
        (row.repeat, row.step) for row in trace.rows
    }

"""Which receive takes which send, and what goes over which wire."""

from __future__ import annotations

from layerwise.sim.plan.scenario import compile_run, paper_scenario
from layerwise.sim.timeline.messages import message_pairs, wire_bytes_of


def test_tokens_go_to_the_next_step() -> None:
    run = compile_run(paper_scenario("layer-wise").with_microbatches(2))
    pairs = message_pairs(run)
    assert pairs[0, 15, "P15.token.send@m1"] == (1, 0, "P0.token.recv@m1")
    assert pairs[2, 3, "P3.act.send@m0"] == (2, 4, "P4.act.recv@m0")


def test_a_message_puts_its_tensor_onto_the_wire_between_its_ends() -> None:
    scenario = paper_scenario("layer-wise").with_microbatches(2)
    programs = compile_run(scenario)[0].programs
    sent = 64 * 4096 * 2
    assert {"nvlink4": sent} == wire_bytes_of(programs[3], scenario.cluster)["P3.act.send@m0"]
    assert {"ndr400": sent} == wire_bytes_of(programs[7], scenario.cluster)["P7.act.send@m0"]


def test_a_collective_is_there_for_every_layer_and_microbatch() -> None:
    scenario = paper_scenario("tensor-pipeline").with_microbatches(2)
    found = wire_bytes_of(compile_run(scenario)[0].programs[0], scenario.cluster)
    assert 8 * 2 * 2 == sum(name.endswith(("all_reduce@m0", "all_reduce@m1")) for name in found)

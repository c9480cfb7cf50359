"""Run steps for real and keep what comes out: the engine as a function, for tests and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from layerwise.hw.engine.collectives import DistributedPeers, Peers, ReplacedPeers, routes_of
from layerwise.hw.engine.execute import Engine
from layerwise.hw.engine.memory import DeviceMemory, allocate, model_fill, slots_of
from layerwise.hw.engine.schedule import actions_of
from layerwise.hw.engine.weights import WeightSource
from layerwise.hw.instrument.observe import Lane, Observer
from layerwise.hw.ranks.local import LocalRanks, local_ranks
from layerwise.hw.ranks.session import Session, alone
from layerwise.sim.plan import ops
from layerwise.sim.plan.errors import ProgramError
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.ops import Buffer
from layerwise.sim.plan.program import PlacedOp, Program, StepPrograms, buffers_of

Inputs = Mapping[tuple[int, int, int], Tensor]
"""(step, replica, microbatch) -> token ids [tokens] or hidden states [tokens, hidden]."""


@dataclass(frozen=True)
class Outputs:
    """What one replica's last stage computed, by (step, replica, microbatch).

    `hidden` [tokens or sequences, hidden] without a vocabulary; with one, `logits` [sequences,
    vocab] of the last position and `token_ids` [sequences].
    """

    hidden: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)
    logits: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)
    token_ids: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)


def run_steps(
    run: Sequence[StepPrograms],
    model: ModelSpec,
    weights: WeightSource,
    inputs: Inputs,
    *,
    device: str = "cpu",
    ranks: LocalRanks | None = None,
) -> Outputs:
    """Run steps on all ranks and return the outputs of the last stages, on the CPU.

    One rank runs in this process; several run on `ranks`, or on processes started for this call
    (`weights` is then sent to them). Steps that take no feedback need an input per microbatch.
    """
    num_ranks = run[0].placement.num_ranks
    if num_ranks == 1:
        return _run_rank(alone(device), run, model, weights, inputs)
    if ranks is not None:
        return _merge(ranks.call(_run_rank, run, model, weights, inputs))
    with local_ranks(num_ranks, "cuda" if device == "cuda" else "cpu") as started:
        return _merge(started.call(_run_rank, run, model, weights, inputs))


def make_peers(session: Session, run: Sequence[StepPrograms]) -> Peers:
    """The peers of one rank of a run. A collective act when there are several processes."""
    if session.store is None:
        return ReplacedPeers()
    every = (program for compiled in run for program in compiled.programs)
    return DistributedPeers(routes_of(every), session.rank, session.device)


class _Collector(Observer):
    """Copies a last stage's results before the next microbatch reuses their buffers."""

    def __init__(self, memory: DeviceMemory, program: Program) -> None:
        self.memory, self.program, self.step = memory, program, 0
        self.outputs = Outputs()

    def end(self, placed: PlacedOp, lane: Lane) -> None:
        op, place = placed.op, (self.step, self.program.replica, placed.microbatch)
        if isinstance(op, ops.ResidualAdd):
            self.outputs.hidden[place] = self._copy(placed, op.output)
        elif isinstance(op, ops.Sample):
            self.outputs.logits[place] = self._copy(placed, op.logits)
            self.outputs.token_ids[place] = self._copy(placed, op.token_ids)

    def _copy(self, placed: PlacedOp, buffer: Buffer) -> Tensor:
        return self.memory.tensor(buffer, placed.layer, placed.microbatch).to("cpu", copy=True)


def _run_rank(
    session: Session,
    run: Sequence[StepPrograms],
    model: ModelSpec,
    weights: WeightSource,
    inputs: Inputs,
) -> Outputs:
    programs = [compiled.programs[session.rank] for compiled in run]
    first = programs[0]
    memory = allocate(
        slots_of(programs),
        session.device,
        model_fill(model, weights, first, session.device),
        subject=f"rank {session.rank}",
    )
    peers = make_peers(session, run)
    is_last = first.stage == run[0].placement.num_stages - 1 and first.tensor_rank == 0
    collector = _Collector(memory, first)
    engine = Engine(session.rank, memory, peers, (collector,) if is_last else ())
    for index, (compiled, program) in enumerate(zip(run, programs, strict=True)):
        collector.step = index
        if program.stage == 0 and not compiled.step.takes_feedback:
            _set_inputs(memory, program, index, inputs)
        engine.run(actions_of(program))
    peers.close()
    return collector.outputs


def _set_inputs(memory: DeviceMemory, program: Program, step: int, inputs: Inputs) -> None:
    """Copy inputs into the first buffer that each microbatch reads."""
    done: set[int] = set()
    for placed in program:
        if placed.microbatch in done:
            continue
        done.add(placed.microbatch)
        place = (step, program.replica, placed.microbatch)
        if place not in inputs:
            raise ProgramError(f"no input was given for (step, replica, microbatch) {place}")
        target = memory.tensor(buffers_of(placed.op)[0], placed.layer, placed.microbatch)
        with torch.inference_mode():
            target.copy_(inputs[place])


def _merge(parts: Sequence[Outputs]) -> Outputs:
    merged = Outputs()
    for part in parts:
        merged.hidden.update(part.hidden)
        merged.logits.update(part.logits)
        merged.token_ids.update(part.token_ids)
    return merged

"""Does it fit? The memory budget of every rank, and what would make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from sim.plan.ops import Buffer, BufferKey
from sim.plan.program import Program, Segment, StepPrograms
from sim.plan.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """Bytes on one GPU, by what they hold. `reserved_bytes`: context, libraries, graphs."""

    rank: int
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int
    communication_bytes: int
    reserved_bytes: int
    capacity_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything."""
        return (
            self.weight_bytes + self.kv_bytes + self.activation_bytes
            + self.communication_bytes + self.reserved_bytes
        )  # fmt: skip

    @property
    def fits(self) -> bool:
        """Is there room for all of it?"""
        return self.total_bytes <= self.capacity_bytes


def memory_budgets(
    run: Sequence[StepPrograms], capacity_bytes: int, reserved_bytes: int = 0
) -> tuple[MemoryBudget, ...]:
    """The budget of each rank over all steps of a run: every buffer of its programs, once."""
    distinct: dict[int, StepPrograms] = {id(compiled): compiled for compiled in run}
    seen: dict[tuple[int, int], MemoryBudget] = {}
    budgets = []
    for program in run[0].programs:
        # Ranks of one stage hold equal shards: count one, name all.
        key = (program.replica, program.stage)
        if key not in seen:
            programs = [compiled.programs[program.rank] for compiled in distinct.values()]
            seen[key] = _budget(programs, capacity_bytes, reserved_bytes)
        first = seen[key]
        budgets.append(
            MemoryBudget(
                rank=program.rank, weight_bytes=first.weight_bytes, kv_bytes=first.kv_bytes,
                activation_bytes=first.activation_bytes,
                communication_bytes=first.communication_bytes,
                reserved_bytes=reserved_bytes, capacity_bytes=capacity_bytes,
            )
        )  # fmt: skip
    return tuple(budgets)


def _places(programs: list[Program]) -> dict[Segment, list[tuple[int, int]]]:
    """The layers and microbatches at which each segment is repeated."""
    places: dict[Segment, list[tuple[int, int]]] = {}
    for part in chain.from_iterable(program.parts for program in programs):
        places.setdefault(part.segment, []).append((part.layer, part.microbatch))
    return places


def _keys(buffer: Buffer, places: list[tuple[int, int]]) -> set[BufferKey]:
    """The tensors that one buffer stands for over all places."""
    if buffer.per_layer and buffer.per_microbatch:
        return {buffer.key(layer, microbatch) for layer, microbatch in places}
    if buffer.per_layer:
        return {buffer.key(layer, -1) for layer in {layer for layer, _ in places}}
    return {buffer.key(-1, microbatch) for microbatch in {batch for _, batch in places}}


def _budget(programs: list[Program], capacity_bytes: int, reserved_bytes: int) -> MemoryBudget:
    held: dict[BufferKey, Buffer] = {}
    for segment, places in _places(programs).items():
        for buffer in segment.touched:
            one = places if buffer.per_layer or buffer.per_microbatch else places[:1]
            for key in _keys(buffer, one):
                # Steps and microbatches of unlike sizes share scratch: the largest one counts.
                held[key] = max(held.get(key, buffer), buffer, key=lambda b: b.num_bytes)

    def total(*kinds: str) -> int:
        return sum(buffer.num_bytes for buffer in held.values() if buffer.kind in kinds)

    return MemoryBudget(
        rank=programs[0].rank,
        weight_bytes=total("weight"),
        kv_bytes=total("kv"),
        activation_bytes=total("activation"),
        communication_bytes=total("communication", "tokens"),
        reserved_bytes=reserved_bytes,
        capacity_bytes=capacity_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One change that, alone, would make a placement fit; `value` 0 when it cannot."""

    change: str
    value: int


def remedies(scenario: Scenario, budget: MemoryBudget) -> tuple[Remedy, ...]:
    """The largest batch, the longest context, the fewest KV heads' share, or KV bytes that fit.

    Each is what is left for KV over what KV needs, applied to that one dimension.
    """
    left = budget.capacity_bytes - (budget.total_bytes - budget.kv_bytes)
    share = max(0.0, left / budget.kv_bytes) if budget.kv_bytes else 1.0
    model, workload = scenario.model, scenario.workload
    shards = scenario.placement.tensor_parallel
    heads = [h for h in range(shards, model.num_key_value_heads + 1, shards)
             if model.num_attention_heads % h == 0 and h <= model.num_key_value_heads * share]  # fmt: skip
    bits = [b for b in (8, 4) if b <= 8 * model.dtype_bytes * share]
    gpus = -(-budget.kv_bytes // left) if left > 0 else 0
    return (
        Remedy(change="batch_size at most", value=int(workload.batch_size * share)),
        Remedy(change="context_tokens at most", value=int(workload.context_tokens * share)),
        Remedy(change="num_key_value_heads at most (GQA)", value=max(heads, default=0)),
        Remedy(
            change="KV bits per element at most (bf16 is 16)",
            value=max(bits, default=0),
        ),
        Remedy(change="times as many GPUs, KV spread over them", value=gpus),
    )

"""The workload: what is asked of the machine, and the steps it falls into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerwise.sim.plan.errors import SpecError

Phase = Literal["decode", "prefill"]
# What a simulation can go through in a minute or so.
MAX_BATCH, MAX_CONTEXT, MAX_CHUNKS = 65_536, 100_000_000, 64


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A batch of equal sequences in one phase.

    In decode every sequence attends to `context_tokens` tokens, the new one included. In prefill
    every sequence brings `context_tokens` prompt tokens, `prefill_chunk_tokens` of them a step.
    `num_microbatches` 0 asks for the best number.
    """

    __pydantic_config__ = {"extra": "forbid"}

    phase: Phase = "decode"
    batch_size: int = 128
    context_tokens: int = 10_000
    num_microbatches: int = 0
    prefill_chunk_tokens: int = 16_384

    def __post_init__(self) -> None:
        for key in ("batch_size", "context_tokens", "prefill_chunk_tokens"):
            if getattr(self, key) < 1:
                raise SpecError(key, getattr(self, key), "is not positive", "use 1 or more")
        for key, most in (
            ("batch_size", MAX_BATCH),
            ("context_tokens", MAX_CONTEXT),
            ("prefill_chunk_tokens", MAX_CONTEXT),
        ):
            if getattr(self, key) > most:
                raise SpecError(
                    key, getattr(self, key), "is beyond any machine", f"use at most {most}"
                )
        chunks = -(-self.context_tokens // self.prefill_chunk_tokens)
        if self.phase == "prefill" and chunks > MAX_CHUNKS:
            raise SpecError(
                "prefill_chunk_tokens",
                self.prefill_chunk_tokens,
                f"cuts a prompt of {self.context_tokens} tokens into {chunks} steps",
                f"use {-(-self.context_tokens // MAX_CHUNKS)} or more",
            )
        if self.phase not in ("decode", "prefill"):
            raise SpecError("phase", self.phase, "is unknown", "use 'decode' or 'prefill'")
        if not 0 <= self.num_microbatches <= self.batch_size:
            raise SpecError(
                "num_microbatches",
                self.num_microbatches,
                f"is not between 1 and batch_size={self.batch_size}",
                "use 0 for the best number found",
            )


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one pass over all microbatches computes.

    `microbatch_sizes` are sequences, for one data-parallel replica. Each sequence brings
    `query_tokens` and attends to `context_tokens`, its queries included. `takes_feedback`: the
    first stage waits for the previous step's tokens; `gives_feedback`: the last stage sends them.
    `gives_output` is False for all chunks of a prompt but its last: they only fill the KV cache.
    """

    phase: Phase
    microbatch_sizes: tuple[int, ...]
    query_tokens: int
    context_tokens: int
    kv_capacity_tokens: int
    takes_feedback: bool = False
    gives_feedback: bool = False
    gives_output: bool = True

    def __post_init__(self) -> None:
        if not self.query_tokens <= self.context_tokens <= self.kv_capacity_tokens:
            raise SpecError(
                "context_tokens",
                self.context_tokens,
                f"is not between query_tokens={self.query_tokens} and "
                f"kv_capacity_tokens={self.kv_capacity_tokens}",
                "give the KV cache room for the whole context",
            )

    @property
    def num_sequences(self) -> int:
        """Sequences of one replica."""
        return sum(self.microbatch_sizes)


def split_evenly(total: int, parts: int) -> tuple[int, ...]:
    """`total` in `parts` shares that differ by at most one, larger ones first."""
    small, extra = divmod(total, parts)
    return tuple(small + (index < extra) for index in range(parts))


def decode_steps(
    microbatch_sizes: tuple[int, ...],
    context_tokens: int,
    num_steps: int,
    *,
    kv_capacity_tokens: int = 0,
    context_growth_tokens: int = 1,
    primed: bool = False,
) -> list[Step]:
    """A stream of decode steps; step n attends to context_tokens + n * context_growth_tokens.

    Steps chain by data alone: each but the last hands its tokens back, each but the first waits
    for them. `primed` makes the first one wait as well (it follows a prefill).
    """
    capacity = kv_capacity_tokens or context_tokens + context_growth_tokens * (num_steps - 1)
    return [
        Step(
            phase="decode",
            microbatch_sizes=microbatch_sizes,
            query_tokens=1,
            context_tokens=context_tokens + n * context_growth_tokens,
            kv_capacity_tokens=capacity,
            takes_feedback=n > 0 or primed,
            gives_feedback=n < num_steps - 1,
        )
        for n in range(num_steps)
    ]


def prefill_steps(
    microbatch_sizes: tuple[int, ...],
    prompt_tokens: int,
    chunk_tokens: int,
    *,
    kv_capacity_tokens: int = 0,
    gives_feedback: bool = False,
) -> list[Step]:
    """A prompt in chunks, one step each; `gives_feedback` when decode steps follow."""
    ends = [*range(chunk_tokens, prompt_tokens, chunk_tokens), prompt_tokens]
    starts = [0, *ends[:-1]]
    return [
        Step(
            phase="prefill",
            microbatch_sizes=microbatch_sizes,
            query_tokens=end - start,
            context_tokens=end,
            kv_capacity_tokens=kv_capacity_tokens or prompt_tokens,
            gives_feedback=gives_feedback and end == prompt_tokens,
            gives_output=end == prompt_tokens,
        )
        for start, end in zip(starts, ends, strict=True)
    ]

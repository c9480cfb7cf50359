"""What the host takes to issue a layer: the engine's ops, beside plain torch's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from layerwise.hw.figures.bench import Bench, decoder, lone, one_layer, release
from layerwise.hw.figures.report import Verdict
from layerwise.hw.figures.small_layer import cache_of, input_of, plain_of, position_of
from layerwise.hw.instrument.timing import Spread, issue_seconds, spread_of
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.workload import Workload

SEQUENCES = 8
SAMPLES = 60


@dataclass(frozen=True, kw_only=True)
class HostCase:
    """Host seconds to issue one layer eagerly, no one watching.

    `engine_ops` are ops of the program; `plain_ops` are aten calls of the plain layer that compute,
    `plain_views` those that only look at memory in another way.
    """

    what: str
    engine_s: Spread
    engine_ops: int
    plain_s: Spread
    plain_ops: int
    plain_views: int

    @property
    def line(self) -> str:
        """Per layer and per op."""
        engine, plain = 1e6 * self.engine_s.median, 1e6 * self.plain_s.median
        return (
            f"{self.what}: engine {engine:.1f} us a layer, {engine / self.engine_ops:.2f} us an op "
            f"({self.engine_ops}); plain torch {plain:.1f} us, {plain / self.plain_ops:.2f} us an "
            f"op ({self.plain_ops}, and {self.plain_views} views); engine / plain "
            f"{engine / plain:.3f}"
        )


@dataclass(frozen=True, kw_only=True)
class HostTime:
    """Layers of several widths: the host's time hardly depends on them."""

    cases: tuple[HostCase, ...]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """None: it is reported."""
        return ()

    @property
    def lines(self) -> tuple[str, ...]:
        """One per case."""
        return tuple(case.line for case in self.cases)


def host_time(bench: Bench) -> HostTime:
    """The paper's layer at its context, and the small one: 8 sequences."""
    return host_times(bench, ((decoder(4096), 10_000), (decoder(1024), 128)), SAMPLES)


def host_times(bench: Bench, layers: Sequence[tuple[ModelSpec, int]], samples: int) -> HostTime:
    """(model, context) -> host times of one layer decoding SEQUENCES sequences."""
    cases: list[HostCase] = []
    for model, context_tokens in layers:
        cases.append(_host_case(bench, model, context_tokens, samples))
        release(bench.device)
    return HostTime(cases=tuple(cases))


def _host_case(bench: Bench, model: ModelSpec, context_tokens: int, samples: int) -> HostCase:
    workload = Workload(batch_size=SEQUENCES, context_tokens=context_tokens, num_microbatches=1)
    engine = lone(one_layer(bench, model, workload), bench.device)
    layer, hidden = plain_of(model, engine), input_of(engine)
    cache, position = cache_of(engine), position_of(engine)

    @torch.inference_mode()  # as the engine runs
    def plain() -> torch.Tensor:
        return layer(hidden, cache, position)

    engine_s = issue_seconds(engine.run, bench.device, samples=samples)
    plain_s = issue_seconds(plain, bench.device, samples=samples)
    with _Counter() as counter:
        plain()
    return HostCase(
        what=f"hidden {model.hidden_size}, {SEQUENCES} sequences, context {context_tokens}",
        engine_s=spread_of(engine_s),
        engine_ops=len(engine.program),
        plain_s=spread_of(plain_s),
        plain_ops=counter.num_ops,
        plain_views=counter.num_views,
    )


class _Counter(TorchDispatchMode):
    """Counts aten calls: those that compute, and those that return a view."""

    def __init__(self) -> None:
        super().__init__()
        self.num_ops = self.num_views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returned)
        self.num_views += is_view
        self.num_ops += not is_view
        return func(*args, **(kwargs or {}))

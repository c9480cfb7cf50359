"""One record for each kind of op: all by which fit and simulator tell it from another.

A new op, or a new kernel of an old one, is a record here; what no record covers is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import numpy as np

from layerwise.sim.cost import forms, published
from layerwise.sim.cost.forms import Constants, Numbers
from layerwise.sim.cost.published import Given
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import UnknownKindError, require_listed
from layerwise.sim.plan.ops import LocalOp

Bound = Literal["hbm", "l2", "compute", "link", "launch"]
FlopEnergy = Literal["matmul", "decode_attention", "prefill_attention", "flash_attention"]
Family = Literal["matmul", "decode attention", "prefill attention", "rotary write", "pointwise ops"]


class Rows(NamedTuple):
    """What a physics form is asked: features in a kind's order and traffic, arrays [points]."""

    features: tuple[Numbers, ...]
    hbm_bytes: Numbers
    l2_bytes: Numbers
    head_dim: Numbers
    num_sms: int
    peak_flops_per_s: float


class Times(NamedTuple):
    """Seconds of a form [points], and what each resource alone would take."""

    seconds: Numbers
    parts: dict[Bound, Numbers]


Form = Callable[[Constants, Rows], Times]


def _memory(constants: Constants, asked: Rows) -> dict[Bound, Numbers]:
    return {
        "hbm": asked.hbm_bytes / constants["hbm_bytes_per_s"],
        "l2": asked.l2_bytes / constants["l2_bytes_per_s"],
    }


def matmul(constants: Constants, asked: Rows) -> Times:
    """Time a matmul in cuBLAS' tiles."""
    rows, columns, inner = asked.features
    seconds, flops_s, loads_s = forms.matmul_seconds(
        constants,
        rows,
        columns,
        inner,
        asked.hbm_bytes,
        asked.l2_bytes,
        num_sms=asked.num_sms,
        peak_flops_per_s=asked.peak_flops_per_s,
    )
    parts = _memory(constants, asked)
    # Tiles are loaded through the L2.
    parts["compute"], parts["l2"] = flops_s, np.maximum(parts["l2"], loads_s)
    return Times(seconds, parts)


def skinny_matmul(constants: Constants, asked: Rows) -> Times:
    """Time a matmul of few rows in the engine's own tiles."""
    _, columns, inner = asked.features
    seconds = forms.skinny_matmul_seconds(
        constants, columns, inner, asked.hbm_bytes, asked.l2_bytes, num_sms=asked.num_sms
    )
    return Times(seconds, _memory(constants, asked))


def decode_attention(constants: Constants, asked: Rows, *, in_one_wave: bool = False) -> Times:
    """Time attention of one query a sequence."""
    units, context, _ = asked.features
    seconds = forms.decode_attention_seconds(
        constants,
        units,
        context,
        asked.hbm_bytes,
        asked.l2_bytes,
        num_sms=asked.num_sms,
        in_one_wave=in_one_wave,
    )
    return Times(seconds, _memory(constants, asked))


def decode_attention_in_one_wave(constants: Constants, asked: Rows) -> Times:
    """Time attention of one query a sequence, whose keys are split within one wave only."""
    return decode_attention(constants, asked, in_one_wave=True)


def prefill_attention(constants: Constants, asked: Rows) -> Times:
    """Time attention over whole prompts."""
    return _tiles(forms.prefill_attention_seconds, constants, asked)


def chunk_attention(constants: Constants, asked: Rows) -> Times:
    """Time attention over later chunks of prompts."""
    return _tiles(forms.chunk_attention_seconds, constants, asked)


def chunk_attention_wide_heads(constants: Constants, asked: Rows) -> Times:
    """Time attention over later chunks of prompts in heads of 256."""
    form = partial(forms.chunk_attention_seconds, query_tile=forms.WIDE_HEADS_QUERY_TILE)
    return _tiles(form, constants, asked)


def _tiles(form: Callable[..., Numbers], constants: Constants, asked: Rows) -> Times:
    seconds = form(
        constants,
        *asked.features,
        asked.head_dim,
        num_sms=asked.num_sms,
        peak_flops_per_s=asked.peak_flops_per_s,
    )
    return Times(seconds, {"compute": seconds - constants["launch_s"]})


def pointwise(constants: Constants, asked: Rows) -> Times:
    """Time a launch and bytes."""
    parts = _memory(constants, asked)
    return Times(constants["launch_s"] + parts["hbm"] + parts["l2"], parts)


def sample(constants: Constants, asked: Rows) -> Times:
    """Time a walk over a row of logits."""
    seconds = np.asarray(forms.sample_seconds(constants, asked.features[1]))
    return Times(seconds, {"compute": asked.features[1] * constants["seconds_per_logit"]})


def row_by_row(constants: Constants, asked: Rows) -> Times:
    """Time a launch, and rows that are copied one after the other."""
    seconds = constants["row_s"] * asked.features[0]
    return Times(constants["launch_s"] + seconds, {"compute": seconds})


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of op: ops that one fit prices.

    `op`: their class; `kernel`: the one that they name, or "" for any that no other kind names;
    `includes`: which of these ops. `features`: attributes of the op, in the order of the fit.
    `weights`: how much each feature (as ln), and at the end the share of memory traffic that
    misses, counts in the distance between an op and the calibrated ones. `published`: constants of
    the form, and `published_of` whose kernels. `is_optional`: a profile may go without; then the
    kind in `else_priced_as` prices its ops, flagged, or where there is none they are refused.
    `counts_tiles_only`: the form leaves out bytes, below which no op comes. `obeys_windows`: its
    kernel is one of plain loads. `own`: the buffer that each cold repeat of a sweep has of its own.
    `left_out_by`: features that make a group left out whole when a fit is scored; all if not given.
    `flop_energy`: what a FLOP of it draws, by name; None where bytes tell all.
    """

    name: str
    op: type
    family: Family = "pointwise ops"
    kernel: str = ""
    includes: Callable[[Any], bool] = lambda _op: True
    features: tuple[str, ...]
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    form: Form = pointwise
    published: Mapping[str, Given] = field(default_factory=dict[str, Given])
    published_of: tuple[str, ...] = ()
    is_optional: bool = False
    else_priced_as: str = ""
    counts_tiles_only: bool = False
    obeys_windows: bool = False
    own: str = ""
    left_out_by: tuple[str, ...] = ()
    anchor_points: int = 7
    flop_energy: FlopEnergy | None = None

    @cached_property
    def _values(self) -> Callable[[Any], tuple[float, ...]]:
        return attrgetter(*self.features)

    def features_of(self, op: LocalOp) -> tuple[float, ...]:
        """Return the op's dimensions, in the order of `features`."""
        return self._values(op)

    def place_of(self, features: tuple[float, ...], miss_share: float) -> tuple[float, ...]:
        """Return where an op lies among the calibrated ones: near it, residuals are alike."""
        values = (*map(math.log, features), miss_share)
        return tuple(weight * value for weight, value in zip(self.weights, values, strict=True))

    def kernel_of(self, chosen: KernelChoice) -> str:
        """Return the kernel that a sweep of this kind runs, where its fit does not say."""
        return self.kernel or getattr(chosen, self.name.partition(".")[0])

    def holds(self, op: LocalOp) -> bool:
        """Say whether an op of this kind's class is of this kind."""
        return self.kernel in ("", getattr(op, "kernel", "")) and self.includes(op)


_MATMUL = Kind(
    name="matmul",
    op=ops.Matmul,
    family="matmul",
    kernel="cublas",
    features=("rows", "columns", "inner"),
    weights=(1.0, 1.0, 1.0, 1.0),
    form=matmul,
    published=published.MATMUL,
    published_of=("cublas",),
    own="weight",
    left_out_by=("columns", "inner"),
    anchor_points=32,
    flop_energy="matmul",
)
_DECODE = Kind(
    name="decode_attention",
    op=ops.Attention,
    family="decode attention",
    includes=lambda op: op.query_tokens == 1,
    features=("sequences_times_kv_heads", "context_tokens", "group_size"),
    # Chosen by held-out error: it is told by its context more than by how many SMs walk it, and
    # hardly by its group size.
    weights=(0.5, 1.0, 0.3, 0.7),
    form=decode_attention,
    published=published.DECODE_ATTENTION,
    published_of=published.FLASH_3,
    own="kv",
    anchor_points=16,
    flop_energy="decode_attention",
)
_PREFILL = Kind(
    name="prefill_attention",
    op=ops.Attention,
    family="prefill attention",
    includes=lambda op: 1 < op.query_tokens == op.context_tokens,
    features=("sequences_times_heads", "query_tokens", "context_tokens"),
    weights=(1.0, 1.0, 1.0, 0.0),
    form=prefill_attention,
    published=published.PROMPT,
    published_of=published.FLASH_3,
    counts_tiles_only=True,
    own="kv",
    flop_energy="prefill_attention",
)
_CHUNKED = replace(
    _PREFILL,
    name="chunked_prefill_attention",
    includes=lambda op: 1 < op.query_tokens < op.context_tokens,
    form=chunk_attention,
    published=published.CHUNK,
    flop_energy="flash_attention",
)


def _of_heads(base: Kind, head_dim: int, form: Form) -> Kind:
    """The same in heads of another size: kernels of their own, whatever the library calls them."""
    return replace(
        base,
        name=f"{base.name}.heads_{head_dim}",
        includes=lambda op: op.head_dim == head_dim and base.includes(op),
        form=form,
        published={},
        is_optional=True,
        else_priced_as=base.name,
        anchor_points=7,
    )


_NORM = Kind(
    name="norm",
    op=ops.Norm,
    features=("tokens", "hidden_size"),
    published=published.ELEMENTWISE,
    obeys_windows=True,
)

_SAMPLE = Kind(
    name="sample",
    op=ops.Sample,
    features=("sequences", "vocab_size"),
    weights=(1.0, 1.0, 0.0),
    form=sample,
    published=published.SAMPLE,
)
# torch.argmax spreads longer rows over several blocks, and index_select has a kernel for few rows.
# Source: measured steps of the time, calibration/traces/fit-h200/edges.jsonl.
MOST_LOGITS_OF_A_BLOCK, MOST_FEW_TOKENS = 2**17, 16
# Forms of attention by the size of its heads, beside the 128 of the kinds without a size. Decode in
# heads of 96 is not among them: held out, a fit of its own is no nearer than that of 128.
_BY_HEADS: tuple[tuple[Kind, dict[int, Form]], ...] = (
    (_DECODE, {64: decode_attention_in_one_wave, 256: decode_attention_in_one_wave}),
    (_PREFILL, {64: prefill_attention, 96: prefill_attention, 256: prefill_attention}),
    (_CHUNKED, {64: chunk_attention, 96: chunk_attention, 256: chunk_attention_wide_heads}),
)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _MATMUL,
        replace(
            _MATMUL,
            name="matmul.skinny",
            kernel="skinny",
            form=skinny_matmul,
            published=published.SKINNY,
            is_optional=True,
            obeys_windows=True,
            anchor_points=7,
        ),
        _DECODE,
        replace(
            _DECODE,
            name="decode_attention.split_kv",
            kernel="split_kv",
            is_optional=True,
            anchor_points=7,
        ),
        replace(
            _DECODE,
            name="decode_attention.flash",
            kernel="flash",
            published={},
            is_optional=True,
            else_priced_as="decode_attention",
            left_out_by=("sequences_times_kv_heads",),
            anchor_points=7,
        ),
        _PREFILL,
        replace(
            _PREFILL,
            name="prefill_attention.flash",
            kernel="flash",
            published={},
            is_optional=True,
            form=chunk_attention,
            else_priced_as="prefill_attention",
            flop_energy="flash_attention",
        ),
        _CHUNKED,
        _NORM,
        replace(
            _NORM,
            name="rotary_write",
            op=ops.RotaryWrite,
            family="rotary write",
            features=("tokens", "columns"),
            obeys_windows=False,
        ),
        replace(
            _NORM,
            name="gated_activation",
            op=ops.GatedActivation,
            features=("tokens", "intermediate_size"),
            obeys_windows=False,
        ),
        replace(_NORM, name="residual_add", op=ops.ResidualAdd, obeys_windows=False),
        replace(_NORM, name="embed", op=ops.Embed, obeys_windows=False),
        replace(
            _NORM,
            name="embed.few",
            op=ops.Embed,
            includes=lambda op: op.tokens <= MOST_FEW_TOKENS,
            form=row_by_row,
            published={},
            obeys_windows=False,
            is_optional=True,
            else_priced_as="embed",
        ),
        _SAMPLE,
        replace(
            _SAMPLE,
            name="sample.spread",
            includes=lambda op: op.vocab_size > MOST_LOGITS_OF_A_BLOCK,
            form=pointwise,
            published={},
            is_optional=True,
            else_priced_as="sample",
        ),
        *(_of_heads(base, *sized) for base, forms_ in _BY_HEADS for sized in forms_.items()),
    )
}
OPTIONAL_KINDS = frozenset(kind.name for kind in KINDS.values() if kind.is_optional)


def _by_op() -> dict[type, tuple[Kind, ...]]:
    """Kinds of each class of op: those of a kernel before those of any, of some sizes before all."""
    ordered = sorted(KINDS.values(), key=lambda kind: (not kind.kernel, not kind.is_optional))
    return {one.op: tuple(kind for kind in ordered if kind.op is one.op) for one in KINDS.values()}


_BY_OP = _by_op()


def kind_of(op: LocalOp, fitted: Container[str] | None = None) -> Kind:
    """Return the kind of an op; with `fitted`, the one of these by which its price is told.

    Raises UnknownKindError for an op of no kind.
    """
    found = next((kind for kind in _BY_OP.get(type(op), ()) if kind.holds(op)), None)
    if found is None:
        named = f"{type(op).__name__} {getattr(op, 'kernel', '')}".rstrip()
        raise UnknownKindError(named, "kinds.KINDS", KINDS)
    if fitted is not None and found.else_priced_as and found.name not in fitted:
        return KINDS[found.else_priced_as]
    return found


def kind_named(name: str) -> Kind:
    """Return the kind of this name; raises UnknownKindError for one that is not listed."""
    return require_listed(KINDS, name, "kinds.KINDS")

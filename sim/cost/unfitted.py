"""What separates an op from what its fit has seen, and how far that may put its time off.

A fit knows one kernel, some head sizes and some dtypes. An op of others is still priced by it, for
want of a better one: the time stays, and the op carries a `Change` for each thing that differs,
which flags it and widens its interval, or takes the interval away. Beliefs that measured nothing
say in the same way what they do not know.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from layerwise.sim.cost.kinds import Kind, kind_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.hardware import GpuSpec
from layerwise.sim.plan.ops import LocalOp
from layerwise.sim.profile import OpFit, Profile

Aspect = Literal["kernel", "head_dim", "dtype", "stored_dtype", "peak"]
KnownBy = Literal["profile", "published", "datasheet"]

FLOAT32_PEAK = "peak_float32_flops_per_s"


@dataclass(frozen=True, slots=True)
class Width:
    """How far a change may put an op's time off: `log` as ln(measured / predicted) for 90 %.

    None: nobody knows, and what holds such an op has no interval.
    """

    log: float | None
    source: str


# One H200, 1 December 2026: 514 points drawn by a seed; 90 % of the half that gives the widths (n) lie
# within them, and of the half set aside the share that is named. Six to twenty points are few, so no
# width is below 0.10. Source: calibration/traces/unfitted-h200, calibration/unfitted.py.
H200 = "measured on an H200 (calibration/traces/unfitted-h200)"
WIDTHS: dict[str, Width] = {
    "kernel of decode attention": Width(
        0.65,
        f"{H200}: FLASH at cuDNN's price, 34 % slower in the median; n=20, 95 % set aside inside",
    ),
    "kernel of prefill attention": Width(
        0.70,
        f"{H200}: FLASH at cuDNN's price, 95 % slower in the median; n=14, 80 % set aside inside",
    ),
    "kernel of chunked prefill attention": Width(
        0.33, f"{H200}: cuDNN with a mask at FLASH's price; n=8, 88 % set aside inside"
    ),
    "kernel of matmul": Width(
        math.log(1.29), "skinny against cuBLAS at 23 shapes on an H100: 0 to 29 % apart"
    ),
    "math attention": Width(
        None, f"{H200}: 13 to 27 times as slow as the price, in the median; no form of this project"
    ),
    "head size 64 of decode attention": Width(
        0.29, f"{H200}: cuDNN and split_kv, 13 to 19 % faster in the median; n=23, 83 % inside"
    ),
    "head size 96 of decode attention": Width(0.10, f"{H200}: n=15, all inside"),
    "head size of decode attention": Width(
        0.74,
        f"{H200}: heads of 256, 15 to 54 % slower in the median, the widest; n=23, all inside",
    ),
    "head size 64 of prefill attention": Width(0.17, f"{H200}: n=18, 89 % set aside inside"),
    "head size 256 of prefill attention": Width(0.13, f"{H200}: n=18, 89 % set aside inside"),
    "head size of prefill attention": Width(
        0.26, f"{H200}: heads of 96, 25 % slower in the median, the widest; n=10, all inside"
    ),
    "head size 256 of rotary write": Width(0.10, f"{H200}: n=6, all inside"),
    "head size of rotary write": Width(
        0.44,
        f"{H200}: heads of 64, the wider of two; n=6, 83 % inside; Triton takes no heads of 96",
    ),
    "dtype of matmul": Width(
        0.80, f"{H200}: cuBLAS at the float32 peak, 43 % slower in the median; n=20, 89 % inside"
    ),
    "dtype of attention": Width(
        None, f"{H200}: only 'math' takes float32: 2.5 to 2.7 times as slow in the median, up to 36"
    ),
    "dtype of pointwise ops": Width(
        0.10,
        f"{H200}: residual adds, 3 % slower in the median; n=6, all inside; others not measured",
    ),
    "stored dtype": Width(None, "no kernel that converts as it reads or writes was measured"),
    "unknown float32 peak": Width(None, "bf16's peak is 7 to 28 times float32's, by the GPU"),
}
"""One line a change: ln units, and where the width comes from."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing about an op that what prices it has not seen.

    `kind`: of op, as a profile's fits are named. `used`: what the op has. `fitted`: what was seen;
    empty where the belief tells no such things apart. `half_width`: what it adds to the op's
    interval, as ln; 0 under a belief without intervals, None where it takes the interval away.
    """

    aspect: Aspect
    kind: str
    used: str
    fitted: tuple[str, ...]
    half_width: float | None
    known_by: KnownBy = "profile"

    @property
    def subject(self) -> str:
        """What it is about, in words: `decode attention`."""
        return self.kind.partition(".")[0].replace("_", " ")


def changes_of(op: LocalOp, profile: Profile, gpu: GpuSpec) -> tuple[Change, ...]:
    """Return what separates an op from what the fit of its kind has seen; () for most ops."""
    kind = kind_of(op, profile.fits)
    fit = profile.fits[kind.name]
    return (
        *_kernel_change(op, kind, fit, profile.kernels),
        *_head_size_change(op, kind, fit),
        *_dtype_change(op, kind, fit, gpu),
        *_stored_change(op, kind.name),
    )


def changes_at_the_speed_of_light(op: LocalOp, gpu: GpuSpec) -> tuple[Change, ...]:
    """Return what a bound from the datasheet leaves out of this op."""
    kind, found = kind_of(op).name, list[Change]()
    if isinstance(op, ops.Attention):
        found.append(Change("kernel", kind, op.kernel, (), 0.0, "datasheet"))
    if isinstance(op, ops.Matmul) and _stored(op) == ("float8_e4m3fn",):
        found.append(Change("stored_dtype", kind, op.weight.dtype, (), 0.0, "datasheet"))
    if _lacks_peak(op, gpu):
        found.append(Change("peak", kind, "float32", (), 0.0, "datasheet"))
    return tuple(found)


def half_width_of(changes: Iterable[Change]) -> float:
    """Return what changes add to an op's interval: their widths, one after the other, in line."""
    return sum(change.half_width or 0.0 for change in changes)


def peak_flops_per_s(op: LocalOp, gpu: GpuSpec) -> float:
    """Return the peak that bounds an op's FLOPs: float32 runs on CUDA cores.

    torch's default for float32 matmuls is no TF32. A GPU whose float32 peak is not given lends
    bf16's, and the op says so (`peak` in its changes).
    """
    is_wide = op.dtype == "float32" and gpu.peak_float32_flops_per_s > 0
    return gpu.peak_float32_flops_per_s if is_wide else gpu.peak_flops_per_s


def sentences(changes: Iterable[Change]) -> tuple[str, ...]:
    """Return one plain sentence for each distinct change, of all the kinds of op that share it."""
    groups: dict[tuple[object, ...], list[Change]] = {}
    for one in dict.fromkeys(changes):
        key = (one.aspect, one.used, one.fitted, one.half_width, one.known_by)
        groups.setdefault(key, []).append(one)
    return tuple(_sentence(group) for group in groups.values())


def _sentence(group: Sequence[Change]) -> str:
    first = group[0]
    subjects = _listed(dict.fromkeys(one.subject for one in group))
    match first.aspect:
        case "kernel":
            said = f"{subjects} {'run' if len(group) > 1 else 'runs'} {first.used!r}"
        case "head_dim":
            said = f"{subjects}: heads of {first.used} dimensions"
        case "dtype":
            said = f"{subjects}: {first.used}"
        case "stored_dtype":
            said = f"{subjects}: weights or KV stored as {first.used}"
        case "peak":
            said = f"{subjects}: no peak of float32 is given for this GPU"
        case _:
            assert_never(first.aspect)
    return f"{said}; {_instead(first)}{_effect(first)}"


def _instead(change: Change) -> str:
    """What the op is priced by."""
    match change.aspect:
        case "kernel" if change.known_by == "datasheet":
            return "the speed of light bounds every kernel alike"
        case "kernel":
            kernels = " or ".join(map(repr, change.fitted))
            return f"{_WHOSE[change.known_by]} {kernels}: the time is that of {kernels}"
        case "head_dim":
            heads = " or ".join(change.fitted)
            return f"{_WHOSE[change.known_by]} {heads}: bytes and FLOPs follow"
        case "dtype":
            dtypes = " or ".join(change.fitted)
            return f"{_WHOSE[change.known_by]} {dtypes}: {_price_of_dtype(change)}"
        case "stored_dtype" if change.known_by == "datasheet":
            return "the speed of light has bf16's peak alone, and may be beaten"
        case "stored_dtype":
            return "nothing of the kind was measured: bytes follow"
        case "peak":
            return f"its FLOPs are timed at bf16's; give cluster.gpu.{FLOAT32_PEAK}"
        case _:
            assert_never(change.aspect)


_WHOSE: dict[KnownBy, str] = {
    "profile": "the profile was fitted to",
    "published": "the published constants are of",
    "datasheet": "the datasheet speaks of",
}


def _price_of_dtype(change: Change) -> str:
    if change.subject == "matmul" or change.subject.endswith("attention"):
        return "FLOPs go at the GPU's float32 peak, for torch's default is no TF32"
    return "bytes follow"


def _effect(change: Change) -> str:
    if change.known_by != "profile":
        return ""
    if change.half_width is None:
        return ", and there is no interval"
    return f", the op's interval is widened by {100 * math.expm1(change.half_width):.0f} %"


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _kernel_change(op: LocalOp, kind: Kind, fit: OpFit, chosen: KernelChoice) -> tuple[Change, ...]:
    if not isinstance(op, (ops.Attention, ops.Matmul)):
        return ()
    fitted = fit.kernels or (kind.kernel_of(chosen),)
    if op.kernel in fitted:
        return ()
    subject = kind.name.partition(".")[0].replace("_", " ")
    width = "math attention" if op.kernel == "math" else f"kernel of {subject}"
    return (Change("kernel", kind.name, op.kernel, fitted, WIDTHS[width].log),)


def _head_size_change(op: LocalOp, kind: Kind, fit: OpFit) -> tuple[Change, ...]:
    if not isinstance(op, (ops.Attention, ops.RotaryWrite)) or op.head_dim in fit.head_dims:
        return ()
    seen = tuple(map(str, fit.head_dims))
    own = WIDTHS.get(f"head size {op.head_dim} of {kind.family}")
    log = (own or WIDTHS[f"head size of {kind.family}"]).log
    return (Change("head_dim", kind.name, str(op.head_dim), seen, log),)


def _dtype_change(op: LocalOp, kind: Kind, fit: OpFit, gpu: GpuSpec) -> tuple[Change, ...]:
    dtype = op.dtype
    if dtype in fit.dtypes:
        return ()
    if _lacks_peak(op, gpu):
        return (Change("peak", kind.name, dtype, fit.dtypes, WIDTHS["unknown float32 peak"].log),)
    return (Change("dtype", kind.name, dtype, fit.dtypes, WIDTHS[f"dtype of {_told(kind)}"].log),)


def _told(kind: Kind) -> str:
    """Of what a width of dtypes is told: attention alike, and all pointwise ops."""
    match kind.family:
        case "matmul":
            return "matmul"
        case "decode attention" | "prefill attention":
            return "attention"
        case "rotary write" | "pointwise ops":
            return "pointwise ops"


def _lacks_peak(op: LocalOp, gpu: GpuSpec) -> bool:
    counts_flops = isinstance(op, (ops.Matmul, ops.Attention))
    return counts_flops and op.dtype == "float32" and not gpu.peak_float32_flops_per_s


def _stored_change(op: LocalOp, kind: str) -> tuple[Change, ...]:
    return tuple(
        Change("stored_dtype", kind, dtype, (), WIDTHS["stored dtype"].log) for dtype in _stored(op)
    )


def _stored(op: LocalOp) -> tuple[str, ...]:
    """The dtype in which its weights or KV lie, where that is not the one computed in."""
    held = op.stored
    return () if held is None or held.dtype == op.dtype else (held.dtype,)

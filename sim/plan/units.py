"""Quantities as people write them (`20ms`, `450GB/s`, `11GiB`, `989TFLOP/s`) in SI base units.

Digits may be grouped: `1_000`, `1,000`. A key's ending says what it holds; a unit that means something else is refused. Arithmetic is exact:
`0.1ms` is the number nearest to 0.0001, `50 MB` the integer 50,000,000.
"""

from __future__ import annotations

import re
from fractions import Fraction

from layerwise.sim.plan.errors import SpecError

_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SECONDS = {
    "ps": Fraction(1, 10**12),
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "min": Fraction(60),
    "h": Fraction(3600),
}
_BYTES = {f"{p}B": Fraction(size) for p, size in (_DECIMAL | _BINARY).items()} | {
    "KB": Fraction(1000)
}
# Networks are sold in bits.
_BITS = {f"{p}{bit}": Fraction(size, 8) for p, size in _DECIMAL.items() for bit in ("b", "bit")}
_FLOPS = {f"{p}FLOP": Fraction(size) for p, size in _DECIMAL.items()}

# By the ending of a key, longest first: what it holds, its units, one way to write it.
_KINDS: dict[str, tuple[str, dict[str, Fraction], str]] = {
    "_flops_per_s": (
        "FLOP/s",
        {f"{u}/s": f for u, f in _FLOPS.items()} | {f"{u}S": f for u, f in _FLOPS.items()},
        "989TFLOP/s",
    ),
    "_bytes_per_s": (
        "bytes/s",
        {f"{u}/s": f for u, f in (_BYTES | _BITS).items()},
        "450GB/s",
    ),
    "_bytes": ("bytes", _BYTES, "11GiB"),
    "_s": ("seconds", _SECONDS, "20ms"),
}
_DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d[\d_]*\.?\d*|\.\d+"
_WRITTEN = re.compile(rf"\s*([+-]?(?:{_DIGITS})(?:[eE][+-]?\d+)?)\s*([A-Za-zµμ/]*)\s*")
# Beyond any machine; and the exact value of 1e999999999 would have a billion digits.
_MAX, _MAX_EXPONENT = 10**30, 40


def parse_quantity(key: str, text: str) -> Fraction:
    """The exact value in the SI base unit that the key's ending names; plain numbers are in it.

    Raises SpecError for what is no number, and for a unit that does not go with the key.
    """
    what, units, example = _kind_of(key)
    found = _WRITTEN.fullmatch(text)
    if not found:
        fix = f"write it like {example}, or plain in {what}" if what else "write a plain number"
        raise SpecError(key, text, "is not a number", fix)
    unit = found[2].replace("μ", "µ")
    if unit and unit not in units:
        fix = f"write it like {example}; units are {', '.join(units)}" if what else "leave it out"
        holds = f"is in {what}" if what else "has no unit"
        raise SpecError(key, text, f"has the unit {unit!r} and {key} {holds}", fix)
    exponent = int(found[1].lower().partition("e")[2] or 0)
    value = (
        Fraction(found[1].replace("_", "").replace(",", ""))
        if abs(exponent) <= _MAX_EXPONENT
        else None
    )
    if value is None or abs(value) > _MAX:
        raise SpecError(key, text, "is beyond any machine", "use one nearer to 1")
    return value * units.get(unit, 1)


def parse_whole(key: str, text: str) -> int:
    """A whole number; raises SpecError as parse_quantity does, and for one with a fraction."""
    value = parse_quantity(key, text)
    if value.denominator != 1:
        raise SpecError(key, text, "is not a whole number", f"use {round(value)}")
    return value.numerator


def parse_real(key: str, text: str) -> float:
    """The number nearest to what was written; raises SpecError as parse_quantity does."""
    return float(parse_quantity(key, text))


def _kind_of(key: str) -> tuple[str, dict[str, Fraction], str]:
    name = f"_{key.rpartition('.')[2]}"
    return next((kind for ending, kind in _KINDS.items() if name.endswith(ending)), ("", {}, ""))


def pattern_of(key: str) -> str:
    """A regular expression for the quantities that go with a key; "" for one without a unit."""
    _, units, _ = _kind_of(key)
    spelled = "|".join(map(re.escape, sorted(units, key=len, reverse=True)))
    return rf"^\s*[+-]?[0-9][0-9_.,eE+-]*\s*({spelled})?\s*$" if units else ""

"""Ranges of a sweep file: `{from = 1, to = 1024, factor = 2}` and `{from = 0, to = 100, step = 10}`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from layerwise.sim.plan.errors import SpecError, UnknownKeyError, nearest
from layerwise.sim.plan.units import parse_quantity

RANGE_KEYS = ("from", "to", "factor", "step")
MAX_VALUES = 100_000


def is_range(value: object) -> bool:
    """Is this table a range, not a table of axes?"""
    return isinstance(value, dict) and bool(set(value) & set(RANGE_KEYS))


def expand(key: str, table: Mapping[str, Any], *, whole: bool) -> list[int] | list[float]:
    """Its values in SI units, both ends included where they are met.

    Raises SpecError for what is no range, never ends, or holds a fraction where `whole` is asked.
    """
    for name, value in table.items():
        if name not in RANGE_KEYS:
            raise UnknownKeyError(
                f"axes.{key}.{name}", value, "is not a known key", nearest(name, RANGE_KEYS)
            )
    if not {"from", "to"} <= set(table) or ("factor" in table) == ("step" in table):
        raise SpecError(
            f"axes.{key}",
            dict(table),
            "is not a range",
            "write {from = 1, to = 1024, factor = 2} or {from, to, step}",
        )
    low, high = (parse_quantity(key, str(table[end])) for end in ("from", "to"))
    by = parse_quantity(
        "factor" if "factor" in table else key, str(table.get("factor", table.get("step")))
    )
    multiplies = "factor" in table
    if low > high or (by <= 1 or low <= 0 if multiplies else by <= 0):
        raise SpecError(
            f"axes.{key}",
            dict(table),
            "never gets from its start to its end",
            "use from <= to with a factor above 1 (from > 0) or a step above 0",
        )
    if (math.log(high / low) / math.log(by) if multiplies else (high - low) / by) > MAX_VALUES:
        raise SpecError(
            f"axes.{key}",
            dict(table),
            f"has more than {MAX_VALUES} values",
            "take a larger factor or step",
        )
    values = _products(low, high, by, whole=whole) if multiplies else _sums(low, high, by)
    return [_number(key, value, whole=whole) for value in values]


def _sums(low: Fraction, high: Fraction, step: Fraction) -> Iterator[Fraction]:
    for index in range(int((high - low) / step) + 1):
        yield low + index * step


def _products(
    low: Fraction, high: Fraction, factor: Fraction, *, whole: bool
) -> Iterator[Fraction]:
    """Exact for whole numbers; others are rounded as they go, or their digits would add up."""
    value = low
    while value <= high:
        yield value
        value *= factor
        if not whole:
            value = Fraction(float(value))


def _number(key: str, value: Fraction, *, whole: bool) -> Any:
    if not whole:
        return float(value)
    if value.denominator != 1:
        raise SpecError(
            f"axes.{key}",
            float(value),
            "is in the range and not a whole number",
            "take a whole factor or step, or list the values",
        )
    return value.numerator

"""What people write in files, made what specs hold: `hbm_bytes = "80GB"` is 80,000,000,000."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.units import parse_real, parse_whole, pattern_of


def in_si_units(kind: type, data: dict[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    """A table for this spec with text that carries a unit as numbers; the rest as it is.

    A name, where a table with a `base` may be, becomes that table. Raises SpecError, which names
    the key and `source`, for a unit that does not go with the key.
    """
    types = types_of(kind)
    found: dict[str, Any] = {}
    for key, value in data.items():
        inner, dotted = types.get(key), f"{prefix}{key}"
        if inner is not None and is_dataclass(inner) and isinstance(value, dict):
            found[key] = in_si_units(inner, value, source, f"{dotted}.")
        elif isinstance(value, str) and is_dataclass(inner) and "base" in types_of(inner):
            found[key] = {"base": value}
        elif isinstance(value, str) and inner in (int, float) and pattern_of(key):
            found[key] = _number(dotted, value, inner, source)
        else:
            found[key] = value
    return found


def with_written_quantities(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema that also takes what `in_si_units` does: text with a unit, a base's name."""
    tables = schema.get("$defs", {})
    for name, field in _fields(schema, *tables.values()):
        if "anyOf" in field:  # TOML has no null: a key is left out instead
            (only,) = (one for one in field.pop("anyOf") if one.get("type") != "null")
            field.pop("default", None)
            field.update(only)
        if field.get("type") in ("integer", "number") and (pattern := pattern_of(name)):
            plain = {"type": field.pop("type")}
            field["anyOf"] = [plain, {"type": "string", "pattern": pattern}]
        if "base" in tables.get(_table_name(field), {}).get("properties", {}):
            reference = {"$ref": field.pop("$ref")}
            field["anyOf"] = [{"type": "string"}, reference]
            field["default"] = field.get("default", {}).get("base", "")
    return schema


def _fields(*tables: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for table in tables:
        yield from table.get("properties", {}).items()


def _table_name(field: dict[str, Any]) -> str:
    return field.get("$ref", "").rpartition("/")[2]


def _number(key: str, text: str, kind: type, source: str) -> int | float:
    try:
        return parse_whole(key, text) if kind is int else parse_real(key, text)
    except SpecError as error:
        raise error.in_file(source) from error


@cache
def types_of(kind: type) -> dict[str, type]:
    """The type of each field, of an optional one the type that it may have."""
    hints = get_type_hints(kind)
    return {field.name: _without_none(hints[field.name]) for field in fields(kind)}


def _without_none(kind: Any) -> Any:
    if get_origin(kind) not in (Union, UnionType):
        return kind
    some = [one for one in get_args(kind) if one is not NoneType]
    return some[0] if len(some) == 1 else kind

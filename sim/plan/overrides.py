"""What-ifs by key: any field of a scenario, reached by its dotted name, set to what a user wrote."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from layerwise.sim.plan.errors import SpecError, UnknownKeyError
from layerwise.sim.plan.hardware import (
    GPUS,
    LINKS,
    ClusterSpec,
    GpuSpec,
    LinkSpec,
    cluster_name,
    usual_wires,
)
from layerwise.sim.plan.model import MODELS, ModelSpec
from layerwise.sim.plan.scenario import Scenario, place
from layerwise.sim.plan.units import parse_real, parse_whole

# A whole table may be named instead of given field by field.
NAMED: dict[type, Mapping[str, Any]] = {GpuSpec: GPUS, LinkSpec: LINKS, ModelSpec: MODELS}
TRUTHS = {"true": True, "false": False}


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def with_values(scenario: Scenario, values: Mapping[str, object]) -> Scenario:
    """The scenario with these fields changed, all at once, and checked again.

    Keys are dotted (`cluster.gpu.l2_bytes`); values are numbers, or text with units (`450GB/s`).
    `cluster.gpu`, `cluster.nvlink`, `cluster.nic` and `model` also take a known name; a named GPU
    brings its usual wires unless they are given too. Raises UnknownKeyError for a key that does
    not exist, SpecError for a value that does not go with it, PlacementError when nothing can be
    placed so.
    """
    known = keys_of(scenario)
    for key, value in values.items():
        if key not in known:
            raise UnknownKeyError(key, value, "is not a known key", _fix(key, known, scenario))
    tables = {key: values[key] for key in sorted(values) if is_dataclass(_at(scenario, key))}
    leaves = {key: value for key, value in values.items() if key not in tables}
    # Names first: `cluster.gpu=h200` with `cluster.gpu.num_sms=120` is an H200 of 120 SMs.
    changed = _changed(_with_tables(scenario, tables), leaves)
    changed = _renamed(scenario.cluster, changed, values)
    place(changed)
    return changed


def _with_tables(scenario: Scenario, names: Mapping[str, object]) -> Scenario:
    specs = {key: _named(key, name, type(_at(scenario, key))) for key, name in names.items()}
    if "cluster.gpu" in specs:
        inside, between = usual_wires(specs["cluster.gpu"].name)
        specs = {"cluster.nvlink": inside, "cluster.nic": between} | specs
    return _changed(scenario, specs)


def parse_settings(settings: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE`, as the command line gives them. Raises SpecError for anything else."""
    found: dict[str, str] = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not (key and equals and value):
            raise SpecError("--set", setting, "is not KEY=VALUE",
                            "write it like --set workload.batch_size=64")  # fmt: skip
        if key in found:
            raise SpecError("--set", setting, f"sets {key} again", "keep one of them")
        found[key] = value
    return found


def keys_of(spec: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a spec, tables and what is in them."""
    found: list[str] = []
    for field in fields(spec):
        key, value = prefix + field.name, getattr(spec, field.name)
        if is_dataclass(value):
            found += [key] if type(value) in NAMED else []
            found += keys_of(value, f"{key}.")
        elif value is not None:
            found.append(key)
    return found


def nearest(key: str, known: Iterable[str]) -> str:
    """A fix that names the known keys most like this one, or all of them."""
    known = sorted(known)
    # 'h100' means one of the H100s, though 'h200' has more letters in common.
    begun = [name for name in known if key and name.startswith(key)]
    close = begun or difflib.get_close_matches(key, known, n=1)
    return _meant(close) or f"known keys are {known}"


def _meant(names: Iterable[str]) -> str:
    text = " or ".join(repr(name) for name in names)
    return text and f"did you mean {text}?"


def _fix(key: str, known: list[str], scenario: Scenario) -> str:
    if key == "cluster.num_gpus":
        return "set cluster.num_nodes and cluster.gpus_per_node"
    if key.partition(".")[0] == "kernels" and scenario.kernels is None:
        return "the kernels are the profile's; name all of them in a [kernels] table of the file"
    ends = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    tables = sorted({name.partition(".")[0] for name in known if "." in name})
    return (
        _meant(ends)
        or _meant(difflib.get_close_matches(key, known, n=1, cutoff=0.75))
        or f"a key is a field of {', '.join(tables)}, as in workload.batch_size"
    )


def _at(spec: Any, key: str) -> Any:
    for part in key.split("."):
        spec = getattr(spec, part)
    return spec


def _named(key: str, name: object, kind: type) -> Any:
    known = NAMED[kind]
    if isinstance(name, kind):
        return name
    if not isinstance(name, str) or name not in known:
        raise SpecError(key, name, "is not known", nearest(str(name), known))
    return known[name]


def _changed(spec: Any, values: Mapping[str, object], prefix: str = "") -> Any:
    """`spec` with these fields below it, by their keys from here on; checked by its own rules."""
    hints = _hints(type(spec))
    new: dict[str, Any] = {}
    for name in dict.fromkeys(key.partition(".")[0] for key in values):
        if name in values:
            new[name] = _coerced(f"{prefix}{name}", values[name], hints[name])
            continue
        below = {k.partition(".")[2]: v for k, v in values.items() if k.startswith(f"{name}.")}
        new[name] = _changed(getattr(spec, name), below, f"{prefix}{name}.")
    if isinstance(spec, (GpuSpec, LinkSpec)) and "source" not in new:
        new["source"] = _changed_source(spec, new)
    try:
        return replace(spec, **new)
    except SpecError as error:
        raise error.in_file("", prefix.rstrip(".")) from error


def _changed_source(spec: GpuSpec | LinkSpec, new: Mapping[str, object]) -> str:
    """A number carries where it came from, also when it is made up."""
    made_up = [f"{name}={value}" for name, value in new.items() if value != getattr(spec, name)]
    return f"{spec.source}; what-if: {', '.join(made_up)}" if made_up else spec.source


def _coerced(key: str, value: object, kind: Any) -> Any:
    """The value as its field's type; integers stay exact, text may carry a unit or be a list."""
    if is_dataclass(kind):
        return value
    if get_origin(kind) is tuple:
        several = str(value).strip("[()] ").split(",")
        return tuple(_coerced(key, one, get_args(kind)[0]) for one in several if one.strip())
    text = str(value).strip()
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise SpecError(key, value, "is unknown", f"use one of {list(get_args(kind))}")
        return text
    if kind is bool:
        if text.lower() not in TRUTHS:
            raise SpecError(key, value, "is neither true nor false", "use true or false")
        return TRUTHS[text.lower()]
    if kind is str:
        return text
    if isinstance(value, bool):
        raise SpecError(key, value, "is not a number", "write a number")
    return parse_whole(key, text) if kind is int else parse_real(key, text)


def _renamed(before: ClusterSpec, changed: Scenario, values: Mapping[str, object]) -> Scenario:
    """A cluster that is called after its size, GPU and slow parts is called after the new ones."""
    after = changed.cluster
    was = cluster_name(before.gpu, before.num_gpus, before.slow)
    if "cluster.name" in values or before.name != was:
        return changed
    name = cluster_name(after.gpu, after.num_gpus, after.slow)
    return replace(changed, cluster=replace(after, name=name))

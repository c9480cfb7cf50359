"""The tables of a scenario file: what may be written in each, and the keys that `--set` takes.

A key is the same wherever it is written: in a file, after `--set`, as an axis of a sweep, in a
what-if. So everything here works on tables as a file has them, before they are checked.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from layerwise.sim.plan.compile import GivenKernels
from layerwise.sim.plan.errors import SpecError, UnknownKeyError, did_you_mean
from layerwise.sim.plan.hardware import (
    GPUS,
    LINKS,
    NOTHING_SLOW,
    ClusterSpec,
    LinkSpec,
    SlowParts,
    usual_wires,
)
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario
from layerwise.sim.plan.units import parse_real, parse_whole
from layerwise.sim.plan.workload import Workload
from layerwise.sim.plan.written import types_of


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """`[model]`: a preset, a Hugging Face config file, or dimensions; dimensions override.

    Exactly one of `preset` and `config` may be given.
    """

    __pydantic_config__ = {"extra": "forbid"}

    preset: str = ""
    config: str = ""
    name: str | None = None
    num_layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    rms_norm_eps: float | None = None
    rope_theta: float | None = None
    dtype: str | None = None
    weight_dtype: str | None = None
    kv_dtype: str | None = None
    tie_word_embeddings: bool | None = None


@dataclass(frozen=True, kw_only=True)
class GpuTable:
    """`[cluster.gpu]`: `base` is a known GPU or a TOML file; the other keys replace its values.

    `gpu = "h200"` is short for a table that has only its base.
    """

    __pydantic_config__ = {"extra": "forbid"}

    base: str = "h100-sxm"
    name: str | None = None
    num_sms: int | None = None
    peak_flops_per_s: float | None = None
    peak_float32_flops_per_s: float | None = None
    hbm_bytes: int | None = None
    hbm_bytes_per_s: float | None = None
    l2_bytes: int | None = None
    l2_bytes_per_s: float | None = None
    source: str | None = None
    persisting_l2_bytes: int | None = None
    access_window_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class LinkTable:
    """`[cluster.nvlink]`, `[cluster.nic]`: `base` is a known link, "" the GPU's usual one.

    The other keys replace its values. `nic = "hdr200"` is short for a table that has only its base.
    """

    __pydantic_config__ = {"extra": "forbid"}

    base: str = ""
    name: str | None = None
    bytes_per_s: float | None = None
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class ClusterTable:
    """`[cluster]`: a known GPU or a TOML file of one's own, how many, how many share a node.

    `nvlink` and `nic` name other wires than the GPU's usual ones; a GPU of one's own has a DGX
    H100's unless they are given. `slow` names the GPUs and ports that are slower than the rest.
    """

    __pydantic_config__ = {"extra": "forbid"}

    gpu: GpuTable = GpuTable()
    num_gpus: int = 16
    gpus_per_node: int = 8
    nvlink: LinkTable = LinkTable()
    nic: LinkTable = LinkTable()
    slow: SlowParts = NOTHING_SLOW


@dataclass(frozen=True, kw_only=True)
class ScenarioFile:
    """A scenario file as a user writes it. Kernels that are not given are the profile's."""

    __pydantic_config__ = {"extra": "forbid"}

    model: ModelTable
    name: str = ""
    cluster: ClusterTable = ClusterTable()
    placement: PlacementSpec = PlacementSpec()
    workload: Workload = Workload()
    run: RunSpec = RunSpec()
    kernels: GivenKernels = GivenKernels()


# A table that may be named instead of written: the key of its own that the name is then under.
SHORT = {
    "model": "preset",
    "cluster.gpu": "base",
    "cluster.nvlink": "base",
    "cluster.nic": "base",
}
# Keys of a resolved cluster that no file has, and what to set instead.
INSTEAD = {
    "cluster.num_nodes": "set cluster.num_gpus, which counts those of all nodes",
    "cluster.name": "a cluster is called after its GPUs; set cluster.gpu.name, or name",
}
# Keys that may name a file, by how its name ends.
PATHS = {
    "model": ".json",
    "model.config": ".json",
    "cluster.gpu": ".toml",
    "cluster.gpu.base": ".toml",
}
MADE_UP = "; what-if: "
TRUTHS = {"true": True, "false": False}


@cache
def keys() -> dict[str, Any]:
    """Return every dotted key of a scenario file with the type of its value."""
    found = dict(_keys_below(ScenarioFile))
    return found | dict.fromkeys(SHORT, str)


def _keys_below(table: type, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, kind in types_of(table).items():
        if is_dataclass(kind):
            yield from _keys_below(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind


def with_settings(tables: Mapping[str, Any], settings: Mapping[str, object]) -> dict[str, Any]:
    """Return the tables of a file with these keys set, as if they had been written there.

    Values are numbers, truths, or text as people write it (`450GB/s`, `1,000`, `true`, `5, 13`).
    `model`, `cluster.gpu`, `cluster.nvlink` and `cluster.nic` take a name (a model's config and a
    GPU's file too), which replaces the whole table; keys below them come after it. Raises UnknownKeyError, SpecError for text that is no
    value of its key's type.
    """
    found = dict(tables)
    for key in sorted(settings):
        _put(found, key, _typed(key, settings[key], require_known(key, settings[key])))
    return found


def require_known(key: str, value: object) -> Any:
    """Return the type of a key's value. Raises UnknownKeyError, which names the nearest key."""
    if key not in keys():
        raise UnknownKeyError(key, value, "is not a known key", _nearest_key(key))
    return keys()[key]


def _put(tables: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key; tables on the way are copied, names on the way become tables."""
    *way, last = key.split(".")
    table = tables
    for depth, part in enumerate(way, 1):
        inner, name = table.get(part, {}), ".".join(way[:depth])
        if isinstance(inner, str) and SHORT.get(name) == "base":
            inner = {"base": inner}
        if not isinstance(inner, dict):
            raise SpecError(name, inner, "is not a table", f"write its keys under [{name}]")
        table[part] = dict(inner)
        table = table[part]
    if key in SHORT:
        is_config = key == "model" and str(value).endswith(PATHS[key])
        value = {"config" if is_config else SHORT[key]: value}
    table[last] = value


def _typed(key: str, value: object, kind: Any) -> Any:
    """Return the value as its key's type: integers stay exact, text may carry a unit or be a list."""
    if get_origin(kind) is tuple:
        several = str(value).strip("[()] ").split(",")
        return [_typed(key, one, get_args(kind)[0]) for one in several if one.strip()]
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


def _nearest_key(key: str) -> str:
    if key in INSTEAD:
        return INSTEAD[key]
    ends = [name for name in sorted(keys()) if name.rpartition(".")[2] == key.rpartition(".")[2]]
    close = ends or difflib.get_close_matches(key, sorted(keys()), n=1, cutoff=0.75)
    tables = sorted({name.partition(".")[0] for name in keys() if "." in name})
    return did_you_mean(close) or (
        f"a key is a field of {', '.join(tables)}, as in workload.batch_size"
    )


def tables_of(scenario: Scenario) -> dict[str, Any]:
    """Return the tables of a file that says what this scenario is.

    What is known by a name is named, so that setting another name replaces it.
    """
    own = scenario.kernels or scenario.given_kernels or GivenKernels()
    return {
        "name": scenario.name,
        "model": _over(scenario.model, MODELS.get(scenario.model.name), "preset"),
        "cluster": _cluster_table(scenario.cluster),
        "placement": asdict(scenario.placement),
        "workload": asdict(scenario.workload),
        "run": asdict(scenario.run),
        "kernels": {key: name for key, name in asdict(own).items() if name is not None},
    }


def _cluster_table(cluster: ClusterSpec) -> dict[str, Any]:
    per_node = {"gpus_per_node": cluster.gpus_per_node}
    inside, between = usual_wires(cluster.gpu.name)
    return {
        "gpu": _over(cluster.gpu, GPUS.get(cluster.gpu.name), "base"),
        "num_gpus": cluster.num_gpus,
        **(per_node if cluster.gpus_per_node != min(8, cluster.num_gpus) else {}),
        "nvlink": _link_table(cluster.nvlink, inside),
        "nic": _link_table(cluster.nic, between),
        "slow": asdict(cluster.slow),
    }


def _link_table(link: LinkSpec, usual: LinkSpec) -> dict[str, Any]:
    """A usual wire has no base, so that another GPU brings its own."""
    if link.name == usual.name:
        return {key: value for key, value in _over(link, usual, "base").items() if key != "base"}
    return _over(link, LINKS.get(link.name), "base")


def _over(spec: Any, known: Any, base: str) -> dict[str, Any]:
    """What differs from the known one of its name, or all of it; a made-up source is made again."""
    if known is None:
        return asdict(spec)
    own = {
        f.name: getattr(spec, f.name)
        for f in fields(spec)
        if getattr(spec, f.name) != getattr(known, f.name)
    }
    if str(own.get("source", "")).startswith(f"{getattr(known, 'source', '')}{MADE_UP}"):
        del own["source"]
    return {base: known.name, **own}

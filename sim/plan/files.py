"""The file boundary: TOML scenarios and Hugging Face configs, checked by pydantic.

The only place that reads what users write. Errors name the file, the key, the value and the fix.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import (
    FileFormatError,
    SpecError,
    UnknownKeyError,
    UnsupportedModelError,
)
from layerwise.sim.plan.hardware import (
    GPUS,
    LINKS,
    NOTHING_SLOW,
    ClusterSpec,
    GpuSpec,
    LinkSpec,
    SlowParts,
    dgx_cluster,
)
from layerwise.sim.plan.model import MODELS, DType, ModelSpec
from layerwise.sim.plan.overrides import nearest
from layerwise.sim.plan.reading import read_json, read_toml
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario, place
from layerwise.sim.plan.workload import Workload
from layerwise.sim.plan.written import in_si_units, with_written_quantities

MIXTURE_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
CONFIG_DTYPES: dict[str, DType] = {
    "bfloat16": "bfloat16", "float16": "bfloat16", "float32": "float32",
}  # fmt: skip
DTYPE_KEYS = ("torch_dtype", "dtype")
LLAMA_LIKE = ("llama", "mistral")
# What headers of older traces do not have.
NEWER_GPU_FIELDS = ("persisting_l2_bytes", "access_window_bytes", "peak_float32_flops_per_s")


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
class ClusterTable:
    """`[cluster]`: a known GPU or a TOML file of one's own, how many, how many share a node.

    `nvlink` and `nic` name other wires than the GPU's usual ones; a GPU of one's own has a DGX
    H100's unless they are given. `slow` names the GPUs and ports that are slower than the rest.
    """

    __pydantic_config__ = {"extra": "forbid"}

    gpu: str = "h100-sxm"
    num_gpus: int = 16
    gpus_per_node: int = 8
    nvlink: str = ""
    nic: str = ""
    slow: SlowParts = NOTHING_SLOW


@dataclass(frozen=True, kw_only=True)
class ScenarioFile:
    """A scenario file as a user writes it."""

    __pydantic_config__ = {"extra": "forbid"}

    model: ModelTable
    name: str = ""
    cluster: ClusterTable = ClusterTable()
    placement: PlacementSpec = PlacementSpec()
    workload: Workload = Workload()
    run: RunSpec = RunSpec()
    kernels: KernelChoice | None = None


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def scenario_json_schema() -> dict[str, Any]:
    """JSON schema of a scenario file, for an editor's completion and checks."""
    return with_written_quantities(_adapter(ScenarioFile).json_schema())


def load_scenario(path: Path) -> Scenario:
    """Read and resolve a scenario file.

    Raises FileFormatError when it is not TOML, SpecError (or a kind of it) when a key or value is
    wrong.
    """
    return scenario_from_tables(read_toml(path), str(path))


def scenario_from_tables(data: dict[str, Any], source: str) -> Scenario:
    """Resolve the tables of a scenario file; `source` names it in errors."""
    if "model" not in data:
        raise SpecError(
            "model", None, "is missing", "add a [model] table with a preset, a config or dimensions",
            source,
        )  # fmt: skip
    file: ScenarioFile = validate(ScenarioFile, in_si_units(ScenarioFile, data, source), source)
    folder = Path(source).parent
    scenario = Scenario(
        name=file.name or Path(source).stem,
        model=_resolve_model(file.model, folder, source),
        cluster=_resolve_cluster(file.cluster, folder, source),
        placement=file.placement,
        workload=file.workload,
        run=file.run,
        kernels=file.kernels,
    )
    try:
        place(scenario)
    except SpecError as error:
        raise error.in_file(source) from error
    return scenario


def scenario_from_data(data: dict[str, Any], source: str) -> Scenario:
    """The scenario in a trace's header, checked again.

    A header that is older than a field of GpuSpec gets the known GPU's value, not "none known".
    """
    return validate(Scenario, _with_newer_gpu_fields(data), source)


def _with_newer_gpu_fields(data: dict[str, Any]) -> dict[str, Any]:
    cluster: Any = data.get("cluster")
    gpu: Any = cluster.get("gpu") if isinstance(cluster, dict) else None
    if not (isinstance(gpu, dict) and gpu.get("name") in list(GPUS)):
        return data
    known = GPUS[gpu["name"]]
    newer = {key: getattr(known, key) for key in NEWER_GPU_FIELDS}
    return data | {"cluster": cluster | {"gpu": newer | gpu}}


def load_gpu(path: Path) -> GpuSpec:
    """A user's own GPU: one TOML file with the fields of GpuSpec."""
    return validate(GpuSpec, in_si_units(GpuSpec, read_toml(path), str(path)), str(path))


def load_model_config(path: Path) -> ModelSpec:
    """Import a Hugging Face `config.json` of a dense Llama-like model.

    Rotary scaling changes angles, not work, so `rope_scaling` is accepted and has no effect;
    float16 is timed as bfloat16 (the same bytes, the same tensor-core rate). Raises FileFormatError
    when it is not JSON; UnsupportedModelError for a mixture of experts, an unknown architecture,
    quantised weights, other dtypes, biases or sliding windows.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise FileFormatError(f"{path}: a Hugging Face config is a JSON object")
    _refuse_unsupported(config, str(path))
    return _model_from_config(config, path)


def _refuse_unsupported(config: dict[str, Any], source: str) -> None:
    def refuse(key: str, problem: str, fix: str) -> None:
        raise UnsupportedModelError(key, config[key], problem, fix, source)

    for key in MIXTURE_KEYS:
        if config.get(key):
            refuse(key, "is a mixture of experts", "use a dense Llama-like model")
    if config.get("model_type") not in LLAMA_LIKE:
        config.setdefault("model_type", None)
        refuse("model_type", "is not known here", f"use one of {list(LLAMA_LIKE)}")
    for key in ("attention_bias", "mlp_bias", "sliding_window", "quantization_config"):
        if config.get(key):
            refuse(key, "is not modelled", "use a model without it")
    if config.get("hidden_act", "silu") != "silu":
        refuse("hidden_act", "is not modelled", "use a model with 'silu'")
    for key in DTYPE_KEYS:
        if config.get(key) is not None and config[key] not in list(CONFIG_DTYPES):
            refuse(key, "is not modelled", f"use one of {list(CONFIG_DTYPES)}")
    if not isinstance(config.get("rope_scaling"), dict | None):
        refuse("rope_scaling", "is not a table", "use the model's own")


def _model_from_config(config: dict[str, Any], path: Path) -> ModelSpec:
    keys = {
        "num_layers": "num_hidden_layers",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_attention_heads": "num_attention_heads",
    }
    for key in (*keys.values(), "vocab_size"):
        if key not in config:
            raise SpecError(key, None, "is missing", f"add {key} to it", str(path))
        if not isinstance(config[key], int) or isinstance(config[key], bool):
            raise SpecError(key, config[key], "is not a whole number", "correct it", str(path))
    heads = config["num_attention_heads"]
    values = {name: config[key] for name, key in keys.items()}
    values["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    values["head_dim"] = config.get("head_dim") or config["hidden_size"] // max(heads, 1)
    for key in ("vocab_size", "rms_norm_eps", "rope_theta", "tie_word_embeddings"):
        if config.get(key) is not None:
            values[key] = config[key]
    for key in DTYPE_KEYS:
        if config.get(key) is not None:
            values["dtype"] = CONFIG_DTYPES[config[key]]
    name = path.parent.name if path.name == "config.json" else path.stem
    return validate(ModelSpec, {"name": name or "model", **values}, str(path))


def validate(kind: type, data: Any, source: str) -> Any:
    """Data as one of our frozen specs; wrong types, unknown keys and bad values are SpecErrors."""
    try:
        text = json.dumps(data, default=str, allow_nan=False)
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise _spec_error(kind, error, source) from error
    except RecursionError as error:
        raise FileFormatError(f"{source}: is nested too deeply; see `layerwise schema`") from error
    except ValueError as error:
        # Infinities, and numbers of thousands of digits.
        key, value = next(_beyond_json("", data), ("a value", None))
        raise SpecError(key, value, "is no number of a machine", "correct it", source) from error


def _beyond_json(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (int, float)) and not abs(value) <= sys.float_info.max:
        yield key, value
    if isinstance(value, (dict, list, tuple)):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for name, one in inner:
            yield from _beyond_json(f"{key}.{name}" if key else f"{name}", one)


def _spec_error(kind: type, error: ValidationError, source: str) -> SpecError:
    unknown = ("extra_forbidden", "unexpected_keyword_argument")
    # A misspelt key is also a missing one: say the cause first.
    first = min(error.errors(), key=lambda found: found["type"] not in unknown)
    path = [str(part) for part in first["loc"]]
    key, value = ".".join(path), first.get("input")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SpecError):
        return cause.in_file(source, key)
    if first["type"] in unknown:
        fix = nearest(path[-1], _field_names(kind, path[:-1]))
        return UnknownKeyError(key, value, "is not a known key", fix, source)
    if first["type"] in ("missing", "missing_argument"):
        return SpecError(key, None, "is missing", f"add {key} = ...", source)
    return SpecError(key, value, f"is wrong: {first['msg']}", "see `layerwise schema`", source)


def _field_names(kind: type, path: Iterable[str]) -> list[str]:
    schema = _adapter(kind).json_schema()
    node: Any = schema
    for part in path:
        node = node.get("properties", {}).get(part, {})
        options = node.get("anyOf") or node.get("allOf") or [node]
        reference = next((o["$ref"] for o in options if "$ref" in o), "")
        node = schema.get("$defs", {}).get(reference.rsplit("/", 1)[-1], node)
    return sorted(node.get("properties", {}))


def _resolve_model(table: ModelTable, folder: Path, source: str) -> ModelSpec:
    if table.preset and table.config:
        raise SpecError("model.config", table.config, "and model.preset are both given",
                        "keep one of them", source)  # fmt: skip
    given = {f.name: getattr(table, f.name) for f in fields(table)
             if f.name not in ("preset", "config") and getattr(table, f.name) is not None}  # fmt: skip
    base: dict[str, Any] = {"name": "model"}
    if table.preset:
        base = _spec_as_data(_known(MODELS, "model.preset", table.preset, source))
    elif table.config:
        try:
            base = _spec_as_data(load_model_config(folder / table.config))
        except FileFormatError as error:
            error.add_note("model.config names a config.json, relative to the scenario file")
            raise
    try:
        return validate(ModelSpec, base | given, source)
    except SpecError as error:
        raise error.in_file(source, "model") from error


def _resolve_cluster(table: ClusterTable, folder: Path, source: str) -> ClusterSpec:
    own = table.gpu.endswith(".toml")
    gpu = load_gpu(folder / table.gpu) if own else _known(GPUS, "cluster.gpu", table.gpu, source)
    nvlink, nic = (
        _known(LINKS, f"cluster.{key}", name, source) if name else None
        for key, name in (("nvlink", table.nvlink), ("nic", table.nic))
    )
    try:
        return dgx_cluster(
            gpu, table.num_gpus, table.gpus_per_node, nvlink=nvlink, nic=nic, slow=table.slow
        )
    except SpecError as error:
        raise error.in_file(source, "cluster") from error


def _known(table: dict[str, Any], key: str, name: str, source: str) -> Any:
    if name not in table:
        own = " (one's own: the path of a .toml file)" if table is GPUS else ""
        raise SpecError(key, name, "is not known", nearest(name, sorted(table)) + own, source)
    return table[name]


def _spec_as_data(spec: ModelSpec | LinkSpec) -> dict[str, Any]:
    return {f.name: getattr(spec, f.name) for f in fields(spec)}

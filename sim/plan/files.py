"""The file boundary: TOML scenarios and Hugging Face configs, checked by pydantic.

The only place that reads what users write. Errors name the file, the key, the value and the fix.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from layerwise.sim.plan.compile import GivenKernels, KernelChoice
from layerwise.sim.plan.errors import (
    FileFormatError,
    SpecError,
    UnknownKeyError,
    UnsupportedModelError,
    nearest,
)
from layerwise.sim.plan.hardware import (
    GPUS,
    LINKS,
    ClusterSpec,
    GpuSpec,
    LinkSpec,
    cluster_name,
    dgx_cluster,
    usual_wires,
)
from layerwise.sim.plan.model import MODELS, DType, ModelSpec
from layerwise.sim.plan.reading import read_json, read_toml
from layerwise.sim.plan.scenario import Scenario, place
from layerwise.sim.plan.tables import (
    MADE_UP,
    ClusterTable,
    GpuTable,
    LinkTable,
    ModelTable,
    ScenarioFile,
    require_known,
    tables_of,
    with_settings,
)
from layerwise.sim.plan.written import in_si_units, types_of, with_written_quantities

TABLES = ("model", "cluster", "placement", "workload", "run", "kernels", "name")
# Tables that are remembered as they were resolved; a sweep has fewer of each but its last axes.
MAX_KNOWN = 4096
MIXTURE_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
CONFIG_DTYPES: dict[str, DType] = {
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "float32": "float32",
}
DTYPE_KEYS = ("torch_dtype", "dtype")
LLAMA_LIKE = ("llama", "mistral")
# What headers of older traces do not have.
NEWER_GPU_FIELDS = ("persisting_l2_bytes", "access_window_bytes", "peak_float32_flops_per_s")


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def scenario_json_schema() -> dict[str, Any]:
    """JSON schema of a scenario file, for an editor's completion and checks."""
    return with_written_quantities(_adapter(ScenarioFile).json_schema())


@dataclass(frozen=True)
class Written:
    """A scenario as it is written: tables, and the file they are from ("" for none).

    Paths in them are from that file. What a table says is worked out once for all settings that
    leave it alone, so that a sweep's point costs what it changes.
    """

    tables: Mapping[str, Any]
    source: str = ""
    _known: dict[tuple[str, str], Any] = field(default_factory=dict, compare=False, repr=False)

    def scenario(self, settings: Mapping[str, object] | None = None) -> Scenario:
        """Resolve the tables with these keys set (see `tables.with_settings`).

        Raises SpecError, or a kind of it, for a key or a value that is wrong; PlacementError when
        nothing can be placed so.
        """
        by_table = _by_table(settings or {})
        _refuse_unknown_tables(self.tables, by_table, self.source)
        model, cluster, placement, workload, run, given, name = (
            self._resolved(name, by_table.get(name, {})) for name in TABLES
        )
        scenario = Scenario(
            name=name or Path(self.source).stem,
            model=model,
            cluster=cluster,
            placement=placement,
            workload=workload,
            run=run,
            kernels=given.over(KernelChoice()) if given.are_all else None,
            given_kernels=None if given.are_all or given == GivenKernels() else given,
        )
        try:
            place(scenario)
        except SpecError as error:
            raise error.in_file("" if settings else self.source) from error
        return scenario

    def with_settings(self, settings: Mapping[str, object]) -> Written:
        """Return the same with these keys set for good."""
        return Written(with_settings(self.tables, settings), self.source)

    def _resolved(self, name: str, settings: dict[str, object]) -> Any:
        """What one table says. Errors name the file, unless settings have changed the table."""
        known = (name, repr(settings))
        if known not in self._known:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            own = {name: self.tables[name]} if name in self.tables else {}
            table = with_settings(own, settings).get(name, "" if name == "name" else {})
            source = "" if settings else self.source
            self._known[known] = _resolved(name, table, Path(self.source).parent, source)
        return self._known[known]


def load_scenario(path: Path, settings: Mapping[str, object] | None = None) -> Scenario:
    """Read and resolve a scenario file, with these keys set.

    Raises FileFormatError when it is not TOML, SpecError (or a kind of it) when a key or value is
    wrong.
    """
    return Written(read_toml(path), str(path)).scenario(settings)


def with_values(scenario: Scenario, values: Mapping[str, object]) -> Scenario:
    """Return the scenario with these keys of a scenario file set; raises as `Written.scenario`."""
    if not values:
        return scenario
    known = {(name, "{}"): getattr(scenario, name) for name in TABLES if name != "kernels"}
    changed = Written(tables_of(scenario), _known=known).scenario(values)
    own = scenario.cluster
    if own.name == cluster_name(own.gpu, own.num_gpus, own.slow):
        return changed
    return replace(changed, cluster=replace(changed.cluster, name=own.name))


def _by_table(settings: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """The settings of each table. Raises UnknownKeyError."""
    found: dict[str, dict[str, object]] = {}
    for key, value in settings.items():
        require_known(key, value)
        found.setdefault(key.partition(".")[0], {})[key] = value
    return found


def _refuse_unknown_tables(
    tables: Mapping[str, Any], settings: Mapping[str, Any], source: str
) -> None:
    if "model" not in tables and "model" not in settings:
        fix = "add a [model] table with a preset, a config or dimensions"
        raise SpecError("model", None, "is missing", fix, source)
    for name in tables:
        if name not in TABLES:
            fix = nearest(name, TABLES)
            raise UnknownKeyError(name, tables[name], "is not a known key", fix, source)


def _resolved(name: str, data: Any, folder: Path, source: str) -> Any:
    """What one table of a file says, checked."""
    kind = types_of(ScenarioFile)[name]
    if kind is str and isinstance(data, str):
        return data
    if kind is str or not isinstance(data, dict):
        fix = "write text in quotes" if kind is str else f"write its keys under [{name}]"
        raise SpecError(name, data, "is of another kind", fix, source)
    table = validate(kind, in_si_units(kind, data, source, f"{name}."), source, name)
    match table:
        case ModelTable():
            return _resolve_model(table, folder, source)
        case ClusterTable():
            return _resolve_cluster(table, folder, source)
        case _:
            return table


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


def validate(kind: type, data: Any, source: str, table: str = "") -> Any:
    """Data as one of our frozen specs; wrong types, unknown keys and bad values are SpecErrors.

    `table`: what comes before the keys of the data, in a file.
    """
    try:
        text = json.dumps(data, default=str, allow_nan=False)
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        found = _spec_error(kind, error, source)
        raise (found.in_file(source, table) if table else found) from error
    except RecursionError as error:
        raise FileFormatError(f"{source}: is nested too deeply; see `layerwise schema`") from error
    except ValueError as error:
        # Infinities, and numbers of thousands of digits.
        key, value = next(_beyond_json(table, data), ("a value", None))
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
        raise SpecError(
            "model.config",
            table.config,
            "and model.preset are both given",
            "keep one of them",
            source,
        )
    given = {
        f.name: getattr(table, f.name)
        for f in fields(table)
        if f.name not in ("preset", "config") and getattr(table, f.name) is not None
    }
    base: dict[str, Any] = {"name": "model"}
    if table.preset:
        base = asdict(_known(MODELS, "model.preset", table.preset, source))
    elif table.config:
        try:
            base = asdict(load_model_config(folder / table.config))
        except FileFormatError as error:
            error.add_note("model.config names a config.json, relative to the scenario file")
            raise
    try:
        return validate(ModelSpec, base | given, source)
    except SpecError as error:
        raise error.in_file(source, "model") from error


def _resolve_cluster(table: ClusterTable, folder: Path, source: str) -> ClusterSpec:
    name = table.gpu.base
    own = name.endswith(".toml")
    base = load_gpu(folder / name) if own else _known(GPUS, "cluster.gpu", name, source)
    inside, between = usual_wires(base.name)
    try:
        return dgx_cluster(
            _made_of(base, table.gpu, "gpu"),
            table.num_gpus,
            table.gpus_per_node,
            nvlink=_resolve_link(table.nvlink, inside, "nvlink", source),
            nic=_resolve_link(table.nic, between, "nic", source),
            slow=table.slow,
        )
    except SpecError as error:
        raise error.in_file(
            source, "" if error.key.startswith("cluster.") else "cluster"
        ) from error


def _resolve_link(table: LinkTable, usual: LinkSpec, key: str, source: str) -> LinkSpec:
    base = _known(LINKS, f"cluster.{key}", table.base, source) if table.base else usual
    return _made_of(base, table, key)


def _made_of(base: Any, table: GpuTable | LinkTable, key: str) -> Any:
    """The base with the values of its table; its source says which of them are made up."""
    given = {f.name: getattr(table, f.name) for f in fields(table) if f.name != "base"}
    new = {
        name: value
        for name, value in given.items()
        if value is not None and value != getattr(base, name)
    }
    if new and "source" not in new:
        made_up = ", ".join(f"{name}={value}" for name, value in new.items())
        new["source"] = f"{base.source}{MADE_UP}{made_up}"
    try:
        return replace(base, **new)
    except SpecError as error:
        raise error.in_file("", key) from error


def _known(table: dict[str, Any], key: str, name: str, source: str) -> Any:
    if name not in table:
        own = " (one's own: the path of a .toml file)" if table is GPUS else ""
        raise SpecError(key, name, "is not known", nearest(name, sorted(table)) + own, source)
    return table[name]

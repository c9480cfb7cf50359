"""What `layerwise rank` is given, as the tables of a scenario: a file's, options, settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layerwise.scenarios.rank.layouts import Layout
from layerwise.scenarios.shipped import find, shipped_names
from layerwise.sim.plan.errors import SpecError, nearest
from layerwise.sim.plan.files import Written
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.plan.model import MODELS, divisors
from layerwise.sim.plan.overrides import parse_settings
from layerwise.sim.plan.reading import read_toml
from layerwise.sim.plan.scenario import Launch, Scenario
from layerwise.sim.plan.tables import ClusterTable
from layerwise.sim.plan.units import parse_real, parse_whole

GPUS_PER_NODE = 8
# What can be gone through in a minute or so.
MAX_GPUS = 16_384
# What a ranking decides itself, or says in other ways.
NOT_SET = ("placement", "kernels", "workload.phase", "run.only_rank")
STAND_IN = Layout(tensor_parallel=1, pipeline_parallel=1, data_parallel=1)


@dataclass(frozen=True, kw_only=True)
class RankInputs:
    """The options of the command line, as written; None is the scenario file's, or usual."""

    scenario: Path | None = None
    model: str | None = None
    num_gpus: int | None = None
    gpu: str | None = None
    gpus_per_node: int = 0
    batch_size: int | None = None
    context_tokens: int | None = None
    launch: Launch | None = None
    changes: tuple[str, ...] = ()


def resolve(inputs: RankInputs) -> Scenario:
    """Model, cluster, workload and run that they describe; the placement is a stand-in.

    Raises SpecError (or a kind of it) for what does not go together, FileFormatError for a file.
    """
    changes = parse_settings(inputs.changes)
    for key in changes:
        if any(key == name or key.startswith(f"{name}.") for name in NOT_SET):
            raise SpecError("--set", key, "is what a ranking decides itself", "leave it out")
    tables = _of_file(inputs.scenario) if inputs.scenario else {}
    if inputs.model:
        tables["model"] = model_table(inputs.model)
    if not ("model" in tables or changes.keys() & {"model", "model.preset"}):
        raise SpecError("--model", None, "is missing", "give it, or a scenario file")
    settings = _options(inputs) | changes
    settings |= _filling_nodes(tables, settings)
    tables |= {"name": "rank", "placement": asdict(STAND_IN.spec)}
    return Written(tables, str(inputs.scenario or "")).scenario(settings)


def left_out(path: Path, asked: Scenario) -> str:
    """Return a line of what a scenario file says and a ranking goes through itself."""
    found = [key for key in NOT_SET if key in read_toml(path)]
    said = f"ranked: model, cluster, workload and run of {path}"
    said += f"; left out, as a ranking goes through all: {', '.join(found)}" if found else ""
    number = asked.workload.num_microbatches
    return said + (f"; kept: workload.num_microbatches={number} (0 tries many)" if number else "")


def _of_file(path: Path) -> dict[str, Any]:
    """The tables that are ranked."""
    tables = {key: table for key, table in read_toml(path).items() if key not in NOT_SET}
    if isinstance(run := tables.get("run"), dict):
        tables["run"] = {key: value for key, value in run.items() if key != "only_rank"}
    return tables


def _options(inputs: RankInputs) -> dict[str, object]:
    """The options that were given, by the key of a scenario file that each of them sets."""
    found = {
        "cluster.gpu": inputs.gpu and _gpu_named(inputs.gpu),
        "cluster.num_gpus": inputs.num_gpus,
        "cluster.gpus_per_node": inputs.gpus_per_node or None,
        "workload.batch_size": inputs.batch_size,
        "workload.context_tokens": inputs.context_tokens,
        "run.launch": inputs.launch,
    }
    return {key: value for key, value in found.items() if value is not None}


def model_table(text: str) -> dict[str, str]:
    """The table of a preset, a Hugging Face config.json, a folder that holds one, or a shipped one."""
    if text in MODELS:
        return {"preset": text}
    inside = Path(text) / "config.json"
    try:
        return {
            "config": str(find(inside if inside.is_file() else text, "--model", "model").resolve())
        }
    except SpecError as error:
        known = ", ".join([*MODELS, *shipped_names(["model"])["model"]])
        fix = f"use {known} or the path of a config.json"
        raise SpecError("--model", text, "is neither a preset nor a file", fix) from error


def _gpu_named(text: str) -> str:
    """A known GPU in any case, or the path of a TOML file of one's own."""
    if text.endswith(".toml"):
        return str(Path(text).resolve())
    name = text.lower()
    if name not in GPUS:
        own = "one's own: --gpu FILE.toml, with its datasheet's values"
        raise SpecError("--gpu", text, "is not known", f"{nearest(name, GPUS)} ({own})")
    return name


def _filling_nodes(tables: dict[str, Any], settings: dict[str, object]) -> dict[str, object]:
    """Nodes of the most GPUs up to eight that fill them all, unless their size is given."""
    own = tables.get("cluster")
    cluster: dict[str, Any] = own if isinstance(own, dict) else {}
    given = settings.get("cluster.num_gpus", cluster.get("num_gpus", ClusterTable().num_gpus))
    number = parse_whole("cluster.num_gpus", str(given))
    if number < 1:
        raise SpecError("--gpus", number, "is not positive", "use 1 or more")
    if number > MAX_GPUS:
        raise SpecError("--gpus", number, "is beyond what is ranked", f"use at most {MAX_GPUS}")
    if "cluster.gpus_per_node" in settings:
        return {}
    if "gpus_per_node" in cluster and "cluster.num_gpus" not in settings:
        return {}
    most = max(size for size in divisors(number) if size <= GPUS_PER_NODE)
    return {"cluster.gpus_per_node": most}


def tpot_s_of(text: str | None) -> float | None:
    """`20ms` as seconds; None when nothing was asked for."""
    if text is None:
        return None
    value_s = parse_real("tpot_below_s", text)
    if value_s <= 0:
        raise SpecError("--tpot-below", text, "is not positive", "write it like 20ms")
    if value_s >= 1 and text.strip().replace(".", "", 1).isdecimal():
        raise SpecError(
            "--tpot-below", text, "would be so many seconds", f"write {text}ms or {text}s"
        )
    return value_s

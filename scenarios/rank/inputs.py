"""What `layerwise rank` is given, made into specs: presets, files, names, quantities with units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from layerwise.scenarios.rank.layouts import Layout
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.files import load_gpu, load_model_config
from layerwise.sim.plan.hardware import GPUS, ClusterSpec, GpuSpec, dgx_cluster
from layerwise.sim.plan.model import MODELS, ModelSpec, divisors
from layerwise.sim.plan.overrides import nearest, parse_settings, with_values
from layerwise.sim.plan.scenario import Launch, RunSpec, Scenario
from layerwise.sim.plan.units import parse_real
from layerwise.sim.plan.workload import Workload

GPUS_PER_NODE = 8
# What can be gone through in a minute or so.
MAX_GPUS = 16_384
# What a ranking decides itself, or says in other ways.
NOT_SET = ("placement", "kernels", "workload.phase", "run.only_rank")


@dataclass(frozen=True, kw_only=True)
class RankInputs:
    """The options of the command line, as written."""

    model: str
    num_gpus: int = 16
    gpu: str = "h100-sxm"
    gpus_per_node: int = 0
    batch_size: int = 128
    context_tokens: int = 10_000
    launch: Launch = "graph"
    changes: tuple[str, ...] = ()


def resolve(inputs: RankInputs) -> Scenario:
    """Model, cluster, workload and run that they describe; the placement is a stand-in.

    Raises SpecError (or a kind of it) for what does not go together, FileFormatError for a file.
    """
    values = parse_settings(inputs.changes)
    for key in values:
        if any(key == name or key.startswith(f"{name}.") for name in NOT_SET):
            raise SpecError("--set", key, "is what a ranking decides itself", "leave it out")
    stand_in = Layout(tensor_parallel=1, pipeline_parallel=1, data_parallel=1)
    scenario = Scenario(
        name="rank", model=model_named(inputs.model),
        cluster=cluster_of(inputs.gpu, inputs.num_gpus, inputs.gpus_per_node),
        placement=stand_in.spec, run=RunSpec(launch=inputs.launch),
        workload=Workload(batch_size=inputs.batch_size, context_tokens=inputs.context_tokens),
    )  # fmt: skip
    return with_values(scenario, values) if values else scenario


def model_named(text: str) -> ModelSpec:
    """A preset, a Hugging Face config.json, or a folder that holds one."""
    if text in MODELS:
        return MODELS[text]
    path = Path(text) / "config.json" if Path(text).is_dir() else Path(text)
    if not path.exists():
        raise SpecError("--model", text, "is neither a preset nor a file",
                        f"use {', '.join(MODELS)} or the path of a config.json")  # fmt: skip
    return load_model_config(path)


def cluster_of(gpu: str, num_gpus: int, gpus_per_node: int = 0) -> ClusterSpec:
    """Equal nodes; 0 takes the largest number of GPUs up to eight that fills them all."""
    if num_gpus < 1:
        raise SpecError("--gpus", num_gpus, "is not positive", "use 1 or more")
    if num_gpus > MAX_GPUS:
        raise SpecError("--gpus", num_gpus, "is beyond what is ranked", f"use at most {MAX_GPUS}")
    chosen = gpus_per_node or max(n for n in divisors(num_gpus) if n <= GPUS_PER_NODE)
    return dgx_cluster(gpu_named(gpu), num_gpus, chosen)


def gpu_named(text: str) -> GpuSpec:
    """A known GPU in any case, or a TOML file of one's own."""
    if text.endswith(".toml"):
        return load_gpu(Path(text))
    name = text.lower()
    if name not in GPUS:
        own = "one's own: --gpu FILE.toml, with its datasheet's values"
        raise SpecError("--gpu", text, "is not known", f"{nearest(name, GPUS)} ({own})")
    return GPUS[name]


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

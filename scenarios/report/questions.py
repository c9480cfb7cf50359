"""What the explorer is asked: parameters of its URL, each with bounds, made into two scenarios."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from layerwise.scenarios.rank.layouts import Layout
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import PlacementError, SpecError, UnknownKeyError
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import MODELS, ModelSpec
from layerwise.sim.plan.overrides import nearest, with_values
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario, place
from layerwise.sim.plan.units import parse_real, parse_whole
from layerwise.sim.plan.workload import Workload
from layerwise.sim.profile import Profile

GPU_COUNTS = (1, 2, 4, 8, 16, 32)
SIZES = (1, 2, 4, 8, 16)
# What the URL says: the GPUs of a tensor-parallel group; the rest are stages, or replicas.
STAGED = {f"tp{size}": size for size in SIZES}
REPLICATED = {f"tp{size}-dp": size for size in SIZES}
PLACEMENTS = (
    {"layer-wise": "layer-wise"}
    | {name: f"TP={size} x PP=rest" for name, size in STAGED.items()}
    | {name: f"TP={size} x DP=rest" for name, size in REPLICATED.items()}
)
REDUCES = {"nccl": "NCCL", "one_shot": "custom one-/two-shot"}
START = "paper-16"
# A request does at most this much: stages that each go through so many microbatches.
MAX_WORK, MAX_TEXT = 1_024, 64


@dataclass(frozen=True, kw_only=True)
class Control:
    """One parameter: its label, its default as text, what is beside its box.

    `choices` by what the URL says; `stops` are values of a slider; `low` to `high` bounds a number.
    """

    label: str
    default: str
    choices: Mapping[str, str] | None = None
    stops: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    hint: str = ""


def _same(names: Iterable[object]) -> dict[str, str]:
    return {str(name): str(name) for name in names}


CONTROLS: dict[str, Control] = {
    "model": Control(label="Model", default=START, choices=_same(MODELS)),
    "batch": Control(
        label="Batch, sequences",
        default="128",
        low=1,
        high=4096,
        stops=tuple(str(2**n) for n in range(13)),
    ),
    "context": Control(
        label="Context, tokens",
        default="10000",
        low=1,
        high=1_000_000,
        stops=(
            "128",
            "256",
            "512",
            "1000",
            "2000",
            "4000",
            "6000",
            "8000",
            "10000",
            "16000",
            "32000",
            "64000",
            "128000",
        ),
    ),
    "gpus": Control(label="GPUs", default="16", choices=_same(GPU_COUNTS)),
    "gpu": Control(label="GPU type", default="h100-sxm", choices=_same(GPUS)),
    "l2_bytes": Control(
        label="L2 size",
        default="",
        low=1e6,
        high=64e9,
        hint="empty: as built",
        stops=(
            "",
            "50MB",
            "100MB",
            "200MB",
            "400MB",
            "600MB",
            "1GB",
            "2GB",
            "4GB",
            "8GB",
            "16GB",
            "32GB",
        ),
    ),
    "nvlink_bytes_per_s": Control(
        label="NVLink, each way",
        default="",
        low=1e9,
        high=1e13,
        hint="empty: as built",
        stops=("", "50GB/s", "100GB/s", "200GB/s", "300GB/s", "450GB/s", "900GB/s", "1.8TB/s"),
    ),
    "nic_bytes_per_s": Control(
        label="Network per GPU",
        default="",
        low=1e8,
        high=1e13,
        hint="empty: as built",
        stops=("", "100Gb/s", "200Gb/s", "400Gb/s", "800Gb/s", "1.6Tb/s", "450GB/s"),
    ),
    "placement": Control(label="Placement", default="layer-wise", choices=PLACEMENTS),
    "beside": Control(label="Compared with", default="tp8", choices=PLACEMENTS),
    "microbatches": Control(
        label="Microbatches",
        default="",
        choices={"": "one a stage"} | _same((1, 2, 4, 8, 16, 32, 64)),
    ),
    "all_reduce": Control(label="All-reduce", default="nccl", choices=REDUCES),
}


def defaults_of(start: str) -> dict[str, str]:
    """Every control's text before anything was asked, on the model called `start`."""
    return {name: control.default for name, control in CONTROLS.items()} | {"model": start}


def settings_of(
    given: Mapping[str, str], models: Mapping[str, ModelSpec], start: str = START
) -> dict[str, str]:
    """Every control's text, the given ones checked. `start`: the model where none is given.

    Raises UnknownKeyError for what is no control, SpecError for a value out of its bounds.
    """
    for name in given:
        if name not in CONTROLS:
            raise UnknownKeyError(name, given[name], "is no control", nearest(name, CONTROLS))
    found = {name: given.get(name, text).strip() for name, text in defaults_of(start).items()}
    for name, text in found.items():
        if len(text) > MAX_TEXT:
            raise SpecError(
                name, f"{text[:20]}...", "is too long", f"use {MAX_TEXT} signs or fewer"
            )
        _check(name, text, models)
    return found


def _check(name: str, text: str, models: Mapping[str, ModelSpec]) -> None:
    control = CONTROLS[name]
    known = models if name == "model" else control.choices
    if known is not None:
        if text not in known:
            raise SpecError(name, text, "is no choice", nearest(text, known))
        return
    if not text and not control.default:
        return
    value = parse_real(name, text)
    if not control.low <= value <= control.high:
        raise SpecError(
            name, text, "is out of bounds", f"use {control.low:,.0f} to {control.high:,.0f}"
        )


def scenarios_of(
    settings: Mapping[str, str], models: Mapping[str, ModelSpec], profile: Profile | None
) -> dict[str, Scenario]:
    """The placement asked for and the one beside it, by name.

    Raises SpecError (or a kind of it) where they do not go together, or are too much work.
    """
    made = [_scenario(settings, models, settings[key], profile) for key in ("placement", "beside")]
    return {_name(scenario): scenario for scenario in made}


def _name(scenario: Scenario) -> str:
    """As `rank` calls it; a pipeline of single GPUs by its strategy, as there are two here."""
    spec = scenario.placement
    if spec.tensor_parallel == spec.data_parallel == 1:
        return place(scenario).name
    return Layout(
        tensor_parallel=spec.tensor_parallel,
        pipeline_parallel=spec.pipeline_parallel,
        data_parallel=spec.data_parallel,
        all_reduce=scenario.kernels.all_reduce
        if scenario.kernels and spec.tensor_parallel > 1
        else "nccl",
    ).name


def _scenario(
    settings: Mapping[str, str],
    models: Mapping[str, ModelSpec],
    named: str,
    profile: Profile | None,
) -> Scenario:
    num_gpus, kernels = int(settings["gpus"]), profile.kernels if profile else KernelChoice()
    reduce = "one_shot" if settings["all_reduce"] == "one_shot" else "nccl"
    scenario = Scenario(
        name=named,
        model=models[settings["model"]],
        cluster=dgx_cluster(GPUS[settings["gpu"]], num_gpus),
        placement=_spec(named, num_gpus),
        workload=Workload(
            batch_size=parse_whole("batch", settings["batch"]),
            context_tokens=parse_whole("context", settings["context"]),
        ),
        run=RunSpec(),
        kernels=replace(kernels, all_reduce=reduce),
    )
    scenario = with_values(scenario, _hardware(settings))
    return _bounded(scenario, settings["microbatches"])


def _spec(named: str, num_gpus: int) -> PlacementSpec:
    if named == "layer-wise":
        return PlacementSpec(strategy="layer-wise")
    size = (STAGED | REPLICATED)[named]
    if num_gpus % size:
        raise PlacementError(
            "gpus",
            num_gpus,
            f"is no multiple of the {size} of {named}",
            "use more GPUs or a smaller tensor-parallel group",
        )
    rest = num_gpus // size
    num_stages, num_replicas = (rest, 1) if named in STAGED else (1, rest)
    return PlacementSpec(
        strategy="tensor-pipeline",
        tensor_parallel=size,
        pipeline_parallel=num_stages,
        data_parallel=num_replicas,
    )


def _hardware(settings: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {
        key: settings[name]
        for key, name in (
            ("cluster.nvlink.bytes_per_s", "nvlink_bytes_per_s"),
            ("cluster.nic.bytes_per_s", "nic_bytes_per_s"),
        )
        if settings[name]
    }
    if settings["l2_bytes"]:
        size = parse_whole("l2_bytes", settings["l2_bytes"])
        values["cluster.gpu.l2_bytes"] = size
        most = GPUS[settings["gpu"]].persisting_l2_bytes
        values["cluster.gpu.persisting_l2_bytes"] = min(most, size)
    return values


def _bounded(scenario: Scenario, microbatches: str) -> Scenario:
    num_stages = place(scenario).num_stages
    number = int(microbatches) if microbatches else min(num_stages, scenario.workload.batch_size)
    if number * num_stages > MAX_WORK:
        raise SpecError(
            "microbatches",
            number,
            f"on {num_stages} stages is more than this page does",
            f"use {MAX_WORK // num_stages} or fewer",
        )
    return scenario.with_microbatches(number)

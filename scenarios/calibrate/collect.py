"""Collect what a fit, or its validation, needs from one GPU: points, curves, layers and stages.

`layerwise calibrate --collect OUT [--what TASK,...] [--budget-s N]`. Interrupted, or out of budget,
it goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from layerwise.calibration.build import FITTED
from layerwise.calibration.data import profile_path
from layerwise.calibration.design import FIT_POINTS, designed, every_point, to_repeat
from layerwise.calibration.edges import edges
from layerwise.calibration.power_points import power_points, unseen_sustained
from layerwise.calibration.selection import (
    FIT_SIZES_BYTES,
    SCORED_SIZES_BYTES,
    engine_layers,
    fit_layers,
    seasoning_layers,
    two_gpu_runs,
    validation_layers,
)
from layerwise.calibration.unfitted import unfitted
from layerwise.calibration.unseen import unseen
from layerwise.calibration.whole_models import fit_models, validation_models
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import LayerwiseError, SpecError
from layerwise.sim.plan.files import load_scenario
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.trace import Trace, write_atomically, write_trace

if TYPE_CHECKING:
    from layerwise.calibration.points import SweepPoint
    from layerwise.sim.plan.program import Program

# Fastest of the candidates timed on H100 and H200: cuDNN for whole prompts and decode; its causal
# mask is top-left aligned, so later chunks of a prompt need the flash kernel. Skinny matmuls took a
# hidden-1024 layer from 35.98 to 34.65 us, the paper's stage of 8 from 93.5 to 94.3 % of its floor.
GPU_KERNELS = KernelChoice(
    decode_attention="cudnn",
    prefill_attention="cudnn",
    chunked_prefill_attention="flash",
    small_matmul="skinny",
)
FIT_SCENARIOS = Path(__file__).parents[1] / "fit"
Task = str
TASKS: tuple[Task, ...] = (
    "read-curve",
    "stages",
    *FIT_POINTS,
    "fit-layers",
    "unseen",
    "validation-layers",
    "engine-layers",
    "two-gpus",
    "read-curve-scored",
    "designed",
    "repeats",
    "unfitted",
    "power",
    "sustained",
    "fit-models",
    "validation-models",
)
DEFAULT_TASKS: tuple[Task, ...] = ("read-curve", "stages", "sweep", "split-kv", "skinny")
# Of edges also those that only score are measured.
POINTS = FIT_POINTS | {"edges": edges, "unseen": unseen, "unfitted": unfitted}
LAYERS: dict[str, tuple[Literal["fit", "validation"], Callable[[], list[Scenario]]]] = {
    "fit-layers": ("fit", fit_layers),
    "validation-layers": ("validation", validation_layers),
    "engine-layers": ("validation", engine_layers),
}
MODELS: dict[str, tuple[Literal["fit", "validation"], Callable[[str], list[Scenario]]]] = {
    "fit-models": ("fit", fit_models),
    "validation-models": ("validation", validation_models),
}
# Points in both regimes of the clock: rested, then for seconds.
IN_BOTH_REGIMES: dict[str, Callable[[KernelChoice], Sequence[SweepPoint]]] = {
    "power": power_points,
    "sustained": unseen_sustained,
}
ENVIRONMENT = "environment.json"
CURVES = {"read-curve": "read_curve.json", "read-curve-scored": "read_curve_scored.json"}


@dataclass(frozen=True)
class Instruments:
    """What measures, as functions, so that a test can stand in for a GPU.

    `curve` is asked for one of CURVES. `programs` takes points, a file and a budget in seconds, and
    returns how many points are left. `layers` is `layerwise.hw.series.measure_scenarios` but for its
    `measure`, which is `layer`; `pairs` starts two ranks and gives their `measure`. `in_both` is
    `programs` for points in both regimes of the clock.
    """

    environment: Callable[[], dict[str, str]]
    curve: Callable[[str], list[tuple[int, float]]]
    stage: Callable[[Scenario], Trace]
    layer: Callable[[Scenario], Trace]
    programs: Callable[[Iterable[tuple[str, Program]], Path, float], int]
    pairs: Callable[[], AbstractContextManager[Callable[[Scenario], Trace]]]
    in_both: Callable[[Iterable[tuple[str, Program]], Path, float], int]


@dataclass(frozen=True)
class Collected:
    """Measurements still missing, and how many of them were tried and failed."""

    num_missing: int = 0
    num_failed: int = 0


def tasks_of(asked: Sequence[str]) -> tuple[Task, ...]:
    """The tasks named, one by one or with commas between; DEFAULT_TASKS when none is.

    Raises SpecError for a name that is no task.
    """
    names = [name.strip() for part in asked for name in part.split(",")]
    by_name: dict[str, Task] = {task: task for task in TASKS}
    found: list[Task] = []
    for name in names:
        if name not in by_name:
            raise SpecError("--what", name, "is no task", f"use one or more of {', '.join(TASKS)}")
        found.append(by_name[name])
    return tuple(dict.fromkeys(found)) or DEFAULT_TASKS


def collect(
    out: Path,
    budget_s: float,
    tasks: Sequence[Task] = DEFAULT_TASKS,
    progress: Callable[[str], None] = print,
    instruments: Instruments | None = None,
    gpu: str = "h100-sxm",
) -> Collected:
    """Measure into the folder `out`, task by task, until the budget is used up.

    `gpu` names what is measured: stages and layers are put on it. What is refused before anything
    was measured leaves no folder behind.
    """
    with _nothing_if_refused(out):
        return _collect(out, budget_s, tasks, progress, instruments, gpu)


@contextmanager
def _nothing_if_refused(out: Path) -> Generator[None]:
    folders = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        yield
    except LayerwiseError:
        measured = [path for path in out.rglob("*") if path.is_file() and path.name != ENVIRONMENT]
        if out in folders and not measured:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
        raise


def _collect(
    out: Path,
    budget_s: float,
    tasks: Sequence[Task],
    progress: Callable[[str], None],
    instruments: Instruments | None,
    gpu: str,
) -> Collected:
    chosen = instruments or gpu_instruments(progress)
    deadline_s = time.monotonic() + budget_s
    _write_json(out / ENVIRONMENT, chosen.environment())
    missing = failed = 0
    for task in tasks:
        left_s = deadline_s - time.monotonic()
        progress(f"{task}: {max(left_s, 0):.0f} s left")
        done = _collect_one(task, out, left_s, progress, chosen, gpu)
        missing, failed = missing + done.num_missing, failed + done.num_failed
    return Collected(missing, failed)


def on_gpu(scenario: Scenario, gpu: str) -> Scenario:
    """The scenario on as many GPUs of this name. Raises SpecError for one that is not known."""
    if gpu not in GPUS:
        raise SpecError("--gpu", gpu, "is not known", f"use one of {', '.join(GPUS)}")
    return replace(scenario, cluster=dgx_cluster(GPUS[gpu], scenario.cluster.num_gpus))


def _collect_one(
    task: Task,
    out: Path,
    left_s: float,
    progress: Callable[[str], None],
    chosen: Instruments,
    gpu: str,
) -> Collected:
    match task:
        case "read-curve" | "read-curve-scored":
            target = out / CURVES[task]
            if not target.exists():
                if left_s <= 0:
                    return Collected(num_missing=1)
                _write_json(target, chosen.curve(task))
            return Collected()
        case "stages":
            return _collect_stages(out, left_s, progress, lambda s: chosen.stage(on_gpu(s, gpu)))
        case "designed":
            done = _measured_in(out) - set(_names_in(out / "designed.jsonl"))
            points = [(p.name, p.program) for p in designed_points(gpu) if p.name not in done]
            return Collected(chosen.programs(points, out / "designed.jsonl", left_s))
        case "repeats":
            return Collected(chosen.programs(_points_again(out), out / "repeats.jsonl", left_s))
        case "two-gpus":
            return _collect_pairs(out, left_s, progress, chosen, gpu)
        case "fit-layers" | "validation-layers" | "engine-layers":
            purpose, layers = LAYERS[task]
            measure, asked = _seasoned(chosen.layer, gpu), [on_gpu(one, gpu) for one in layers()]
            return _collect_traces(asked, measure, out, "layers", purpose, left_s, progress)
        case "fit-models" | "validation-models":
            purpose, models = MODELS[task]
            asked = models(gpu)
            return _collect_traces(asked, chosen.layer, out, "models", purpose, left_s, progress)
        case "power" | "sustained":
            points = [(point.name, point.program) for point in IN_BOTH_REGIMES[task](GPU_KERNELS)]
            return Collected(chosen.in_both(points, out / f"{task}.jsonl", left_s))
        case _:
            points = [(point.name, point.program) for point in POINTS[task](GPU_KERNELS)]
            return Collected(chosen.programs(points, out / f"{task}.jsonl", left_s))


def _seasoned(measure: Callable[[Scenario], Trace], gpu: str) -> Callable[[Scenario], Trace]:
    """The same, after a few layers that are thrown away before the first one that is kept.

    A young process is not what anybody serves with: small layers take up to 9 % longer once others
    ran before them, and then stay so (`traces/placement`).
    """

    @cache
    def season() -> None:
        for layer in seasoning_layers():
            measure(on_gpu(layer, gpu).with_kernels(GPU_KERNELS))

    def measured(scenario: Scenario) -> Trace:
        season()
        return measure(scenario)

    return measured


def designed_points(gpu: str) -> list[SweepPoint]:
    """Every point that a fit may see, in the order in which a budget buys most.

    Where the shipped profile is least certain comes early.
    """
    from layerwise.sim.profile import load_profile

    path = profile_path(gpu)
    reference = load_profile(path) if path.exists() else None
    return designed(every_point(GPU_KERNELS), GPUS[gpu], reference=reference)


def _points_again(out: Path) -> list[tuple[str, Program]]:
    """A small share of the points that were measured first, to be measured once more."""
    names = next((found for file in FITTED if (found := _names_in(out / file))), [])
    chosen = set(to_repeat(names))
    return [(p.name, p.program) for p in every_point(GPU_KERNELS) if p.name in chosen]


def _measured_in(out: Path) -> set[str]:
    return {name for file in FITTED for name in _names_in(out / file)}


def _names_in(path: Path) -> list[str]:
    """The points of a file in the order in which they were measured; a line cut short is none."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    rows = [json.loads(line) for line in whole.splitlines()]
    return [row["name"] for row in rows if "step_s" in row]


def _collect_pairs(
    out: Path, left_s: float, progress: Callable[[str], None], chosen: Instruments, gpu: str
) -> Collected:
    with chosen.pairs() as pair:
        asked = two_gpu_runs(gpu)
        return _collect_traces(asked, pair, out, "pairs", "validation", left_s, progress)


def _collect_traces(
    asked: Iterable[Scenario],
    measure: Callable[[Scenario], Trace],
    out: Path,
    folder: str,
    purpose: Literal["fit", "validation"],
    left_s: float,
    progress: Callable[[str], None],
) -> Collected:
    """Measure scenarios, a trace each, in the kernels that are calibrated."""
    from layerwise.hw.series import measure_scenarios

    outcome = measure_scenarios(
        [one.with_kernels(GPU_KERNELS) for one in asked],
        measure=measure,
        folder=out / folder,
        purpose=purpose,
        budget_s=left_s,
        failed=out / "failed.jsonl",
        progress=progress,
    )
    return Collected(outcome.num_missing, outcome.num_failed)


def _collect_stages(
    out: Path, left_s: float, progress: Callable[[str], None], stage: Callable[[Scenario], Trace]
) -> Collected:
    """The whole stages of scenarios/fit. The budget is asked before each; an error ends it all."""
    deadline_s = time.monotonic() + left_s
    todo = [
        path
        for path in sorted(FIT_SCENARIOS.glob("*.toml"))
        if not (out / f"{path.stem}.jsonl").exists()
    ]
    for done, path in enumerate(todo):
        if time.monotonic() > deadline_s:
            return Collected(len(todo) - done)
        target = out / f"{path.stem}.jsonl"
        trace = stage(load_scenario(path).with_kernels(GPU_KERNELS))
        write_trace(replace(trace, purpose="fit"), target)
        progress(f"{target.name}: median step {median(trace.untraced_step_s):.6f} s")
    return Collected()


def gpu_instruments(progress: Callable[[str], None] = print) -> Instruments:
    """The engine on this machine's GPU. HBM's read rate is measured once, for all layers."""
    import torch

    from layerwise.hw.host.bandwidth import read_bandwidth, read_curve
    from layerwise.hw.host.environment import environment_of
    from layerwise.hw.measure import measure
    from layerwise.hw.ranks.launch import ready_ranks
    from layerwise.hw.sweep import measure_programs

    device = torch.device("cuda")
    sizes = {"read-curve": FIT_SIZES_BYTES, "read-curve-scored": SCORED_SIZES_BYTES}
    read_rate = cache(partial(read_bandwidth, device))

    def stage(scenario: Scenario) -> Trace:
        return _own(measure(scenario, timing="cupti", with_bandwidth=True))

    def layer(scenario: Scenario) -> Trace:
        return _own(measure(scenario, timing="cupti", read_bytes_per_s=read_rate()))

    def programs(
        points: Iterable[tuple[str, Program]],
        out: Path,
        budget_s: float,
        both_regimes: bool = False,
    ) -> int:
        left = measure_programs(
            points,
            device="cuda",
            out=out,
            budget_s=budget_s,
            both_regimes=both_regimes,
            progress=progress,
        )
        torch.cuda.empty_cache()  # the pool of random data
        return left

    return Instruments(
        environment=lambda: environment_of(device),
        curve=lambda task: read_curve(device, sizes[task]),
        stage=stage,
        layer=layer,
        programs=programs,
        pairs=lambda: ready_ranks(2, "cuda"),
        in_both=partial(programs, both_regimes=True),
    )


def _own(trace: Trace | None) -> Trace:
    assert trace is not None, "a rank alone returns its own trace"
    return trace


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, json.dumps(value, indent=1) + "\n")

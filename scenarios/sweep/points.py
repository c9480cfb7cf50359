"""What a worker of a sweep does: points in, rows out. Imports the simulator and nothing else."""

from __future__ import annotations

import gc
import hashlib
import json
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from layerwise import sim
from layerwise.sim.cost.model import Belief
from layerwise.sim.cost.unfitted import sentences
from layerwise.sim.plan.errors import LayerwiseError, SpecError
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.predict import BOUNDS, Prediction, predict_plan
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import resolve
from layerwise.sim.shared import Shared

# Rows of another layout are not taken over.
ROWS_VERSION = 2
# One less a sum of shares: less than this is the rounding of the sum.
ROUNDING = 1e-9
OK, DOES_NOT_FIT, REFUSED, FAILED = "ok", "does not fit", "refused", "failed"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One scenario under one belief; `key` is the hash of all that its answer depends on."""

    key: str
    scenario: Scenario
    belief: Belief


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is sent to a worker: points, profiles by GPU, the results to report, the code meant.

    Profiles are pickled once for all tasks, and read once by a worker for tasks of a `generation`:
    they remember what was looked up in them. `num_deaths`: workers that died over it.
    """

    points: tuple[Point, ...]
    profiles: Mapping[str, bytes]
    columns: tuple[str, ...]
    code: str
    generation: int = 0
    num_deaths: int = 0


@dataclass(frozen=True)
class Result:
    """The answer at one point: `values` in the order of the columns asked for; none if refused."""

    key: str
    status: str
    reason: str
    values: tuple[object, ...] = ()


def _decode_only(value_s: float, prediction: Prediction) -> float | None:
    return value_s if prediction.phase == "decode" else None


COLUMNS: dict[str, Callable[[Prediction], object]] = {
    "placement": lambda p: p.placement,
    "num_gpus": lambda p: len(p.memory),
    "num_microbatches": lambda p: p.num_microbatches,
    "tokens_per_s": lambda p: p.tokens_per_s,
    "tokens_per_s_low": lambda p: p.tokens_per_s_interval and p.tokens_per_s_interval.low,
    "tokens_per_s_high": lambda p: p.tokens_per_s_interval and p.tokens_per_s_interval.high,
    "tokens_per_s_per_gpu": lambda p: p.tokens_per_s / len(p.memory),
    "inverse_throughput_s": lambda p: p.inverse_throughput_s,
    "tpot_s": lambda p: _decode_only(p.tpot_s, p),
    "step_s": lambda p: p.step_s,
    "step_s_low": lambda p: p.interval and p.interval.low,
    "step_s_high": lambda p: p.interval and p.interval.high,
    "from_idle_s": lambda p: p.from_idle_s,
    "bottleneck": lambda p: max(p.share, key=lambda bound: p.share[bound]),
    "bubble_share": lambda p: p.bubble if p.bubble > ROUNDING else 0.0,
    **{f"{bound}_share": lambda p, bound=bound: p.share[bound] for bound in BOUNDS},
    "wire_bytes": lambda p: sum(p.wire_bytes.values()),
    "peak_memory_bytes": lambda p: p.peak_memory_bytes,
    "is_steady": lambda p: p.is_steady,
    "num_extrapolated_ops": lambda p: p.num_extrapolated_ops,
    "unfitted": lambda p: "; ".join(sentences(p.unfitted)),
}
"""What can be written of each point. `_low` and `_high` are the ends of its 90 % interval, empty
where the belief has none; intervals cost a tenth to a quarter more time. `unfitted`: what no fit
has seen of its kernels, head sizes and dtypes, in sentences."""

DEFAULT_COLUMNS = (
    "placement",
    "num_gpus",
    "num_microbatches",
    "tokens_per_s",
    "tokens_per_s_low",
    "tokens_per_s_high",
    "tokens_per_s_per_gpu",
    "tpot_s",
    "from_idle_s",
    "bottleneck",
    "bubble_share",
    "peak_memory_bytes",
    "num_extrapolated_ops",
)


def placement_label(name: str, scenario: Scenario) -> str:
    """A placement's name with who reduces inside its tensor-parallel groups, as `rank` has it."""
    is_one_shot = scenario.given_all_reduce == "one_shot"
    return f"{name}, 1-shot" if is_one_shot and scenario.placement.tensor_parallel > 1 else name


@cache
def code_digest() -> str:
    """Hash of the simulator's source: a row is reused only by the code that made it."""
    folder = Path(sim.__file__).parent
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]


def content_key(belief: Belief, profile_digest: str, scenario: Scenario | dict[str, Any]) -> str:
    """Hash of what an answer depends on: the resolved scenario, belief, profile and code.

    Names and sources of values change no answer. A point that is no scenario gives its settings.
    """
    data = scenario if isinstance(scenario, dict) else _data_of(scenario)
    text = json.dumps([ROWS_VERSION, code_digest(), profile_digest, belief, data], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _data_of(scenario: Scenario) -> dict[str, Any]:
    """As `asdict`, each table worked out once for all points that have it."""
    values = {field.name: getattr(scenario, field.name) for field in fields(scenario)}
    return {
        name: _table(value) if is_dataclass(value) else value
        for name, value in values.items()
        if name != "name"
    }


@lru_cache(maxsize=1024)
def _table(spec: Any) -> dict[str, Any]:
    return asdict(spec, dict_factory=_unsourced)


def _unsourced(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in items if key != "source"}


def predict_points(task: Task, budget_s: float) -> list[Result]:
    """Results of the task's first points: one or more, until `budget_s` have passed.

    Points of one task share what they have in common. Raises SpecError where this process runs another
    version of the simulator than the one that sent the task.
    """
    if code_digest() != task.code:
        raise SpecError(
            "code",
            code_digest(),
            f"runs on a worker, and the sweep is of {task.code}",
            "install the same layerwise on the workers, or run it again where it changed",
        )
    was_enabled = gc.isenabled()
    gc.disable()  # a tenth of the time, for objects that end with the task
    try:
        return _predict_points(task, time.monotonic() + budget_s)
    finally:
        if was_enabled:
            gc.enable()


@lru_cache(maxsize=4)
def _profile(pickled: bytes, generation: int) -> Profile:
    del generation
    return pickle.loads(pickled)  # noqa: S301 - as every task comes, from the sweep's own process


def _predict_points(task: Task, until_s: float) -> list[Result]:
    known: dict[tuple[ClusterSpec, Belief], Shared] = {}
    found: list[Result] = []
    for point in task.points:
        found.append(_result(point, task, known))
        if time.monotonic() > until_s:
            break
    return found


def _result(point: Point, task: Task, known: dict[tuple[ClusterSpec, Belief], Shared]) -> Result:
    try:
        predicted = _predict(point, task, known)
        values = tuple(COLUMNS[name](predicted) for name in task.columns)
    except LayerwiseError as error:
        return Result(point.key, REFUSED, str(error))
    except Exception as error:  # noqa: BLE001 - one point's fault is its row, not the sweep's end
        return Result(point.key, FAILED, f"{type(error).__name__}: {error}")
    if predicted.fits:
        return Result(point.key, OK, "", values)
    return Result(point.key, DOES_NOT_FIT, _shortage(predicted), values)


def _predict(
    point: Point,
    task: Task,
    known: dict[tuple[ClusterSpec, Belief], Shared],
) -> Prediction:
    """As `layerwise.sim.predict.predict`, its placement labelled, with what other points have worked out."""
    scenario = point.scenario
    pickled = task.profiles.get(scenario.cluster.gpu.name)
    profile = _profile(pickled, task.generation) if pickled else None
    key = (scenario.cluster, point.belief)
    shared = known.get(key)
    plan = resolve(scenario, profile, point.belief, cost=shared.cost if shared else None)
    if shared is None:
        shared = known[key] = Shared(plan.cost)
    found = predict_plan(plan, shared)
    return replace(found, placement=placement_label(found.placement, plan.scenario))


def _shortage(prediction: Prediction) -> str:
    fullest = max(prediction.memory, key=lambda budget: budget.total_bytes)
    return (
        f"rank {fullest.rank} needs {fullest.total_bytes / 1e9:.1f} GB of "
        f"{fullest.capacity_bytes / 1e9:.1f} GB: weights {fullest.weight_bytes / 1e9:.1f}, "
        f"KV {fullest.kv_bytes / 1e9:.1f}, activations {fullest.activation_bytes / 1e9:.1f}"
    )

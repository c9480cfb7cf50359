"""The questions of `import layerwise`: predict, rank, sweep, simulate, compare.

Each returns an answer with fields in SI units, `to_dict()`, and a table as its repr. A scenario, a
model, a profile or a trace is given as an object, as the path of a file, or by its shipped name.
Every question raises a kind of `LayerwiseError` for input that cannot be meant.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from layerwise.answers import (
    CompareAnswer,
    PredictAnswer,
    RankAnswer,
    SimulateAnswer,
    SweepAnswer,
)
from layerwise.calibration.data import profile_path
from layerwise.scenarios.shipped import find
from layerwise.sim.cost.model import Belief
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.scenario import Launch, Scenario
from layerwise.sim.predict import predict_plan
from layerwise.sim.profile import Profile, load_profile
from layerwise.sim.resolve import best_belief
from layerwise.sim.resolve import resolve as resolve_scenario

Changes = Mapping[str, object]
"""Keys of a scenario file and what they are set to: `{"workload.batch_size": 64}`."""


def load_scenario(scenario: str | Path, changes: Changes | None = None) -> Scenario:
    """Read a scenario file, or one that is shipped (`"validation/stage-8"`).

    `changes` are set in it before it is checked, by key. Raises FileFormatError or SpecError.
    """
    from layerwise.sim.plan import files

    return files.load_scenario(find(scenario, "scenario", "scenario"), changes)


def shipped_profile(gpu: str) -> Profile:
    """Return the calibration profile that the package ships for a GPU.

    Raises FileFormatError for a GPU without one.
    """
    found = _shipped(gpu)
    if found is None:
        raise FileFormatError(
            f"there is no shipped profile of {gpu!r}; use 'h100-sxm' or 'h200', or the path of one "
            "that `layerwise calibrate` wrote"
        )
    return found


def predict(
    scenario: Scenario | str | Path,
    *,
    profile: Profile | str | Path | None = None,
    belief: Belief | None = None,
    changes: Changes | None = None,
) -> PredictAnswer:
    """Predict what a scenario's placement does: rates, times, memory, bottlenecks.

    Without a `profile` the shipped one of the scenario's GPU is taken; a GPU that has none is
    predicted uncalibrated, without intervals. `belief` asks for another one than the best:
    "speed_of_light" or "uncalibrated".
    """
    asked = _scenario(scenario, changes)
    constants = _profile(profile, asked.cluster.gpu.name)
    plan = resolve_scenario(asked, constants, belief or best_belief(constants))
    return PredictAnswer(scenario=asked, profile=constants, prediction=predict_plan(plan))


def simulate(
    scenario: Scenario | str | Path,
    *,
    profile: Profile | str | Path | None = None,
    belief: Belief | None = None,
    changes: Changes | None = None,
) -> SimulateAnswer:
    """Simulate a scenario as a measured run executes it, op by op.

    `run.only_rank` runs one rank with its peers replaced. The number of microbatches is the best
    one where the scenario leaves it open. Profile and belief are as in `predict`.
    """
    from layerwise.scenarios.predict.alone import run_plan

    asked = _scenario(scenario, changes)
    constants = _profile(profile, asked.cluster.gpu.name)
    plan = resolve_scenario(asked, constants, belief or best_belief(constants))
    if not asked.workload.num_microbatches:
        best = predict_plan(plan).num_microbatches
        asked, plan = asked.with_microbatches(best), plan.with_microbatches(best)
    return SimulateAnswer(scenario=asked, belief=plan.belief, run=run_plan(plan))


def rank(
    scenario: Scenario | str | Path | None = None,
    *,
    model: str | Path = "",
    gpus: int | None = None,
    gpu: str | None = None,
    gpus_per_node: int = 0,
    batch: int | None = None,
    context: int | None = None,
    tpot_below_s: float | None = None,
    fits_only: bool = False,
    launch: Launch | None = None,
    profile: Profile | str | Path | None = None,
    changes: Changes | None = None,
    workers: int = 1,
) -> RankAnswer:
    """Predict every placement of a model on a cluster, and put them in order.

    `model` is a preset ("paper-16"), a shipped name ("llama-3-8b") or a Hugging Face config.json;
    in its stead a `scenario` gives model, cluster, workload and run, and its placement is left
    aside. `batch` sequences decode at `context` tokens (128 and 10,000 on 16 H100s where nothing
    says otherwise); `tpot_below_s` is the longest time between two tokens of one sequence. `workers` above 1 are processes: a script that asks for them must be
    importable.
    """
    from layerwise.scenarios.rank.inputs import RankInputs, resolve
    from layerwise.scenarios.rank.ranking import rank as rank_placements

    if isinstance(scenario, Scenario):
        asked = _scenario(scenario, changes)
    else:
        asked = resolve(
            RankInputs(
                scenario=find(scenario, "scenario", "scenario") if scenario else None,
                model=str(model) or None,
                num_gpus=gpus,
                gpu=gpu,
                gpus_per_node=gpus_per_node,
                batch_size=batch,
                context_tokens=context,
                launch=launch,
                changes=tuple(f"{key}={value}" for key, value in (changes or {}).items()),
            )
        )
    ranking = rank_placements(
        asked.model,
        asked.cluster,
        asked.workload,
        _profile(profile, asked.cluster.gpu.name),
        run=asked.run,
        tpot_below_s=tpot_below_s,
        fits_only=fits_only,
        workers=workers,
    )
    return RankAnswer(ranking=ranking)


def sweep(
    file: str | Path,
    *,
    out: str | Path | None = None,
    profile: Profile | str | Path | None = None,
    workers: int = 0,
    changes: Changes | None = None,
) -> SweepAnswer:
    """Predict every combination of a sweep file's axes.

    `out` keeps the rows (.csv or .parquet), so that an interrupted sweep goes on; without it they
    are in the answer alone. `workers`: processes, as many as cores by default.
    """
    from layerwise.scenarios.sweep.command import profiles_for
    from layerwise.scenarios.sweep.journal import read_typed
    from layerwise.scenarios.sweep.run import run_sweep
    from layerwise.scenarios.sweep.spec import load_sweep
    from layerwise.scenarios.sweep.workers import local_workers

    asked = load_sweep(find(file, "file", "sweep"), changes)
    given = _profile(profile, "") if profile is not None else None
    with tempfile.TemporaryDirectory() as folder, local_workers(workers) as pool:
        path = Path(out) if out else Path(folder) / "rows.csv"
        outcome = run_sweep(asked, path, profiles_for(asked, given), pool)
        return SweepAnswer(sweep=asked, outcome=outcome, rows=tuple(read_typed(path)))


def compare(measured: str | Path, *, profile: Profile | str | Path | None = None) -> CompareAnswer:
    """Compare a measured trace with its prediction, op by op.

    Raises TraceMismatchError for a trace that cannot be compared.
    """
    from layerwise.scenarios.compare.choosing import choose_traces, compare_all

    def profiles(gpu: str) -> Profile:
        return _profile(profile, gpu) or shipped_profile(gpu)

    trace = find(measured, "measured", "trace")
    (compared,) = compare_all(choose_traces(None, trace, False, profiles), profiles)
    return CompareAnswer(compared=compared)


def _scenario(scenario: Scenario | str | Path, changes: Changes | None) -> Scenario:
    if not isinstance(scenario, Scenario):
        return load_scenario(scenario, changes)
    from layerwise.sim.plan.overrides import with_values

    return with_values(scenario, changes) if changes else scenario


def _profile(profile: Profile | str | Path | None, gpu: str) -> Profile | None:
    if profile is None:
        return _shipped(gpu)
    return (
        profile
        if isinstance(profile, Profile)
        else load_profile(find(profile, "profile", "profile"))
    )


@cache
def _shipped(gpu: str) -> Profile | None:
    path = profile_path(gpu)
    return load_profile(path) if path.exists() else None

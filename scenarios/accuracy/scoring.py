"""How well the simulator predicts what no fit has seen: `layerwise accuracy`.

Reads, points (one op repeated), messages, whole layers, stages and runs of two GPUs, each predicted
now and, where that was committed before the run, then. Each is priced as it was measured: points in
a row of their own kind, traces by the scenario in their own header and the kernels that it names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from layerwise.calibration.data import (
    FOLDER,
    TRACE_SUFFIXES,
    file_hash,
    prediction_path,
    profile_path,
    unseen_folder,
    unseen_prediction_path,
)
from layerwise.calibration.points import SweepPoint
from layerwise.calibration.power_points import unseen_sustained
from layerwise.calibration.pricing import price_point, price_sustained
from layerwise.calibration.selection import engine_layers, validation_layers
from layerwise.calibration.unseen import unseen
from layerwise.scenarios.accuracy.bars import (
    ALL_GATHERS,
    ALL_REDUCES,
    DECODES,
    LARGE_MATMULS,
    LAYERS,
    MAX_SMALL_ROWS,
    MODEL_DECODES,
    MODEL_PREFILLS,
    PAIRS,
    PREFILLS,
    SENDS,
    SMALL_MATMULS,
    SUSTAINED,
)
from layerwise.scenarios.accuracy.measured import (
    measured_curve,
    measured_links,
    measured_points,
    measured_sustained,
)
from layerwise.scenarios.accuracy.predictions import (
    Committed,
    read_all_blind,
    read_seconds,
)
from layerwise.scenarios.accuracy.ranking import placement_of, work_of
from layerwise.scenarios.accuracy.scored import MOVED, READS, WINDOWS, Scored
from layerwise.scenarios.calibrate.collect import GPU_KERNELS
from layerwise.scenarios.compare.joined import require_unseen
from layerwise.scenarios.compare.scores import spread_of
from layerwise.scenarios.predict.alone import predict_run
from layerwise.scenarios.predict.beliefs import read_prediction
from layerwise.sim.cost.kinds import kind_of
from layerwise.sim.cost.transfer import profile_for
from layerwise.sim.plan.errors import FileFormatError, TraceMismatchError, UnknownKindError
from layerwise.sim.plan.files import scenario_from_data
from layerwise.sim.plan.program import kernel_set_hash
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.profile import Profile, load_profile
from layerwise.sim.trace import Trace, read_trace

TRACES = FOLDER / "traces"
MOVED_FROM = "h100-sxm"
LINKS = {"send": SENDS, "all_reduce": ALL_REDUCES, "all_gather": ALL_GATHERS}


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where a GPU's measurements lie that no fit has seen.

    Folders of traces that do not exist hold none. `models` and `sustained`: whole models and points
    in sustained work, `held` what was predicted of them before. `blind`: files of predictions made before.
    `moved_from`: the profile that another GPU's layers are predicted with too, or None.
    """

    reads: Path
    points: Path
    layers: tuple[Path, ...]
    stages: tuple[Path, ...] = ()
    pairs: tuple[Path, ...] = ()
    links: Path | None = None
    blind: tuple[Path, ...] = ()
    models: Path | None = None
    sustained: Path | None = None
    held: Path | None = None
    moved_from: Path | None = None


def sources_of(gpu: str, folder: Path | None = None) -> Sources:
    """The committed measurements of a GPU, or those that were collected into a folder."""
    place = folder or unseen_folder(gpu)
    sources = Sources(
        reads=place / "read_curve_scored.json",
        points=place / "unseen.jsonl",
        layers=(place / "layers",),
        pairs=(place / "pairs",),
        links=place / "links.json",
        blind=(unseen_prediction_path(gpu),),
        models=place / "models",
        sustained=place / "sustained.jsonl",
    )
    if folder:
        return sources
    whole = TRACES / f"whole-{gpu}"
    two, predictions = TRACES / f"two-{gpu}", FOLDER / "predictions"
    moved_from = profile_path(MOVED_FROM)
    return replace(
        sources,
        layers=(place / "layers", TRACES / f"engine-{gpu}" / "layers"),
        stages=(TRACES / "validation",),
        pairs=(two, two / "pairs"),
        links=two / "links.json",
        models=whole / "models",
        sustained=whole / "sustained.jsonl",
        held=predictions / f"sustained-{gpu}.json",
        blind=(*sources.blind, *(predictions / f"{s}-{gpu}.json" for s in ("engine", "two"))),
        moved_from=moved_from if gpu != MOVED_FROM and moved_from.exists() else None,
    )


def score_unseen(profile: Profile, folder: Path | None = None) -> list[Scored]:
    """Everything measured on a profile's GPU and never fitted, predicted again.

    Raises FileFormatError when a file is missing, or names something that is not unseen, or two
    measurements have one name; TraceMismatchError for a trace of other kernels than are predicted,
    or one that a fit has seen.
    """
    sources = sources_of(profile.gpu, folder)
    blind = read_all_blind(sources.blind)
    found = [
        *_score_curve(profile, sources.reads, blind),
        *_score_points(profile, sources.points, blind),
        *_score_links(profile, sources.links),
        *_score_layers(profile, sources, blind),
        *_score_pairs(profile, sources, blind),
        *_score_models(profile, sources),
        *_score_sustained(profile, sources),
        *_score_moved(sources),
    ]
    twice = [key for key, num in Counter((o.group, o.name) for o in found).items() if num > 1]
    if twice:
        raise FileFormatError(f"{twice[0][1]!r} of {twice[0][0]} was measured twice; keep one")
    return found


def _score_curve(profile: Profile, path: Path, blind: Committed) -> Iterator[Scored]:
    for size, seconds in measured_curve(path):
        yield Scored(
            group=READS,
            part="",
            name=f"{size / 2**20:g} MiB",
            measured_s=seconds,
            predicted_s=read_seconds(profile, size),
            blind_s=blind.read_curve.get(str(size), 0.0),
        )


def _score_points(profile: Profile, path: Path, blind: Committed) -> Iterator[Scored]:
    points = {point.name: point for point in unseen(GPU_KERNELS)}
    for one in measured_points(path):
        if one.name not in points:
            raise FileFormatError(f"{path}: {one.name!r} is no unseen point; measure again")
        point = points[one.name]
        seconds, half_width = price_point(profile, point)
        yield Scored(
            group=_group_of(point),
            part=f"{point.kind.replace('_', ' ')}, {one.name.rpartition('/')[2]}",
            name=one.name,
            measured_s=one.seconds,
            predicted_s=seconds,
            half_width=half_width,
            blind_s=blind.points.get(one.name, 0.0),
            spread=one.spread,
            kernel_set=kernel_set_hash(point.program),
        )


def _group_of(point: SweepPoint) -> str:
    kind = kind_of(point.op)
    match kind.family:
        case "matmul":
            rows, *_ = kind.features_of(point.op)
            return SMALL_MATMULS if rows <= MAX_SMALL_ROWS else LARGE_MATMULS
        case "decode attention":
            return DECODES
        case "prefill attention":
            return PREFILLS
        case "rotary write" | "pointwise ops":
            raise UnknownKindError(point.kind, "scoring._group_of", ("matmul", "attention"))


def _score_links(profile: Profile, path: Path | None) -> Iterator[Scored]:
    """Payloads that no regime was fitted to, of messages and collectives in graphs."""
    if path is None or not path.exists():
        return
    for name, size, one in measured_links(path):
        if fit := profile.transfers.get(name):
            yield Scored(
                group=next(group for start, group in LINKS.items() if name.startswith(start)),
                part=name,
                name=one.name,
                measured_s=one.seconds,
                predicted_s=fit.seconds(size),
                half_width=fit.half_width,
                spread=one.spread,
            )


def _score_layers(profile: Profile, sources: Sources, blind: Committed) -> Iterator[Scored]:
    known = {layer.name for layer in (*validation_layers(), *engine_layers())}
    for path, trace, scenario in _traces(sources.layers):
        if trace.name not in known:
            raise FileFormatError(f"{path}: {trace.name!r} is no validation layer; measure again")
        group = WINDOWS if scenario.run.persisting_weights else LAYERS
        warm = "warm" if scenario.model.num_layers == 1 else "cold"
        if scenario.run.context_growth_tokens:
            warm = "growing"
        yield _score_trace(
            profile,
            path,
            trace,
            scenario,
            group,
            f"{scenario.workload.phase}, {warm}",
            blind.layers.get(trace.name, 0.0),
        )
    for path, trace, scenario in _traces(sources.stages):
        if scenario.cluster.gpu.name == profile.gpu:
            made = read_prediction(prediction_path(trace.name))
            before_s = made.predicted_step_s if made else 0.0
            yield _score_trace(profile, path, trace, scenario, LAYERS, "stages", before_s)


def _score_pairs(profile: Profile, sources: Sources, blind: Committed) -> Iterator[Scored]:
    for path, trace, scenario in _traces(sources.pairs):
        placed = "TP=2" if scenario.placement.tensor_parallel > 1 else "layer-wise"
        part = f"{scenario.workload.phase}, {scenario.run.launch}, {placed}"
        before_s = blind.layers.get(trace.name, 0.0)
        one = _score_trace(profile, path, trace, scenario, PAIRS, part, before_s)
        yield replace(one, work=work_of(scenario), placement=placement_of(scenario))


def _score_models(profile: Profile, sources: Sources) -> Iterator[Scored]:
    """Whole models and ranks of models, in sustained work."""
    before = _held_before(sources)
    for path, trace, scenario in _traces((sources.models,) if sources.models else ()):
        group = MODEL_DECODES if scenario.workload.phase == "decode" else MODEL_PREFILLS
        part = scenario.workload.phase
        blind_s = before.models[trace.name].step_s if trace.name in before.models else 0.0
        yield _score_trace(profile, path, trace, scenario, group, part, blind_s)


def _score_sustained(profile: Profile, sources: Sources) -> Iterator[Scored]:
    """Matmuls that were drawn after the form of power was frozen, at the clock that the cap holds."""
    path, before = sources.sustained, _held_before(sources)
    if path is None or not path.exists() or profile.power is None:
        return
    points = {point.name: point for point in unseen_sustained(GPU_KERNELS)}
    for one in measured_sustained(path):
        if one.name not in points:
            raise FileFormatError(f"{path}: {one.name!r} is no unseen point; measure again")
        found = price_sustained(profile, points[one.name])
        yield Scored(
            group=SUSTAINED,
            part="",
            name=one.name,
            measured_s=one.seconds,
            predicted_s=found.seconds,
            half_width=found.half_width,
            blind_s=before.sustained[one.name].step_s if one.name in before.sustained else 0.0,
            kernel_set=kernel_set_hash(points[one.name].program),
        )


def _held_before(sources: Sources) -> Committed:
    return read_all_blind((sources.held,) if sources.held else ())


def _score_moved(sources: Sources) -> Iterator[Scored]:
    """Whole layers again, by another GPU's profile moved by datasheet ratios alone."""
    if sources.moved_from is None:
        return
    base = load_profile(sources.moved_from)
    for path, trace, scenario in _traces(sources.layers):
        moved = profile_for(scenario.cluster, base, moved=True)
        yield _score_trace(moved, path, trace, scenario, MOVED, "", 0.0)


def _traces(folders: tuple[Path, ...]) -> Iterator[tuple[Path, Trace, Scenario]]:
    for folder in folders:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in paths:
            if path.name.endswith(TRACE_SUFFIXES):
                trace = read_trace(path)
                yield path, trace, scenario_from_data(trace.scenario, str(path))


def _score_trace(
    profile: Profile,
    path: Path,
    trace: Trace,
    scenario: Scenario,
    group: str,
    part: str,
    blind_s: float,
) -> Scored:
    require_unseen(trace, file_hash(path), profile)
    if not trace.untraced_step_s:
        raise TraceMismatchError(f"{path}: has no untraced_step_s; measure again")
    run = predict_run(scenario, profile)
    run.require_kernels(trace, scenario.run.only_rank, run.repeated_steps)
    return Scored(
        group=group,
        part=part,
        name=trace.name,
        measured_s=median(trace.untraced_step_s),
        predicted_s=run.step_s,
        blind_s=blind_s,
        half_width=run.uncertainty.half_width if run.uncertainty else 0.0,
        spread=spread_of(trace.untraced_step_s),
        kernel_set=trace.kernel_set,
        uncertainty=run.uncertainty,
    )

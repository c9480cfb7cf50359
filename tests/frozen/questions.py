"""The questions whose answers are frozen: committed files, what-ifs, rankings, sweeps, and 1,000 random scenarios.

Every question is a name and a function without arguments; an answer is what JSON holds. Floats are
kept to the last bit (JSON writes the shortest text that reads back as the same double), and the
durations of all ops of a run as one hash.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from layerwise.calibration.data import profile_path
from layerwise.scenarios.accuracy.scored import Scored
from layerwise.scenarios.accuracy.scoring import score_unseen
from layerwise.scenarios.compare.joined import compare
from layerwise.scenarios.predict.beliefs import predict_all, prediction_as_data
from layerwise.scenarios.rank.as_data import ranking_as_data
from layerwise.scenarios.rank.inputs import RankInputs, resolve, tpot_s_of
from layerwise.scenarios.rank.ranking import rank
from layerwise.scenarios.sweep.command import profiles_for
from layerwise.scenarios.sweep.run import run_sweep
from layerwise.scenarios.sweep.spec import load_sweep
from layerwise.scenarios.sweep.workers import local_workers
from layerwise.scenarios.what_if.answering import question_names, what_if_named
from layerwise.scenarios.what_if.runner import answered_as_data, ask
from layerwise.sim.plan.errors import LayerwiseError
from layerwise.sim.plan.files import load_scenario
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import MODELS, ModelSpec
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario
from layerwise.sim.plan.workload import Workload
from layerwise.sim.profile import Profile, load_profile
from layerwise.sim.resolve import resolve as resolve_scenario
from layerwise.sim.trace import Row, read_trace

Answer = dict[str, Any]
Question = Callable[[], Answer]

ROOT = Path(__file__).resolve().parents[2]
SEED = 20261201
NUM_RANDOM = 1000
# Random scenarios asked together: one line of the file, and one case of the test.
PER_GROUP = 50
# Words of a person's reading, which may change, and what says when and by what a file was made.
NOT_FROZEN = frozenset(
    {
        "verdict",
        "answer",
        "question",
        "what_flips_it",
        "what_the_bar_leaves_room_for",
        "does_not_fit",
        "what_is_not_validated",
        "provenance",
        "source",
        "reason",
        "text",
        "note",
        "warnings",
    }
)


def questions() -> dict[str, Question]:
    """Every question by its name, in a fixed order."""
    found: dict[str, Question] = {}
    for path in sorted(ROOT.glob("scenarios/*/*.toml")):
        if path.parent.name != "sweeps":
            name = path.relative_to(ROOT / "scenarios").as_posix()
            found[f"scenario {name}"] = partial(predicted, path)
    for path in sorted((ROOT / "calibration" / "traces").rglob("*.jsonl.gz")):
        name = path.relative_to(ROOT / "calibration" / "traces").as_posix()
        found[f"trace {name}"] = partial(compared, path)
    for gpu in ("h100-sxm", "h200"):
        found[f"accuracy {gpu}"] = partial(accuracy, gpu)
    for name in question_names():
        found[f"what-if {name}"] = partial(what_if, name)
    for name, inputs, limit in RANKINGS:
        found[f"rank {name}"] = partial(ranked, inputs, limit)
    for path in sorted(ROOT.glob("scenarios/sweeps/*.toml")):
        found[f"sweep {path.stem}"] = partial(swept, path)
    for first in range(0, NUM_RANDOM, PER_GROUP):
        found[f"random {first} to {first + PER_GROUP - 1}"] = partial(random_group, first)
    return found


LLAMA = str(ROOT / "scenarios" / "examples" / "llama-3-8b.json")
RANKINGS = (
    (
        "llama 16 GPUs",
        RankInputs(model=LLAMA, num_gpus=16, batch_size=64, context_tokens=8000),
        "20ms",
    ),
    (
        "llama 2 GPUs",
        RankInputs(model=LLAMA, num_gpus=2, batch_size=64, context_tokens=8000),
        "20ms",
    ),
    (
        "llama 8 H200",
        RankInputs(model=LLAMA, num_gpus=8, gpu="h200", batch_size=64, context_tokens=8000),
        None,
    ),
    ("paper-16", RankInputs(model="paper-16"), None),
    ("paper-16 eager", RankInputs(model="paper-16", launch="eager", num_gpus=8), None),
    ("paper-30b 8 GPUs", RankInputs(model="paper-30b", num_gpus=8, batch_size=16), None),
    ("llama 4 A100", RankInputs(model=LLAMA, num_gpus=4, gpu="a100-80gb", batch_size=32), None),
)


@lru_cache
def shipped(gpu: str) -> Profile | None:
    """The profile of a GPU, if one is shipped."""
    path = profile_path(gpu)
    return load_profile(path) if path.exists() else None


def answer_of(scenario: Scenario) -> Answer:
    """A scenario under three beliefs, and every op of the run as a measurement makes it."""
    profile = shipped(scenario.cluster.gpu.name)
    beliefs = predict_all(resolve_scenario(scenario, profile))
    found: Answer = {each.belief: prediction_as_data(each) for each in beliefs.shown}
    found["alone_step_s"] = beliefs.alone_step_s
    for each in beliefs.shown:
        assert each.simulation is not None
        rows = (
            row
            for rank in each.simulation.ranks
            for step in each.steps
            for row in each.simulation.rows_of(rank, step)
        )
        found[each.belief]["ops"] = ops_hash(rows)
    return found


def ops_hash(rows: Iterable[Row]) -> str:
    """Names, kinds and times of ops, as one hash."""
    made = hashlib.sha256()
    for row in rows:
        bound = row.bound.partition(" ")[0]  # what follows is a caution, and no part of the time
        made.update(f"{row.op}|{row.kind}|{row.rank}|{row.step}|{bound}".encode())
        made.update(struct.pack("<ddd", row.ready_s, row.start_s, row.end_s))
    return made.hexdigest()[:16]


def predicted(path: Path) -> Answer:
    """A committed scenario file."""
    return answer_of(load_scenario(path))


def compared(path: Path) -> Answer:
    """A committed trace beside its prediction: every line of every level."""
    trace = read_trace(path)
    gpu = trace.scenario["cluster"]["gpu"]["name"]
    profile = shipped(gpu)
    assert profile is not None
    try:
        comparison = compare(trace, profile)
    except LayerwiseError as error:
        return {"refused": type(error).__name__}
    return {
        "step_s": comparison.stage.predicted_s,
        "measured_s": comparison.stage.measured_s,
        "ops": {
            f"{score.name} {score.ranks}": [score.times.predicted_s, score.times.measured_s]
            for score in comparison.ops
        },
    }


def accuracy(gpu: str) -> Answer:
    """What `layerwise accuracy` scores, line by line."""
    profile = shipped(gpu)
    assert profile is not None

    def line(one: Scored) -> list[object]:
        return [one.predicted_s, one.measured_s, one.half_width]

    return {f"{one.group}: {one.name}": line(one) for one in score_unseen(profile)}


def what_if(name: str) -> Answer:
    """A what-if at its own points."""
    return answered_as_data(ask(name, what_if_named(name)))


def ranked(inputs: RankInputs, limit: str | None) -> Answer:
    """A ranking as JSON."""
    asked = resolve(inputs)
    ranking = rank(
        asked.model,
        asked.cluster,
        asked.workload,
        shipped(asked.cluster.gpu.name),
        run=asked.run,
        tpot_below_s=tpot_s_of(limit),
    )
    return ranking_as_data(ranking)


def swept(path: Path) -> Answer:
    """A sweep's rows, as one hash and the first and last ten."""
    import tempfile

    sweep = load_sweep(path)
    with tempfile.TemporaryDirectory() as folder, local_workers(0) as workers:
        out = Path(folder) / "rows.csv"
        run_sweep(sweep, out, profiles_for(sweep, None), workers)
        # The last column is a key of the point, made from the code's own digest.
        lines = [line.rpartition(",")[0] for line in out.read_text().splitlines()]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return {"hash": digest, "num_rows": len(lines), "first": lines[:10], "last": lines[-10:]}


def random_group(first: int) -> Answer:
    """Some of the random scenarios; one that is refused says with which error."""
    return {f"{n}": _answer_or_refusal(n) for n in range(first, first + PER_GROUP)}


def _answer_or_refusal(number: int) -> Answer:
    try:
        full = answer_of(random_scenario(number))
    except LayerwiseError as error:
        return {"refused": type(error).__name__}
    keys = ("step_s", "tokens_per_s", "from_idle_s", "bubble_share", "peak_memory_bytes", "ops")
    found: Answer = {"alone_step_s": full["alone_step_s"]}
    for belief in ("speed_of_light", "uncalibrated", "calibrated"):
        if belief in full:
            each = full[belief]
            found[belief] = {key: each[key] for key in keys} | {
                "wire_bytes": sum(each["wire_bytes_per_step"].values()),
                "log_half_width": (each["interval"] or {}).get("log_half_width"),
            }
    return found


def random_scenario(number: int) -> Scenario:
    """The scenario of a number: models, GPUs, placements and workloads as people have them."""
    draw = random.Random(SEED * 10_000 + number)
    gpu = draw.choice(("h100-sxm", "h100-sxm", "h100-sxm", "h200", "h200", "a100-80gb"))
    tensor, pipeline, data = draw.choice(
        (
            (1, 1, 1),
            (2, 1, 1),
            (1, 2, 1),
            (1, 4, 1),
            (2, 2, 1),
            (4, 1, 2),
            (8, 1, 1),
            (4, 2, 2),
            (8, 2, 1),
            (1, 8, 1),
        )
    )
    layer_wise = tensor == 1 and data == 1 and draw.random() < 0.5
    placement = (
        PlacementSpec(strategy="layer-wise", num_gpus=pipeline)
        if layer_wise
        else PlacementSpec(
            strategy="tensor-pipeline",
            tensor_parallel=tensor,
            pipeline_parallel=pipeline,
            data_parallel=data,
        )
    )
    prefill = draw.random() < 0.25
    context = draw.choice((128, 1000, 2048, 8000, 10_000))
    batch = draw.choice((1, 2, 4) if prefill else (1, 2, 8, 16, 32, 64, 128)) * data
    num_gpus = tensor * pipeline * data
    alone = draw.random() < 0.2
    microbatches = draw.choice((0, 1, 2, 4))
    return Scenario(
        name=f"random-{number}",
        model=_random_model(draw),
        cluster=dgx_cluster(GPUS[gpu], num_gpus, min(8, num_gpus)),
        placement=placement,
        workload=Workload(
            phase="prefill" if prefill else "decode",
            batch_size=batch,
            context_tokens=context,
            num_microbatches=microbatches if batch // data % max(1, microbatches) == 0 else 0,
        ),
        run=RunSpec(
            launch=draw.choice(("graph", "graph", "eager")),
            only_rank=draw.randrange(num_gpus) if alone else -1,
            persisting_weights=draw.random() < 0.1,
        ),
    )


def _random_model(draw: random.Random) -> ModelSpec:
    if draw.random() < 0.15:
        return MODELS["paper-16"]
    hidden = draw.choice((1024, 2048, 4096, 5120, 8192))
    head_dim = draw.choice((128, 128, 128, 64))
    heads = hidden // head_dim
    stored = draw.random() < 0.1
    dtype = "float32" if not stored and draw.random() < 0.05 else "bfloat16"
    return ModelSpec(
        name="random",
        num_layers=draw.choice((8, 16, 24)),
        hidden_size=hidden,
        intermediate_size=draw.choice((hidden * 4, hidden * 7 // 2)),
        num_attention_heads=heads,
        num_key_value_heads=draw.choice((heads, max(8, heads // 4), 8)),
        head_dim=head_dim,
        vocab_size=draw.choice((0, 32_000, 128_256)),
        dtype=dtype,
        **({"weight_dtype": "float8_e4m3fn"} if stored else {}),
    )


def frozen(answer: Any) -> Any:
    """An answer without what people read, as JSON would give it back."""
    if isinstance(answer, dict):
        return {str(k): frozen(v) for k, v in answer.items() if k not in NOT_FROZEN}
    if isinstance(answer, (list, tuple)):
        return [frozen(each) for each in answer]
    return answer


def iter_answers(names: Iterable[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Ask one question after the other."""
    everything = questions()
    for name in names if names is not None else everything:
        yield name, frozen(everything[name]())

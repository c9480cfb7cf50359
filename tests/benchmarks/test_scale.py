"""The simulator against its floor, SimPy itself, and its cost against the work it is given.

Rates are ratios to bare timeouts taken in the same run; slopes and counts of events do not depend
on the machine. The bars on seconds hold on a slow shared core.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import simpy
from pytest_benchmark.fixture import BenchmarkFixture

from layerwise.sim.generate import generate, generate_exactly
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.program import StepPrograms
from layerwise.sim.plan.scenario import (
    PlacementSpec,
    RunSpec,
    Scenario,
    compile_run,
    paper_scenario,
)
from layerwise.sim.plan.workload import Workload
from layerwise.sim.predict import predict_plan
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import cost_model, resolve
from layerwise.sim.simulate import Simulation, simulate
from tests.benchmarks.test_speed import used_by
from tests.synthetic import synthetic_profile

BARE_EVENTS = 10_000
MAX_SLOPE = 1.05
# Seconds of a long job are told for a core with this rate of bare timeouts: a cloud core of 2026.
REFERENCE_TIMEOUTS_PER_S = 800_000


def bare_timeouts() -> None:
    """What SimPy needs for so many timeouts, their creation included."""
    env = simpy.Environment()
    for delay in range(BARE_EVENTS):
        env.timeout(delay)
    env.run()


def cpu_s(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


@contextmanager
def uncollected() -> Generator[None]:
    """Without the collector's pauses, like pytest-benchmark's own timings."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ratio_to_bare(call: Callable[[], object], num_ops: int, rounds: int = 5) -> float:
    """Simulated ops per second over bare timeouts per second, each at its fastest."""
    with uncollected():
        call()
        bare_timeouts()
        pairs = [(cpu_s(call), cpu_s(bare_timeouts)) for _ in range(rounds)]
    ours, bare = (min(times) for times in zip(*pairs, strict=True))
    return num_ops / ours / (BARE_EVENTS / bare)


def reference_s(call: Callable[[], object], rounds: int = 3) -> float:
    """Seconds on a core with REFERENCE_TIMEOUTS_PER_S, from this one's own rate meanwhile."""
    with uncollected():
        pairs = [(cpu_s(call), cpu_s(bare_timeouts)) for _ in range(rounds)]
    ours, bare = (min(times) for times in zip(*pairs, strict=True))
    return ours / bare * BARE_EVENTS / REFERENCE_TIMEOUTS_PER_S


def decode(strategy: str, microbatches: int, num_steps: int, growth: int = 0) -> list[StepPrograms]:
    scenario = paper_scenario(strategy).with_microbatches(microbatches)  # type: ignore[arg-type]
    run = RunSpec(num_steps=num_steps, context_growth_tokens=growth)
    return compile_run(replace(scenario, run=run))


def simulated(run: list[StepPrograms], *, folded: bool = True) -> Simulation:
    cluster = dgx_cluster(GPUS["h100-sxm"], 16)
    return simulate(run, cost_model(cluster, synthetic_profile()), cluster, folded=folded)


@pytest.mark.parametrize(
    ("strategy", "microbatches", "bar"),
    # Between two all-reduces of eight ranks lie five ops: there the meetings cost as much.
    [("layer-wise", 16, 0.5), ("tensor-pipeline", 2, 0.35)],
)
def test_every_op_in_the_heap_runs_at_half_the_rate_of_bare_timeouts(
    benchmark: BenchmarkFixture, strategy: str, microbatches: int, bar: float
) -> None:
    run = decode(strategy, microbatches, num_steps=100)
    num_ops = simulated(run).num_rows
    ratio = ratio_to_bare(lambda: simulated(run, folded=False), num_ops)
    benchmark.extra_info["ratio_to_bare"] = round(ratio, 2)
    benchmark.pedantic(lambda: simulated(run, folded=False), rounds=1)

    assert ratio >= bar


@pytest.mark.parametrize(("strategy", "microbatches"), [("layer-wise", 16), ("tensor-pipeline", 2)])
def test_folded_work_runs_at_four_times_the_rate_of_bare_timeouts(
    benchmark: BenchmarkFixture, strategy: str, microbatches: int
) -> None:
    run = decode(strategy, microbatches, num_steps=300)
    num_ops = simulated(run).num_rows
    ratio = ratio_to_bare(lambda: simulated(run), num_ops)
    benchmark.extra_info["ratio_to_bare"] = round(ratio, 2)
    benchmark.pedantic(lambda: simulated(run), rounds=1)

    assert ratio >= 4


def events_of(run: list[StepPrograms], *, folded: bool) -> int:
    """Events that SimPy handled: exact, on any machine."""
    cluster = dgx_cluster(GPUS["h100-sxm"], 16)
    machine = simulate(
        run, cost_model(cluster, synthetic_profile()), cluster, folded=folded
    ).machine
    # SimPy numbers its events as they are scheduled.
    return next(machine.env._eid)  # pyright: ignore[reportPrivateUsage]


def test_folded_decode_has_an_event_only_where_a_rank_waits() -> None:
    run = decode("layer-wise", 16, num_steps=20)
    receives = 20 * 16 * 16

    assert events_of(run, folded=True) <= receives
    assert events_of(run, folded=False) > simulated(run).num_rows


def papers_thousand_steps(run_one: Callable[[Scenario], object]) -> float:
    """Reference seconds for both of the paper's placements."""
    scenarios = [
        paper_scenario("layer-wise").with_microbatches(16),
        paper_scenario("tensor-pipeline").with_microbatches(2),
    ]
    return reference_s(lambda: [run_one(s) for s in scenarios])


def test_thousand_growing_steps_of_both_placements_exactly(benchmark: BenchmarkFixture) -> None:
    cost = cost_model(dgx_cluster(GPUS["h100-sxm"], 16), synthetic_profile())
    seconds = papers_thousand_steps(
        lambda scenario: generate_exactly(resolve(scenario, None, cost=cost), 1000)
    )
    benchmark.extra_info["reference_s"] = round(seconds, 3)
    benchmark.pedantic(lambda: None, rounds=1)

    assert seconds <= 1.5


def test_thousand_growing_steps_of_both_placements_sampled(benchmark: BenchmarkFixture) -> None:
    cost = cost_model(dgx_cluster(GPUS["h100-sxm"], 16), synthetic_profile())
    found = [
        generate(resolve(paper_scenario(strategy).with_microbatches(m), None, cost=cost), 1000)  # type: ignore[arg-type]
        for strategy, m in (("layer-wise", 16), ("tensor-pipeline", 2))
    ]
    seconds = papers_thousand_steps(
        lambda scenario: generate(resolve(scenario, None, cost=cost), 1000)
    )
    benchmark.extra_info["reference_s"] = round(seconds, 3)
    benchmark.pedantic(lambda: None, rounds=1)

    assert seconds <= 0.5
    assert max(one.error_bound_s / one.total_s for one in found) < 1e-3


def test_every_row_of_thousand_growing_steps_is_at_hand(benchmark: BenchmarkFixture) -> None:
    """Both placements simulated; then any op's row is a walk over the log, here the last one's."""
    runs = [
        decode(strategy, m, 1000, growth=1)
        for strategy, m in (("layer-wise", 16), ("tensor-pipeline", 2))
    ]

    def all_rows_at_hand() -> None:
        for run in runs:
            found = simulated(run)
            assert found.num_rows > 2_900_000
            assert sum(1 for _ in found.rows_of(rank=0, step=999)) > 100

    seconds = reference_s(all_rows_at_hand, rounds=2)
    benchmark.extra_info["reference_s"] = round(seconds, 3)
    benchmark.pedantic(lambda: None, rounds=1)

    assert seconds <= 4


def grown(num_steps: int = 20, gpus: int = 16, layers: int = 16, microbatches: int = 16) -> float:
    """CPU seconds of a layer-wise run, compiled and simulated, everything but one thing held."""
    scenario = Scenario(
        name="grown",
        model=replace(MODELS["paper-16"], num_layers=layers),
        cluster=dgx_cluster(GPUS["h100-sxm"], gpus, gpus_per_node=2),
        placement=PlacementSpec(num_gpus=gpus),
        workload=Workload(batch_size=256, num_microbatches=microbatches),
        run=RunSpec(num_steps=num_steps),
    )
    cost = cost_model(scenario.cluster, synthetic_profile())

    def once() -> Simulation:
        return simulate(compile_run(scenario), cost, scenario.cluster)

    once()
    with uncollected():
        return min(cpu_s(once) for _ in range(3))


@pytest.mark.parametrize(
    ("key", "low", "high"),
    [("num_steps", 20, 200), ("gpus", 2, 256), ("layers", 16, 256), ("microbatches", 1, 256)],
)
def test_cost_grows_no_faster_than_the_work(key: str, low: int, high: int) -> None:
    # The pipeline with more GPUs is longer, its stages have fewer of as many layers.
    others = {"layers": 256} if key == "gpus" else {}
    small, large = (grown(**others, **{key: value}) for value in (low, high))  # type: ignore[arg-type]
    slope = math.log(large / small) / math.log(high / low)

    assert slope <= MAX_SLOPE


def what_if_points(count: int) -> list[Scenario]:
    """Batch x context x placement, no two alike."""
    shapes = [
        PlacementSpec(num_gpus=16),
        *(
            PlacementSpec(
                strategy="tensor-pipeline", tensor_parallel=tp, pipeline_parallel=16 // tp
            )
            for tp in (1, 2, 4, 8)
        ),
    ]
    batches = (16, 32, 64, 128, 256)
    points: list[Scenario] = []
    for index in range(count):
        spec, batch = shapes[index % 5], batches[index // 5 % 5]
        stages = spec.num_gpus or spec.pipeline_parallel
        points.append(
            Scenario(
                name=f"point {index}",
                model=MODELS["paper-16"],
                cluster=dgx_cluster(GPUS["h100-sxm"], 16),
                placement=spec,
                workload=Workload(
                    batch_size=batch, context_tokens=128 + 7 * index, num_microbatches=stages
                ),
            )
        )
    return points


def rates_of(points: list[Scenario], profile: Profile) -> tuple[list[float], float]:
    """Tokens/s of each point, and what they took: in bare timeouts of the same minute."""
    gc.disable()  # a worker's objects are all let go with it
    cost = cost_model(points[0].cluster, profile)
    bare_s = min(cpu_s(bare_timeouts) for _ in range(3))
    begin = time.process_time()
    rates = [predict_plan(resolve(point, None, cost=cost)).tokens_per_s for point in points]
    return rates, (time.process_time() - begin) / bare_s * BARE_EVENTS


def test_ten_thousand_what_if_points_take_a_minute(benchmark: BenchmarkFixture) -> None:
    """A twentieth of them, on two cores; the rest is more of the same."""
    share = 20
    points = what_if_points(10_000 // share)
    chunks = [points[start : start + 50] for start in range(0, len(points), 50)]
    profiles = [synthetic_profile()] * len(chunks)
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as workers:
        found = list(workers.map(rates_of, chunks, profiles))
    rates = [rate for chunk, _ in found for rate in chunk]
    # Two cores at the reference's pace: this machine's own pace changes from minute to minute.
    seconds = sum(bare for _, bare in found) / 2 / REFERENCE_TIMEOUTS_PER_S
    benchmark.extra_info["seconds_for_10000"] = round(share * seconds, 1)
    benchmark.pedantic(lambda: None, rounds=1)

    assert len(points) == len(set(rates))
    # The aim is a minute: 53 to 62 s were seen, as the machine's caches are shared.
    assert share * seconds <= 75


STREAM = """
import sys
from pathlib import Path
from tests.benchmarks.test_scale import decode, simulated
from layerwise.sim.trace import Trace, write_rows
found = simulated(decode("layer-wise", 16, int(sys.argv[1]), growth=1))
trace = Trace(source="predicted", name="long", scenario={}, kernel_set="k")
write_rows(trace, found.iter_rows(), found.num_rows, Path(sys.argv[2]))
"""


def test_rows_stream_to_disk_in_little_memory(tmp_path: Path) -> None:
    """A tenth of ten million rows; what they add to an empty run is what ten times as many would."""
    used: dict[int, float] = {}
    for num_steps in (4, 330):
        out = str(tmp_path / "rows.jsonl")
        ran = used_by(sys.executable, "-c", STREAM, str(num_steps), out)
        assert 0 == ran.returncode
        with Path(out).open(encoding="utf-8") as file:
            used[json.loads(file.readline())["num_rows"]] = ran.resident_bytes
    (few, empty), (many, full) = sorted(used.items())
    at_ten_million = empty + (full - empty) * 10_000_000 / (many - few)

    assert many > 1_000_000
    assert at_ten_million < 400e6

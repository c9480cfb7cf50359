"""How fast the answer comes: bars for the main job, and rates of the simulator's loop."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import simpy
from pytest_benchmark.fixture import BenchmarkFixture

from layerwise.sim.plan.scenario import compile_run, paper_scenario
from layerwise.sim.resolve import cost_model
from layerwise.sim.simulate import simulate
from tests.synthetic import synthetic_profile

ROOT = Path(__file__).parents[2]
WALL_S, RESIDENT_BYTES = 3.0, 400e6
# Prints what the child alone used: this process may be large, or have had larger children.
MEASURE = """
import json, resource, subprocess, sys, time
begin = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, time.perf_counter() - begin, used.ru_maxrss * 1024]))
"""
PAPER = "import sys; from layerwise.scenarios.command_line import main; sys.argv[1:] = ['paper']; main()"


@dataclass(frozen=True)
class Used:
    returncode: int
    wall_s: float
    resident_bytes: float


def used_by(*command: str) -> Used:
    """What a command used, started by a process that is small itself."""
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return Used(*json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.skipif(
    importlib.util.find_spec("layerwise.scenarios.command_line") is None,
    reason="the entry point is not written yet",
)
def test_paper_answers_within_its_bar(benchmark: BenchmarkFixture) -> None:
    runs: list[Used] = []
    benchmark.pedantic(
        lambda: runs.append(used_by(sys.executable, "-c", PAPER)), rounds=3, warmup_rounds=1
    )

    assert {0} == {used.returncode for used in runs}
    assert min(used.wall_s for used in runs) < WALL_S
    assert max(used.resident_bytes for used in runs) < RESIDENT_BYTES


def test_simulated_ops_per_second(benchmark: BenchmarkFixture) -> None:
    scenario = paper_scenario("layer-wise").with_microbatches(16)
    run, cost = compile_run(scenario), cost_model(scenario.cluster, synthetic_profile())
    num_ops = sum(len(program) for compiled in run for program in compiled.programs)

    benchmark.pedantic(lambda: simulate(run, cost, scenario.cluster), rounds=5, warmup_rounds=1)

    fastest_s = min(benchmark.stats.stats.data) if benchmark.stats else 0.0
    per_s = num_ops / fastest_s
    benchmark.extra_info["simulated_ops_per_s"] = round(per_s)
    assert per_s > 20_000


def test_bare_timeouts_of_simpy_for_reference(benchmark: BenchmarkFixture) -> None:
    def run() -> float:
        env = simpy.Environment()

        def live():
            for _ in range(20_000):
                yield env.timeout(1)

        env.process(live())
        env.run()
        return env.now

    assert 20_000 == benchmark.pedantic(run, rounds=5, warmup_rounds=1)

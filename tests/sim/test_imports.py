"""What may be imported without what: each in a fresh interpreter that lacks the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKER = """
import sys
blocked = {blocked!r}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{{name}} is blocked here", name=name)
sys.meta_path.insert(0, Blocker())
{code}
"""
HEAVY = ("torch", "nvtx", "scipy", "transformers", "triton")


def run_without(blocked: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=blocked, code=code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def modules_of(package: str) -> list[str]:
    return sorted(
        ".".join(("layerwise", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for path in (ROOT / package).rglob("*.py")
    )


def test_blocker_blocks() -> None:
    assert "numpy is blocked here" in run_without(("numpy",), "import numpy").stderr


def test_every_module_of_sim_imports_without_heavy_packages() -> None:
    code = f"import importlib\nfor name in {modules_of('sim')}: importlib.import_module(name)"

    run = run_without(HEAVY, code)

    assert (0, "") == (run.returncode, run.stderr)


@pytest.mark.parametrize("package", ["sim", "hw", "calibration"])
def test_package_imports_without_anything_beside_it(package: str) -> None:
    run = run_without(
        (*HEAVY, "simpy", "pydantic", "numpy", "typer", "rich"), f"import layerwise.{package}"
    )

    assert (0, "") == (run.returncode, run.stderr)


def test_plan_compiles_without_clock_and_arrays() -> None:
    code = (
        "from layerwise.sim.plan.scenario import paper_scenario, compile_run\n"
        "from layerwise.sim.plan.validate import validate_run\n"
        "validate_run(compile_run(paper_scenario('layer-wise').with_microbatches(2)))"
    )
    run = run_without((*HEAVY, "simpy", "pydantic", "numpy"), code)

    assert (0, "") == (run.returncode, run.stderr)


def test_trace_format_needs_the_standard_library_only() -> None:
    run = run_without((*HEAVY, "simpy", "pydantic", "numpy"), "import layerwise.sim.trace")

    assert (0, "") == (run.returncode, run.stderr)


def test_prediction_needs_no_pydantic() -> None:
    code = (
        "from layerwise.sim.plan.scenario import paper_scenario\n"
        "from layerwise.sim.predict import predict\n"
        "predict(paper_scenario('layer-wise').with_microbatches(4), None)"
    )
    run = run_without((*HEAVY, "pydantic"), code)

    assert (0, "") == (run.returncode, run.stderr)

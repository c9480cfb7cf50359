"""What `hw` may import: the plan and the trace format, and nothing that reads files or simulates."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCK = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import {module}
print(sorted(m for m in sys.modules if m.startswith("layerwise.sim.")))
"""


def imported(module: str, *blocked: str) -> str:
    code = BLOCK.format(blocked=blocked, module=module)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout


def test_hw_itself_needs_nothing() -> None:
    assert "[]" == imported("layerwise.hw", "torch", "simpy", "pydantic", "nvtx", "cupti").strip()


@pytest.mark.parametrize(
    "module",
    [
        "layerwise.hw.ranks.launch",
        "layerwise.hw.sweep",
        "layerwise.hw.engine.steps",
        "layerwise.hw.__main__",
    ],
)
def test_the_engine_needs_neither_simpy_nor_pydantic_nor_a_gpus_packages(module: str) -> None:
    found = imported(module, "simpy", "pydantic", "nvtx", "cupti", "triton", "pynvml")
    assert "layerwise.sim.plan.files" not in found and "layerwise.sim.simulate" not in found

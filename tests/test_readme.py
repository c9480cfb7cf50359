"""The README's worked examples run as they stand, line by line, with every extra installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### (You .*)$", README, re.MULTILINE)
# An answer, or a gate that was missed, as the README says of `accuracy`.
FINE = (0, 1)


def commands_under(heading: str) -> list[str]:
    """Lines of its first block of commands, for this environment; what never ends is left out."""
    _, _, rest = README.partition(f"### {heading}\n")
    lines = rest.split("```sh\n")[1].partition("```")[0].splitlines()
    here = {
        ".venv/bin/layerwise": f"{sys.executable} -m layerwise.scenarios.command_line",
        ".venv/bin/python": sys.executable,
    }
    found: list[str] = []
    for line in lines:
        command = re.sub(r"\s+#.*", "", line)
        for written, meant in here.items():
            command = command.replace(written, meant)
        found += [] if command.endswith(" explore") else [command]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("heading", HEADINGS)
def test_worked_example_runs(heading: str, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command in commands_under(heading):
        ran = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode in FINE, f"{command}\n{ran.stderr}"
        assert "Traceback" not in ran.stderr, f"{command}\n{ran.stderr}"


def test_there_is_an_example_for_each_of_three_people() -> None:
    assert 4 == len(HEADINGS)
    assert all(commands_under(heading) for heading in HEADINGS)

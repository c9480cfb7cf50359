"""What version 0.1 called `python -m hw...` and `python -m scenarios...` names the new command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEW_NAMES = {
    "hw": "layerwise measure (under torchrun: -m layerwise.hw)",
    "hw.links": "layerwise links",
    "hw.links.overlap": "layerwise overlap",
    "hw.counters": "layerwise counters",
    "hw.figures": "layerwise figures",
    "hw.ranks.journal": "layerwise recover",
    "scenarios.command_line": "layerwise",
    "scenarios.whole_host": "layerwise host",
    "scenarios.accuracy.counters": "layerwise compare --counters FILE",
    "scenarios.h200": "layerwise what-if h200",
}


@pytest.mark.parametrize("old", NEW_NAMES)
def test_an_old_name_is_answered_with_the_new_command(old: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", old, "x"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (2, "", f"python -m {old} is now: {NEW_NAMES[old]}\n") == (
        ran.returncode,
        ran.stdout,
        ran.stderr,
    )

"""Names that look like markup, places that cannot be written, narrow terminals."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = 'name = "x [/foo] [bold]"\n[model]\npreset = "paper-16"\nnum_layers = 16\n'


def layerwise(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "layerwise.scenarios.command_line", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_name_that_looks_like_markup_is_shown_as_text(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(NAMED)
    ran = layerwise("predict", str(path))

    assert 0 == ran.returncode
    assert ran.stdout.startswith("x [/foo] [bold]: paper-16")


@pytest.mark.parametrize("target", [".", "/proc/x.json"])
def test_place_that_cannot_be_written_is_one_line(target: str) -> None:
    ran = layerwise("paper", "--trace", target)

    assert (2, 1) == (ran.returncode, len(ran.stderr.splitlines()))
    assert ran.stderr.startswith(f"layerwise: {target}: ")


def test_narrow_terminal_loses_no_digit() -> None:
    wide, narrow = (layerwise("paper", COLUMNS=columns).stdout for columns in ("200", "60"))

    assert sorted(re.findall(r"[\d.,]+", wide)) == sorted(re.findall(r"[\d.,]+", narrow))

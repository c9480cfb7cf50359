"""`python -m layerwise.hw.links.overlap` where there are no two GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.links.overlap import main, measure_overlap
from layerwise.hw.ranks.session import alone


def test_one_rank_on_the_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="two GPUs; start two ranks with CUDA"):
        measure_overlap(alone("cpu"), tmp_path / "overlap.json")


@pytest.mark.skipif(torch.cuda.device_count() >= 2, reason="there are two GPUs")
def test_too_few_gpus_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(["--out", str(tmp_path / "overlap.json")])
    assert "2 CUDA GPUs are needed" in capsys.readouterr().err

"""`layerwise overlap` where there are no two GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.links.overlap import measure_overlap
from layerwise.hw.ranks.session import alone
from tests.conftest import Run


def test_one_rank_on_the_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="two GPUs; start two ranks with CUDA"):
        measure_overlap(alone("cpu"), tmp_path / "overlap.json")


@pytest.mark.skipif(torch.cuda.device_count() >= 2, reason="there are two GPUs")
def test_too_few_gpus_are_one_line(tmp_path: Path, layerwise: Run) -> None:
    ran = layerwise("overlap", "--out", tmp_path / "overlap.json")
    assert (2, 1) == (ran.code, len(ran.err.splitlines()))
    assert "2 CUDA GPUs are needed" in ran.err

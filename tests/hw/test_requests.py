"""Requests that this machine cannot serve: one line each, with the key to change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.measure import check_request, measure
from layerwise.hw.options import Options
from layerwise.hw.ranks.launch import launch
from layerwise.hw.ranks.session import usable_device
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.scenario import Scenario
from tests.hw.scenes import TINY, scenario

CUDA = torch.device("cuda")


def in_bf16(**run: object) -> Scenario:
    return replace(scenario(**run), model=replace(TINY, dtype="bfloat16"))


def test_float32_is_refused_on_a_gpu_by_its_key() -> None:
    with pytest.raises(SpecError) as refused:
        check_request(scenario(), "events", CUDA)
    assert (
        "model.dtype='float32' is not what the GPU's fused kernels take: a plain one would be "
        "timed in their place; use 'bfloat16', or measure with --device cpu"
    ) == str(refused.value)


def test_bfloat16_runs_on_a_gpu_and_on_the_cpu() -> None:
    check_request(in_bf16(), "events", CUDA)
    trace = measure(in_bf16(), timing="none", device="cpu")
    assert trace is not None
    assert 4 == len(trace.untraced_step_s)


def test_too_few_gpus_offer_one_rank_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(NotAvailableError) as refused:
        launch(in_bf16(pipeline_parallel=2), Options(timing="events", device="cuda"))
    assert (
        f"2 CUDA GPUs are needed here and torch {torch.__version__} sees 1; set run.only_rank to "
        "measure one rank alone, its peers replaced; or use --device cpu, or a machine with more "
        "GPUs"
    ) == str(refused.value)


def test_no_gpu_at_all_offers_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(NotAvailableError, match=r"sees 0; use --device cpu"):
        usable_device("cuda")

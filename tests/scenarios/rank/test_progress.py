"""Progress of a ranking: on a terminal only, and only of one that takes long."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from layerwise.scenarios.rank.progress import showing_progress
from layerwise.scenarios.rank.ranking import rank
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.workload import Workload
from tests.synthetic import synthetic_profile

SMALL = ModelSpec(
    name="small",
    num_layers=2,
    hidden_size=256,
    intermediate_size=512,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)


def shown(*, terminal: bool, after_s: float, lasts_s: float) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with showing_progress(console, after_s) as progress:
        progress(3, 7)
        time.sleep(lasts_s)
    return out.getvalue()


def test_a_long_ranking_says_on_a_terminal_how_far_it_is() -> None:
    assert "3/7" in shown(terminal=True, after_s=0.01, lasts_s=0.5)


@pytest.mark.parametrize(("terminal", "after_s"), [(False, 0.01), (True, 30.0)])
def test_off_a_terminal_or_soon_done_it_says_nothing(terminal: bool, after_s: float) -> None:
    assert "" == shown(terminal=terminal, after_s=after_s, lasts_s=0.1).replace("\n", "")


def test_every_layout_and_knob_is_counted_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    workload = Workload(batch_size=4, context_tokens=100)
    found = rank(
        SMALL,
        dgx_cluster(GPUS["h100-sxm"], 2),
        workload,
        synthetic_profile(),
        progress=lambda done, total: told.append((done, total)),
    )

    assert found.flips
    assert [(number + 1, len(told)) for number in range(len(told))] == told

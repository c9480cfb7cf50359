"""The gate that blocks: what is in red is what is listed, and no family worse than the ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.calibration.data import profile_path
from layerwise.scenarios.accuracy.bars import BARS, LAYERS, PAIRS
from layerwise.scenarios.accuracy.gate import print_gate, read_gate
from layerwise.scenarios.accuracy.ledger import check, read_ledger
from layerwise.scenarios.accuracy.red import check_red, read_red
from layerwise.scenarios.accuracy.scored import Scored
from layerwise.scenarios.accuracy.scoring import score_unseen
from layerwise.scenarios.tables import console
from layerwise.sim.profile import Profile, load_profile

FOLDER = Path(__file__).parent
RED = FOLDER / "red.toml"
README = FOLDER.parents[1] / "scenarios" / "accuracy" / "README.md"
GPUS = ("h100-sxm", "h200")
UPDATE = "layerwise accuracy --gpu {0} --update-ledger tests/accuracy/ledger-{0}.json"
# As they stood on 1 December 2026: median, mean, worst, each. A bar may fall; none is raised.
HIGHEST = {
    "read bandwidth": (0.03, None, 0.10, 0.10),
    "matmul, M <= 1024": (0.03, 0.05, None, 0.10),
    "matmul, M > 1024": (None, 0.07, None, 0.14),
    "attention, decode": (0.03, 0.05, None, 0.10),
    "attention, prefill": (0.03, 0.05, None, 0.10),
    "send/recv": (None, 0.05, None, 0.10),
    "all-reduce": (None, 0.05, None, 0.10),
    "all-gather": (None, None, None, 0.10),
    "whole layers and stages": (0.02, None, 0.06, 0.06),
    "layers with windows": (None, None, None, 0.08),
    "two-GPU steps": (0.03, None, 0.08, 0.08),
    "moved from h100-sxm": (0.08, None, None, 0.16),
    "whole models, decode": (0.015, None, 0.06, 0.06),
    "whole models, prefill": (0.03, None, 0.07, 0.07),
    "matmul, M > 1024, sustained": (0.04, None, None, 0.14),
}


@pytest.mark.parametrize("gpu", GPUS)
def test_what_is_in_red_is_what_is_listed_and_no_family_worsened(
    gpu: str, everything: dict[str, list[Scored]]
) -> None:
    gate, scored = read_gate(gpu, FOLDER / f"ledger-{gpu}.json", RED), everything[gpu]
    assert gate is not None
    problems = gate.problems(scored)
    # Old beside new, also where all is well: pytest shows it with -s, or when this fails.
    print_gate(gate, scored, problems, console())

    assert [] == list(map(str, problems)), UPDATE.format(gpu)


def test_list_holds_no_gpu_that_no_gate_reads() -> None:
    listed = read_red(RED)
    points = {gpu for cause in listed.cause for gpu in cause.points}

    assert set(GPUS) == points | {one.gpu for one in listed.family}


def test_readme_names_how_many_points_are_beyond_their_bar() -> None:
    nums = [sum(red.is_point for red in read_red(RED).of(gpu)) for gpu in GPUS]

    assert f"({nums[0]} on the H100, {nums[1]} on the H200)" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("group", BARS)
def test_no_bar_is_raised(group: str) -> None:
    bar = BARS[group]
    now = (bar.median, bar.mean, bar.worst, bar.each)
    pairs = [(old, new) for old, new in zip(HIGHEST[group], now, strict=True) if old is not None]

    assert [] == [(old, new) for old, new in pairs if new is None or new > old]


def with_constant(profile: Profile, kind: str, name: str, factor: float) -> Profile:
    fit = profile.fits[kind]
    wrong = replace(fit.constants[name], value=factor * fit.constants[name].value)
    return replace(
        profile,
        fits=profile.fits | {kind: replace(fit, constants=fit.constants | {name: wrong})},
    )


@pytest.mark.parametrize(
    ("kind", "name", "factor", "group"),
    [
        ("decode_attention", "hbm_bytes_per_s", 1.1, "attention, decode"),
        ("matmul", "efficiency", 0.9, "matmul, M > 1024"),
    ],
)
def test_a_wrong_constant_fails_the_gate_and_names_points(
    kind: str, name: str, factor: float, group: str
) -> None:
    scored = score_unseen(with_constant(load_profile(profile_path("h100-sxm")), kind, name, factor))
    worse = check(read_ledger(FOLDER / "ledger-h100-sxm.json"), scored)
    newly = [p.name for p in check_red(read_red(RED), "h100-sxm", scored) if "newly" in p.text]

    assert any(name.startswith(f"{group}, {kind}/") for name in newly)
    assert f"{group}: median |error|" in [p.name for p in worse if "worsened" in p.text]


def test_better_predictions_fail_until_they_are_taken_out_of_the_list(
    everything: dict[str, list[Scored]],
) -> None:
    better = [
        replace(one, predicted_s=one.measured_s) if one.group in (LAYERS, PAIRS) else one
        for one in everything["h200"]
    ]
    problems = check_red(read_red(RED), "h200", better)

    assert {LAYERS, PAIRS} <= {family for p in problems for family in BARS if family in p.name}
    assert all("take it out of the list" in problem.text for problem in problems)

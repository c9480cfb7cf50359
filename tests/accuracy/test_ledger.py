"""The gate that blocks: every committed measurement within its tolerance, no aggregate worse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.calibration.data import profile_path
from layerwise.scenarios.accuracy.ledger import check, read_ledger
from layerwise.scenarios.accuracy.ledger_tables import print_gate
from layerwise.scenarios.accuracy.scored import Scored
from layerwise.scenarios.accuracy.scoring import score_unseen
from layerwise.scenarios.tables import console
from layerwise.sim.profile import Profile, load_profile

FOLDER = Path(__file__).parent
UPDATE = "layerwise accuracy --gpu {0} --update-ledger tests/accuracy/ledger-{0}.json"


@pytest.mark.parametrize("gpu", ["h100-sxm", "h200"])
def test_no_point_leaves_its_tolerance_and_no_aggregate_worsens(
    gpu: str, everything: dict[str, list[Scored]]
) -> None:
    ledger, scored = read_ledger(FOLDER / f"ledger-{gpu}.json"), everything[gpu]
    problems = check(ledger, scored)
    # Old beside new, also where all is well: pytest shows it with -s, or when this fails.
    print_gate(ledger, scored, problems, console())

    assert [] == list(map(str, problems)), UPDATE.format(gpu)


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
    wrong = with_constant(load_profile(profile_path("h100-sxm")), kind, name, factor)
    problems = check(read_ledger(FOLDER / "ledger-h100-sxm.json"), score_unseen(wrong))
    points = [p for p in problems if "is outside its tolerance" in p.text]
    aggregates = [p.name for p in problems if "worsened" in p.text]

    assert any(point.name.startswith(f"{group}, {kind}/") for point in points)
    assert f"{group}: median |error|" in aggregates

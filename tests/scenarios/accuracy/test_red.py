"""The list of what is in red: it must equal what is, and nothing in it goes without a cause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerwise.scenarios.accuracy.bars import BARS, INTERVALS, SMALL_MATMULS
from layerwise.scenarios.accuracy.gate import Gate, gate_as_data, print_gate, read_gate
from layerwise.scenarios.accuracy.ledger import write_ledger
from layerwise.scenarios.accuracy.ledger_update import updated
from layerwise.scenarios.accuracy.red import RedList, check_red, read_red, reds_of
from layerwise.scenarios.accuracy.scored import READS, Scored
from layerwise.scenarios.tables import console
from layerwise.sim.plan.errors import FileFormatError, LayerwiseError, SpecError
from tests.synthetic import synthetic_profile

GPU = "h200"
GOOD, BEYOND = 0.01, 0.15
# The family is within its median (3 %) and over its mean (5 %): three of nine points lie beyond 10 %.
ERRORS = [*[GOOD] * 6, BEYOND, -0.16, 0.17]
LISTED = """
[[family]]
gpu = "h200"
name = "matmul, M <= 1024"
misses = ["mean"]
cause = "Three points, below."

[[cause]]
family = "matmul, M <= 1024"
text = "Another kernel."
points.h200 = ["point 6", "point 7"]

[[cause]]
family = "matmul, M <= 1024"
text = "Ops too small for the form."
points.h200 = ["point 8"]
points.h100-sxm = ["point 0"]
"""


def scored_at(errors: list[float]) -> list[Scored]:
    """Matmuls with these errors, and one good point of every family that must be measured."""
    must = [group for group, bar in BARS.items() if not bar.is_optional and group != SMALL_MATMULS]
    named = [(SMALL_MATMULS, f"point {n}", error) for n, error in enumerate(errors)]
    return [
        Scored(group=group, part="", name=name, measured_s=1.0, predicted_s=1 + error)
        for group, name, error in (*named, *((group, "one", GOOD) for group in must))
    ]


def listed_in(folder: Path, text: str = LISTED) -> RedList:
    path = folder / "red.toml"
    path.write_text(text)
    return read_red(path)


def texts(listed: RedList, errors: list[float], gpu: str = GPU) -> list[str]:
    return [str(problem) for problem in check_red(listed, gpu, scored_at(errors))]


def test_list_that_is_what_is_in_red_passes(tmp_path: Path) -> None:
    assert [] == texts(listed_in(tmp_path), ERRORS)


def test_point_beyond_its_bar_that_is_not_listed_fails(tmp_path: Path) -> None:
    found = texts(listed_in(tmp_path), [BEYOND, *ERRORS[1:]])

    assert [f"{SMALL_MATMULS}, point 0: newly red, +15.0% where 10% is allowed"] == found


def test_family_that_newly_misses_a_figure_fails(tmp_path: Path) -> None:
    found = texts(listed_in(tmp_path), [0.04] * 6 + ERRORS[6:])

    assert [f"{SMALL_MATMULS}, median: newly red, 4.0% where 3% is allowed"] == found


def test_point_that_is_listed_and_green_fails(tmp_path: Path) -> None:
    found = texts(listed_in(tmp_path), [*ERRORS[:6], 0.3, GOOD, 0.17])

    assert [f"{SMALL_MATMULS}, point 7: listed as red and is not; take it out of the list"] == found


def test_family_that_is_listed_and_green_fails(tmp_path: Path) -> None:
    found = texts(listed_in(tmp_path), [*ERRORS, *[GOOD] * 9])

    assert f"{SMALL_MATMULS}, mean: listed as red and is not; take it out of the list" in found


def test_point_that_was_not_measured_cannot_stay_listed(tmp_path: Path) -> None:
    found = texts(listed_in(tmp_path), [*ERRORS[:6], 0.3, 0.3])

    assert [f"{SMALL_MATMULS}, point 8: listed as red and is not; take it out of the list"] == found


def test_each_gpu_has_its_own_list(tmp_path: Path) -> None:
    found = texts(listed_in(tmp_path), [BEYOND, *[GOOD] * 9], "h100-sxm")

    assert [] == found


def test_family_that_must_be_measured_and_is_not_is_in_red() -> None:
    found = {str(red): how for red, how in reds_of(scored_at(ERRORS)[:-1]).items()}

    assert "there is none" == found["whole layers and stages, measurements"]
    assert f"{READS}, measurements" not in found


def test_coverage_and_width_of_intervals_are_figures_of_a_family() -> None:
    narrow = [
        Scored(group=SMALL_MATMULS, part="", name=f"{n}", measured_s=1.0, predicted_s=1.01)
        for n in range(200)
    ]
    wide = [
        Scored(
            group=SMALL_MATMULS, part="", name=f"{n}", measured_s=1, predicted_s=1.01, half_width=w
        )
        for n, w in enumerate([0.05] * 180 + [0.001] * 20)
    ]

    assert ["coverage"] == [red.what for red in reds_of(narrow) if red.family == INTERVALS]
    assert ["width"] == [red.what for red in reds_of(wide) if red.family == INTERVALS]


def test_what_is_newly_red_is_printed_as_lines_that_need_a_cause_and_then_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate, scored = Gate(gpu=GPU, red=RedList()), scored_at(ERRORS)
    print_gate(gate, scored, gate.problems(scored), console())
    shown = capsys.readouterr().out
    lines = shown.partition("with its cause:\n")[2].partition("The gate")[0]

    assert "4 problems" in shown
    with pytest.raises(SpecError, match="cause='' says nothing"):
        listed_in(tmp_path, lines)
    assert [] == texts(listed_in(tmp_path, lines.replace('""', '"Because."')), ERRORS)


def test_verdict_as_data_names_what_is_in_red_and_what_fails(tmp_path: Path) -> None:
    gate, scored = Gate(gpu=GPU, red=listed_in(tmp_path)), scored_at([*ERRORS[:8], GOOD])
    data = json.loads(json.dumps(gate_as_data(GPU, scored, gate.problems(scored))))

    assert (False, GPU, len(scored)) == (data["passes"], data["gpu"], data["num_measurements"])
    assert [f"{SMALL_MATMULS}, point 8", f"{SMALL_MATMULS}, mean"] == [
        problem["name"] for problem in reversed(data["problems"])
    ]
    assert {
        "family": SMALL_MATMULS,
        "what": "point 7",
        "is_point": True,
        "how_far": "-16.0% where 10% is allowed",
    } in data["red"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"Another kernel."', '" "', r"cause\.0\.text=' ' says nothing; say why"),
        ('gpu = "h200"', 'gpu = "h20"', r"family\.0\.gpu='h20' is not known; .*h200"),
        ("points.h200", "points.h20", r"'h20' is not known; .*h200"),
        ('name = "matmul,', 'name = "matmuls,', "is not known; .*matmul, M <= 1024"),
        ('"point 7"]', '"point 7"]\nreason = "x"', r"cause\.0\.reason='x' is not a known key"),
        ('"point 7"]', '"point 6"]', "h200: matmul, M <= 1024, point 6 is listed twice"),
    ],
    ids=["no cause", "gpu", "gpu of points", "family", "key", "twice"],
)
def test_list_that_is_wrong_is_refused(old: str, new: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(LayerwiseError, match=says):
        listed_in(tmp_path, LISTED.replace(old, new, 1))


def test_ledger_of_another_gpu_is_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    path, profile = tmp_path / "ledger.json", synthetic_profile()
    write_ledger(updated(None, scored_at(ERRORS), profile, "", "2026-01-01"), path)

    with pytest.raises(FileFormatError, match=f"is the ledger of {profile.gpu}"):
        read_gate("h200", path, None)

"""The accuracy ledger: what fails, what tightens, what needs a reason, how it reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.scenarios.accuracy.bars import BARS, LAYERS, SMALL_MATMULS
from layerwise.scenarios.accuracy.ledger import (
    Ledger,
    check,
    least_tolerance,
    noise_of,
    read_ledger,
    write_ledger,
)
from layerwise.scenarios.accuracy.ledger_tables import moves_of, print_gate
from layerwise.scenarios.accuracy.ledger_update import update_and_print, updated
from layerwise.scenarios.accuracy.scored import Scored
from layerwise.scenarios.tables import console
from layerwise.sim.plan.errors import FileFormatError, SpecError
from tests.synthetic import synthetic_profile

PROFILE = synthetic_profile()
ERRORS = (0.01, -0.02, 0.03, -0.04, 0.30)
NOW = "2026-01-01T00:00:00+00:00"


def scored_at(
    errors: Sequence[float], group: str = SMALL_MATMULS, spread: float = 0.0
) -> list[Scored]:
    return [
        Scored(
            group=group,
            part="",
            name=f"point {n}",
            measured_s=1e-3,
            kernel_set="abc",
            predicted_s=1e-3 * (1 + error),
            spread=spread,
        )
        for n, error in enumerate(errors)
    ]


def ledger_of(scored: Sequence[Scored], old: Ledger | None = None, reason: str = "") -> Ledger:
    return updated(old, scored, PROFILE, reason, NOW)[0]


@pytest.fixture
def ledger() -> Ledger:
    return ledger_of(scored_at(ERRORS))


def texts(ledger: Ledger, scored: Sequence[Scored]) -> list[str]:
    return [str(problem) for problem in check(ledger, scored)]


def test_what_was_written_passes(ledger: Ledger) -> None:
    assert [] == check(ledger, scored_at(ERRORS))


def test_tolerances_are_what_the_group_allows_or_a_known_miss(ledger: Ledger) -> None:
    assert [0.1, 0.1, 0.1, 0.1, 0.31] == [entry.tolerance for entry in ledger.entries]


@pytest.mark.parametrize("spread", [0.0, 0.004, 0.2])
def test_no_tolerance_is_under_twice_the_spread(spread: float) -> None:
    one = scored_at([0.0], LAYERS, spread)[0]

    assert max(BARS[LAYERS].each, 2 * spread) == pytest.approx(least_tolerance(one))


def test_point_outside_its_tolerance_is_named(ledger: Ledger) -> None:
    found = texts(ledger, scored_at([0.01, -0.02, 0.03, -0.101, 0.0]))

    text = "error -10.1% is outside its tolerance of 10.0% (it was -4.0%)"
    assert [f"{SMALL_MATMULS}, point 3: {text}"] == found


def test_aggregate_that_worsens_fails_though_every_point_is_within_its_tolerance(
    ledger: Ledger,
) -> None:
    found = texts(ledger, scored_at([0.05, -0.06, 0.07, -0.08, 0.30]))

    assert [
        f"{SMALL_MATMULS}: median |error|: worsened from 0.0300 to 0.0700; noise is 0.0010",
        f"{SMALL_MATMULS}: mean |error|: worsened from 0.0800 to 0.1120; noise is 0.0010",
    ] == found


def test_aggregate_may_worsen_as_much_as_measurements_scatter(ledger: Ledger) -> None:
    before = ledger_of(scored_at(ERRORS, spread=0.05))
    shifted = [error + (0.02 if error > 0 else -0.02) for error in ERRORS]

    assert [] == texts(before, scored_at(shifted, spread=0.05))
    assert 0.1 / 5**0.5 == pytest.approx(noise_of(scored_at(ERRORS, spread=0.05)))
    assert 3 == len(texts(ledger, scored_at(shifted)))


def test_missing_and_extra_points_are_named(ledger: Ledger) -> None:
    one = replace(scored_at(ERRORS)[4], name="another")
    found = texts(ledger, [*scored_at(ERRORS)[:4], one])

    assert f"{SMALL_MATMULS}, point 4: is in the ledger and was not measured" in found
    assert f"{SMALL_MATMULS}, another: was measured and is not in the ledger" in found


def test_other_kernels_are_never_compared_in_silence(ledger: Ledger) -> None:
    first, *others = scored_at(ERRORS)
    found = texts(ledger, [replace(first, kernel_set="def"), *others])

    assert 1 == len(found)
    assert "point 0: ran kernel set 'def' and the ledger is about 'abc'" in found[0]


def test_point_that_was_measured_again_is_named(ledger: Ledger) -> None:
    first, *others = scored_at(ERRORS)
    again = replace(first, measured_s=1.001e-3, predicted_s=1.01e-3)

    assert ["point 0: was measured again: 0.001001 s, not 0.001 s"] == [
        text.partition(", M <= 1024, ")[2] for text in texts(ledger, [again, *others])
    ]


def test_better_predictions_tighten_without_a_reason(ledger: Ledger) -> None:
    after = ledger_of(scored_at([0.01, -0.02, 0.03, -0.04, 0.15]), ledger)

    assert [0.1, 0.1, 0.1, 0.1, 0.16] == [entry.tolerance for entry in after.entries]
    assert after.aggregates[1].value < ledger.aggregates[1].value
    assert "" == after.history[-1].reason


@pytest.mark.parametrize(
    ("errors", "named"),
    [
        ([0.01, -0.02, 0.03, -0.04, 0.32], "point 4"),
        ([0.05, -0.06, 0.07, -0.08, 0.30], "median |error|"),
        ([0.01, -0.02, 0.03, -0.04], "point 4"),
    ],
    ids=["a point", "an aggregate", "a point that is gone"],
)
def test_asking_for_less_without_a_reason_is_refused(
    errors: list[float], named: str, ledger: Ledger
) -> None:
    with pytest.raises(SpecError, match=r"--reason.*is missing") as refused:
        ledger_of(scored_at(errors), ledger, reason="  ")
    assert named in str(refused.value)


def test_reason_is_written_into_what_it_loosens_and_into_the_history(ledger: Ledger) -> None:
    after = ledger_of(scored_at([0.01, -0.02, 0.03, -0.04, 0.32]), ledger, "another cuBLAS")
    reasons = {entry.name: entry.reason for entry in after.entries if entry.reason}

    assert {"point 4": "another cuBLAS"} == reasons
    assert 0.33 == after.entries[4].tolerance
    assert {"another cuBLAS"} == {one.reason for one in after.aggregates if "mean" in one.name}
    assert ["", "another cuBLAS"] == [update.reason for update in after.history]
    assert [] == check(after, scored_at([0.01, -0.02, 0.03, -0.04, 0.32]))


def test_small_steps_do_not_add_up(ledger: Ledger) -> None:
    after = ledger
    for step in range(1, 11):
        errors = [*ERRORS[:4], ERRORS[4] + 0.0009 * step]
        if step > 5:
            assert texts(after, scored_at(errors))
            break
        after = ledger_of(scored_at(errors), after)

    assert [one.value for one in ledger.aggregates] == [one.value for one in after.aggregates]
    assert ledger.entries[4].tolerance == after.entries[4].tolerance


def test_moved_predictions_are_shown_old_beside_new_worst_first(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    now = scored_at([0.02, -0.02, 0.03, -0.09, 0.25])
    moves = moves_of(ledger, now)
    print_gate(ledger, now, check(ledger, now), console())
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if "point 3" in line)

    assert ["point 3", "point 0", "point 4"] == [move.name.partition("1024, ")[2] for move in moves]
    assert "3 of 5 predictions moved" in shown
    assert ["1", "ms", "960", "us", "910", "us", "-4.0%", "-9.0%", "10.0%"] == line.split()[-9:]


def test_nothing_moved_is_said(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    print_gate(ledger, scored_at(ERRORS), [], console())
    shown = capsys.readouterr().out

    assert f"No prediction moved since the ledger's profile {PROFILE.digest}." in shown
    assert "5 measurements: PASS" in shown


def test_ledger_is_read_as_it_was_written_one_point_a_line(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    write_ledger(ledger, path)
    lines = [line for line in path.read_text().splitlines() if "point " in line]

    assert ledger == read_ledger(path)
    assert 5 == len(lines)


def test_update_writes_the_file_and_shows_what_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, better = tmp_path / "ledger.json", scored_at([0.0] * 5)
    first = update_and_print(path, scored_at(ERRORS), PROFILE, "", console())
    second = update_and_print(path, better, PROFILE, "", console())

    assert f"{path}: 5 measurements; 5 added" == first
    assert f"{path}: 5 measurements; 3 tightened" == second
    assert "5 of 5 predictions moved" in capsys.readouterr().out
    assert [] == check(read_ledger(path), better)


def test_refused_update_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    update_and_print(path, scored_at(ERRORS), PROFILE, "", console())
    before = path.read_text()

    with pytest.raises(SpecError, match="is missing"):
        update_and_print(path, scored_at([0.5] * 5), PROFILE, "", console())
    assert before == path.read_text()


def test_ledger_of_another_gpu_is_not_overwritten(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    write_ledger(replace(ledger, gpu="h200"), path)

    with pytest.raises(FileFormatError, match="is the ledger of h200"):
        update_and_print(path, scored_at(ERRORS), PROFILE, "", console())


def test_tolerance_under_twice_the_spread_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    first, *others = ledger.entries
    write_ledger(replace(ledger, entries=(replace(first, spread=0.06), *others)), path)

    with pytest.raises(FileFormatError, match=r"tolerance=0.1 is under twice its measured spread"):
        read_ledger(path)


@pytest.mark.parametrize(
    ("data", "says"),
    [([], "is it a ledger"), ({"format": "layerwise-ledger", "version": 2}, "ledger version 2")],
)
def test_file_that_is_no_ledger_is_refused(data: object, says: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(json.dumps(data))

    with pytest.raises(FileFormatError, match=says):
        read_ledger(path)

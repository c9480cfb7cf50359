"""The accuracy ledger: what fails, what needs a reason, how it reads, also an older one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.scenarios.accuracy.bars import SMALL_MATMULS
from layerwise.scenarios.accuracy.gate import Gate, print_gate
from layerwise.scenarios.accuracy.ledger import (
    Ledger,
    check,
    noise_of,
    read_ledger,
    write_ledger,
)
from layerwise.scenarios.accuracy.ledger_tables import moves_of
from layerwise.scenarios.accuracy.ledger_update import update_and_print, updated
from layerwise.scenarios.accuracy.scored import Scored
from layerwise.scenarios.tables import console
from layerwise.sim.plan.errors import FileFormatError, SpecError
from tests.synthetic import synthetic_profile

PROFILE = synthetic_profile()
ERRORS = (0.01, -0.02, 0.03, -0.04, 0.30)
NOW = "2026-01-01T00:00:00+00:00"


def scored_at(errors: Sequence[float], spread: float = 0.0) -> list[Scored]:
    return [
        Scored(
            group=SMALL_MATMULS,
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
    return updated(old, scored, PROFILE, reason, NOW)


@pytest.fixture
def ledger() -> Ledger:
    return ledger_of(scored_at(ERRORS))


def show(ledger: Ledger, scored: Sequence[Scored]) -> None:
    print_gate(Gate(gpu=ledger.gpu, ledger=ledger), scored, check(ledger, scored), console())


def texts(ledger: Ledger, scored: Sequence[Scored]) -> list[str]:
    return [str(problem) for problem in check(ledger, scored)]


def test_what_was_written_passes(ledger: Ledger) -> None:
    assert [] == check(ledger, scored_at(ERRORS))


def test_ledger_allows_no_point_anything(ledger: Ledger) -> None:
    fields = {field.name for field in dataclasses.fields(ledger.entries[0])}

    assert {"group", "name", "measured_s", "predicted_s", "error", "spread", "kernel_set"} == fields


def test_aggregate_that_worsens_fails(ledger: Ledger) -> None:
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
    assert 2 == len(texts(ledger, scored_at(shifted)))


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


def test_better_predictions_need_no_reason_and_are_held_to(ledger: Ledger) -> None:
    after = ledger_of(scored_at([0.01, -0.02, 0.03, -0.04, 0.15]), ledger)

    assert 0.05 == after.aggregates[1].value
    assert "1 moved" == after.history[-1].changed
    assert texts(after, scored_at(ERRORS))


@pytest.mark.parametrize(
    ("errors", "named"),
    [
        ([0.01, -0.02, 0.03, -0.04, 0.32], "mean |error|"),
        ([0.05, -0.06, 0.07, -0.08, 0.30], "median |error|"),
        ([0.01, -0.02, 0.03, -0.04], "point 4"),
    ],
    ids=["a mean", "a median", "a point that is gone"],
)
def test_asking_for_less_without_a_reason_is_refused(
    errors: list[float], named: str, ledger: Ledger
) -> None:
    with pytest.raises(SpecError, match=r"--reason.*is missing") as refused:
        ledger_of(scored_at(errors), ledger, reason="  ")
    assert named in str(refused.value)


def test_reason_is_written_into_the_history(ledger: Ledger) -> None:
    worse = scored_at([0.01, -0.02, 0.03, -0.04, 0.32])
    after = ledger_of(worse, ledger, "another  cuBLAS\n")

    assert ["", "another cuBLAS"] == [update.reason for update in after.history]
    assert "1 moved; 1 explained" == after.history[-1].changed
    assert [] == check(after, worse)


def test_small_steps_do_not_add_up(ledger: Ledger) -> None:
    steps = [scored_at([*ERRORS[:4], ERRORS[4] + 0.0009 * step]) for step in range(1, 7)]
    after = ledger
    for step in steps[:5]:
        after = ledger_of(step, after)

    assert ledger.aggregates == after.aggregates
    assert texts(after, steps[5])


def test_moved_predictions_are_shown_old_beside_new_worst_first(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    now = scored_at([0.02, -0.02, 0.03, -0.09, 0.25])
    moves = moves_of(ledger, now)
    show(ledger, now)
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if "point 3" in line)

    assert ["point 3", "point 0", "point 4"] == [move.name.partition("1024, ")[2] for move in moves]
    assert "3 of 5 predictions moved" in shown
    assert ["1", "ms", "960", "us", "910", "us", "-4.0%", "-9.0%", "10.0%"] == line.split()[-9:]


def test_nothing_moved_is_said(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    show(ledger, scored_at(ERRORS))
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
    assert f"{path}: 5 measurements; 5 moved" == second
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


def test_ledger_of_version_1_is_read_without_what_it_had_learned(
    ledger: Ledger, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.json"
    write_ledger(ledger, path)
    data = json.loads(path.read_text()) | {"version": 1}
    for line in data["entries"]:
        line |= {"tolerance": 0.736, "reason": "it came out so"}
    for line in data["aggregates"]:
        line["reason"] = ""
    path.write_text(json.dumps(data))

    assert ledger == read_ledger(path)


def test_tolerance_in_a_ledger_of_today_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    write_ledger(ledger, path)
    data = json.loads(path.read_text())
    data["entries"][0]["tolerance"] = 0.736
    path.write_text(json.dumps(data))

    with pytest.raises(SpecError, match=r"entries\.0\.tolerance=0.736 is not a known key"):
        read_ledger(path)


@pytest.mark.parametrize(
    ("data", "says"),
    [([], "is it a ledger"), ({"format": "layerwise-ledger", "version": 3}, "ledger version 3")],
)
def test_file_that_is_no_ledger_is_refused(data: object, says: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(json.dumps(data))

    with pytest.raises(FileFormatError, match=says):
        read_ledger(path)

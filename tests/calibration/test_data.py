from __future__ import annotations

from pathlib import Path

from layerwise.calibration.data import (
    FOLDER,
    prediction_path,
    profile_path,
    transfers_path,
    validation_trace_paths,
)


def test_shipped_files_lie_in_the_package() -> None:
    assert FOLDER / "profiles" / "h100-sxm.json" == profile_path("h100-sxm")
    assert profile_path("h100-sxm").is_file()
    assert transfers_path().is_file()


def test_prediction_of_a_run_has_its_name(tmp_path: Path) -> None:
    assert FOLDER / "predictions" / "stage-8.json" == prediction_path("stage-8")
    assert tmp_path / "stage-8.json" == prediction_path("stage-8", tmp_path)


def test_traces_are_found_by_name_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl.gz", "a.jsonl", "README.md", "c.json"):
        (tmp_path / name).touch()

    assert ["a.jsonl", "b.jsonl.gz"] == [p.name for p in validation_trace_paths(tmp_path)]


def test_folder_that_is_not_there_holds_no_traces(tmp_path: Path) -> None:
    assert () == validation_trace_paths(tmp_path / "none")

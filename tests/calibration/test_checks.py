"""Bad input: named with its row, and refused or set aside."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from layerwise.calibration.checks import check_apart, check_trace, read_curve, without_throttled
from layerwise.calibration.dataset import read_sweep
from layerwise.calibration.unseen import unseen
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.trace import Trace, as_data, read_trace, write_trace
from tests.calibration.fabricated import (
    ENVIRONMENT,
    KERNELS,
    every_point,
    stage_scenario,
    stage_trace,
    true_profile,
)

HERE = Path("run.jsonl")


@cache
def good() -> Trace:
    return stage_trace(stage_scenario(1024), true_profile(), environment=ENVIRONMENT)


def check(trace: Trace) -> None:
    check_trace(HERE, trace, "h100-sxm", ENVIRONMENT)


def test_whole_trace_of_this_gpu_passes() -> None:
    check(good())


def test_missing_op_is_named_with_its_step() -> None:
    gone = good().rows[3].op
    step = good().rows[3].step

    with pytest.raises(FileFormatError, match=rf"run.jsonl: repeat 0, step {step} lacks 1 of \d+ "):
        check(replace(good(), rows=tuple(row for row in good().rows if row.op != gone)))


def test_trace_of_another_model_is_named_with_its_row() -> None:
    first = good().rows[0]
    rows = (first, replace(good().rows[1], op="L77.attn.qkv"), *good().rows[2:])

    with pytest.raises(FileFormatError, match=r"line 3: op L77.attn.qkv is none of h1024's"):
        check(replace(good(), rows=rows))


def test_trace_of_another_gpu_is_refused() -> None:
    scenario = replace(stage_scenario(1024), cluster=dgx_cluster(GPUS["h200"], 4))

    with pytest.raises(FileFormatError, match="h1024 ran on h200, and the fit is of h100-sxm"):
        check(replace(good(), scenario=as_data(scenario)))


def test_trace_of_another_machine_than_its_folder_is_refused() -> None:
    other = replace(good(), environment=ENVIRONMENT | {"gpu": "some other"})

    with pytest.raises(FileFormatError, match="where gpu='some other', the folder where gpu='pret"):
        check(other)


@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({"throttled": "no", "throttled_after": "software thermal"}, True),
        ({"throttled": "software power cap"}, True),
        ({"throttled": "software power cap, software thermal"}, False),
        ({"throttled_after": "hardware slowdown"}, False),
        ({}, True),
    ],
)
def test_hot_run_is_set_aside_and_named_and_one_at_the_power_cap_is_not(
    environment: dict[str, str], kept: bool
) -> None:
    told: list[str] = []
    found = without_throttled(
        [(HERE, replace(good(), environment=environment))],
        lambda *line: told.append(": ".join(line)),
    )

    assert kept == bool(found)
    assert ([] if kept else ["run.jsonl, h1024"]) == [line.partition(":")[0] for line in told]


def test_prefill_at_its_power_cap_stays_but_not_a_hot_one() -> None:
    prefill = replace(good(), scenario={"workload": {"phase": "prefill"}})
    runs = [
        (HERE, replace(prefill, environment={"throttled_after": reason}))
        for reason in ("software power cap", "software thermal")
    ]

    assert runs[:1] == without_throttled(runs, lambda _where, _why: None)


def test_trace_cut_in_the_middle_of_a_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_trace(good(), path)
    text = path.read_text()
    path.write_text(text[: len(text) * 2 // 3])
    last = path.read_text().count("\n") + 1

    with pytest.raises(FileFormatError, match=rf"run.jsonl: line {last} is not a row"):
        read_trace(path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"name": "b", "step_s": NaN, "num_ops": 2}', "line 2: b took nan s; remove the line"),
        ('{"name": "b", "step_s": -1e-3, "num_ops": 2}', "line 2: b took -0.001 s"),
        ('{"name": "b", "step_s": 1e', "line 2 is not a sweep point"),
        ('{"name": "a", "step_s": 1e-3, "num_ops": 2}', "lines 1 and 2 both measure a"),
    ],
)
def test_bad_sweep_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "sweep.jsonl"
    path.write_text(f'{{"name": "a", "step_s": 1e-3, "num_ops": 2}}\n{line}')

    with pytest.raises(FileFormatError, match=says):
        read_sweep(path)


def test_throttled_point_is_set_aside_and_named(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    rows = [
        {"name": name, "step_s": 1e-3, "num_ops": 2, "throttled": why}
        for name, why in (("a", "no"), ("b", "software thermal"))
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    told: list[tuple[str, str]] = []

    assert ["a"] == list(read_sweep(path, lambda *line: told.append(line)))
    assert [("sweep.jsonl line 2, b", "the GPU throttled: software thermal")] == told


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("[[1024, NaN]]", "row 1: a pass over 1024 bytes took nan s"),
        ("[[1024, 1e-6], [2048, -1]]", "row 2: a pass over 2048 bytes took -1.0 s"),
        ("[[1024, 1e-6], [2048]]", r"row 2 is no \[bytes, seconds\]"),
        ("[[1024, 1e-6], [1024, 2e-6]]", "row 2 measures 1024 bytes again"),
        ('{"a": 1}', "is no list"),
    ],
)
def test_bad_row_of_a_read_curve_is_named(tmp_path: Path, rows: str, says: str) -> None:
    (tmp_path / "read_curve.json").write_text(rows)

    with pytest.raises(FileFormatError, match=says):
        read_curve(tmp_path / "read_curve.json")


def test_point_kept_for_scoring_is_refused_as_fit_data() -> None:
    kept = unseen(KERNELS)[0]

    check_apart(every_point(), KERNELS)
    with pytest.raises(FileFormatError, match=f"1 measured points.*'{kept.name}' first; take them"):
        check_apart([*every_point()[:5], kept], KERNELS)

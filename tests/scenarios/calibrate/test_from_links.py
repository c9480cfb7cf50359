"""`calibrate --links`: a profile with the messages and collectives that a file was timed with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerwise.calibration.data import FOLDER, profile_path
from layerwise.scenarios.calibrate.from_links import refits_of
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.profile import Profile, Regime, TransferFit, load_profile, write_profile
from tests.scenarios.conftest import Run

TWO_H200 = FOLDER / "traces" / "two-h200" / "links.json"
SLOW = TransferFit(regimes=(Regime(from_bytes=0, latency_s=1.0, bytes_per_s=1e9),), source="old")


def changed(folder: Path, **head: Any) -> Path:
    """The committed links of two H200s with other words at their head."""
    data = json.loads(TWO_H200.read_text())
    environment = data["environment"] | head.pop("environment", {})
    path = folder / "links.json"
    path.write_text(json.dumps(data | head | {"environment": environment}))
    return path


@pytest.fixture(scope="module")
def slow() -> Profile:
    """An H200 whose messages take a second."""
    shipped = load_profile(profile_path("h200"))
    return replace(shipped, transfers=shipped.transfers | {"send.nvlink4": SLOW})


def test_what_was_timed_takes_the_place_of_what_was_there(
    layerwise: Run, tmp_path: Path, slow: Profile
) -> None:
    base, out = tmp_path / "base.json", tmp_path / "new.json"
    write_profile(slow, base)
    ran = layerwise(
        "calibrate", "--links", TWO_H200, "--profile", base, "--gpu", "h200", "--out", out
    )
    assert 0 == ran.code, ran.err
    new, timed = (
        load_profile(out),
        {"all_gather.nccl.2", "all_reduce.nccl.2", "all_reduce.one_shot.2", "send.nvlink4"},
    )

    assert (slow.fits, slow.machine) == (new.fits, new.machine)
    assert timed == {
        name for name, fit in new.transfers.items() if fit.source.endswith("2026-11-23: links.json")
    }
    assert {n: f for n, f in slow.transfers.items() if n not in timed} == {
        n: f for n, f in new.transfers.items() if n not in timed
    }
    assert f"h200, digest {slow.digest}" == new.provenance["links_onto"]
    assert "NVIDIA H200" in new.provenance["links"]
    assert "links/links.json" in new.data_hashes
    assert "Kept from h200: all_gather.nccl.4" in ran.out


def test_errors_are_of_payloads_that_are_held_out(slow: Profile) -> None:
    refits = {one.name: one for one in refits_of(TWO_H200, slow, GPUS["h200"], {})}
    sent = refits["send.nvlink4"]

    assert not {size for size, _ in sent.timings.fit} & {size for size, _ in sent.timings.score}
    assert sent.old_error is not None and sent.old_error > 100
    assert sent.new_error is not None and sent.new_error < 0.1


def test_messages_are_of_the_wire_of_the_gpu(slow: Profile) -> None:
    names = {one.name for one in refits_of(TWO_H200, slow, GPUS["b200"], {})}
    assert {"send.nvlink5"} == {name for name in names if name.startswith("send")}


def test_without_a_base_the_shipped_profile_of_the_timed_gpu_is_taken(
    layerwise: Run, tmp_path: Path
) -> None:
    ran = layerwise("calibrate", "--links", TWO_H200, "--out", tmp_path / "new.json")
    assert (0, "h200") == (ran.code, load_profile(tmp_path / "new.json").gpu)


@pytest.mark.parametrize(
    ("head", "options", "says"),
    [
        ({}, ("--gpu", "h100-sxm"), "was timed on NVIDIA H200 (132 SMs"),
        ({"environment": {"gpu": "NVIDIA B200"}}, ("--gpu", "h200"), "was timed on NVIDIA B200"),
        (
            {"environment": {"device": "cpu"}},
            ("--gpu", "h200"),
            "device='cpu', and a profile is of",
        ),
        ({"num_series_done": 3}, ("--gpu", "h200"), "was cut short, 3 of 14 series"),
        ({"format": "other"}, ("--gpu", "h200"), "is no file of `layerwise links`"),
        ({"timings": []}, ("--gpu", "h200"), "has no timings in graphs to fit"),
        (
            {"pairs": [{"ranks": [0, 1], "joined_by": "the system"}]},
            ("--gpu", "h200"),
            "ranks were joined by the system",
        ),
        ({"environment": {"gpu": "mine"}}, (), "--gpu='mine' is no GPU known by this name"),
    ],
)
def test_links_that_do_not_fit_the_profile_are_refused(
    layerwise: Run, tmp_path: Path, head: dict[str, Any], options: tuple[str, ...], says: str
) -> None:
    out = tmp_path / "new.json"
    ran = layerwise("calibrate", "--links", changed(tmp_path, **head), *options, "--out", out)
    assert (2, True) == (ran.code, says in ran.err), ran.err
    assert not out.exists()


def test_links_and_another_task_are_two_tasks(layerwise: Run, tmp_path: Path) -> None:
    ran = layerwise("calibrate", "--links", TWO_H200, "--fit", tmp_path, "--out", tmp_path / "p")
    assert (2, True) == (
        ran.code,
        "give one of --collect, --fit, --anchor, --for and --links" in ran.err,
    )


def test_its_help_fits_a_screen(layerwise: Run) -> None:
    ran = layerwise("calibrate", "--help")
    assert "--links FILE" in ran.out
    assert len(ran.out.splitlines()) <= 40

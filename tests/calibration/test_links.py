"""Own link timings: both versions of the file, what is fitted, and what only scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerwise.calibration.data import FOLDER
from layerwise.calibration.links import LinkTimings, fit_links, mean_error, read_links
from layerwise.calibration.transfers import KIB, MIB, read_transfers
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.profile import Regime, TransferFit

TWO_H200 = FOLDER / "traces" / "two-h200" / "links.json"
LINE = TransferFit(regimes=(Regime(from_bytes=0, latency_s=5e-6, bytes_per_s=200e9),), source="")


def timing(op: str, payload_bytes: int, **changed: Any) -> dict[str, Any]:
    """A record that lies on LINE."""
    return {
        "op": op,
        "mode": "graph",
        "ranks": [0, 1],
        "payload_bytes": payload_bytes,
        "use": "fit",
        "median_s": LINE.seconds(payload_bytes),
        **changed,
    }


def write(folder: Path, *timings: dict[str, Any], **head: Any) -> Path:
    path = folder / "links.json"
    whole = {"format": "layerwise-links", "version": 1, "timings": timings} | head
    path.write_text(json.dumps(whole))
    return path


def test_payloads_that_score_are_kept_from_the_fit(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        timing("all_reduce", 2048),
        timing("all_reduce", 1024),
        timing("all_reduce", 1536, use="score", median_s=1.0),
        timing("all_reduce", 4096, use="survey"),
    )
    expected = LinkTimings(((1024, LINE.seconds(1024)), (2048, LINE.seconds(2048))), ((1536, 1.0),))

    assert {"all_reduce.nccl.2": expected} == read_links(path)


def test_names_are_those_of_a_profile(tmp_path: Path) -> None:
    every = list(range(8))
    path = write(
        tmp_path,
        timing("send", KIB),
        timing("send", KIB, ranks=[0, 7]),
        timing("bidirectional", KIB),
        timing("reduce_scatter", KIB),
        timing("all_gather", KIB, ranks=every),
        timing("all_reduce", KIB, ranks=every),
        timing("one_shot", KIB),
        timing("all_reduce", KIB, ranks=[0, 1, 2, 3], mode="eager"),
    )

    assert ["all_gather.nccl.8", "all_reduce.nccl.8", "all_reduce.one_shot.2", "send.own"] == list(
        read_links(path, "own")
    )


def test_everything_measured_has_a_name_beside_those_of_a_profile(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        timing("send", KIB),
        timing("send", KIB, ranks=[0, 7]),
        timing("bidirectional", KIB),
        timing("reduce_scatter", KIB, ranks=[0, 1, 2, 3]),
        timing("ring", KIB, ranks=[0, 1, 2, 3]),
        timing("two_shot", KIB),
    )

    assert [
        "bidirectional.own.0-1",
        "reduce_scatter.nccl.4",
        "ring.own.4",
        "send.own",
        "send.own.0-7",
    ] == list(read_links(path, "own", everything=True))


def test_a_one_shot_all_reduce_takes_two_shots_where_the_engine_does(tmp_path: Path) -> None:
    sizes = (128 * KIB, 256 * KIB, 512 * KIB)
    path = write(
        tmp_path,
        *(timing("one_shot", size, median_s=1.0) for size in sizes),
        *(timing("two_shot", size, median_s=2.0) for size in sizes),
    )

    found = read_links(path)["all_reduce.one_shot.2"].fit
    assert tuple(zip(sizes, (1.0, 1.0, 2.0), strict=True)) == found


def test_the_first_version_holds_the_shorter_of_two_ranks_times(tmp_path: Path) -> None:
    path = tmp_path / "links.json"
    path.write_text(json.dumps([{"send": [[8, 3.0], [16, 4.0]]}, {"send": [[8, 2.0], [16, 5.0]]}]))

    assert {"send.nvlink4": LinkTimings(((8, 2.0), (16, 4.0)))} == read_links(path)


def test_a_fit_finds_the_line_that_timings_lie_on(tmp_path: Path) -> None:
    sizes = [KIB * 2**n for n in range(16)]
    path = write(
        tmp_path,
        *(timing("all_reduce", size) for size in sizes),
        timing("all_reduce", 3 * MIB // 2, use="score"),
    )
    links = read_links(path)
    fit = fit_links(links, "made up")["all_reduce.nccl.2"]

    assert "made up" == fit.source
    assert mean_error(fit, links["all_reduce.nccl.2"].score) < 1e-3


def test_mean_error_is_of_what_was_measured() -> None:
    assert 0.75 == mean_error(LINE, [(0, 5e-6 / 2), (0, 10e-6)])


def test_two_h200s_are_fitted_where_the_public_table_is_far_off() -> None:
    links = read_links(TWO_H200)["all_reduce.nccl.2"].fit
    own = fit_links(read_links(TWO_H200), "")["all_reduce.nccl.2"]
    public = read_transfers(FOLDER / "transfers.json")["all_reduce.nccl.2"]

    assert mean_error(own, links) < 0.03
    # The public table was taken with in-switch reduction.
    assert mean_error(public, links) > 0.15


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "does not say format='layerwise-links'"),
        ([{}], "is no file of link timings"),
        ({"format": "layerwise-links", "version": 1}, "KeyError.*timings"),
        ({"format": "layerwise-links", "version": 1, "timings": [{"mode": "graph"}]}, "ranks"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: object, says: str) -> None:
    path = tmp_path / "links.json"
    path.write_text(json.dumps(data))

    with pytest.raises(
        FileFormatError,
        match=f"links.json: is no file of link timings.*{says}" if "is no" not in says else says,
    ):
        read_links(path)

"""Counted bytes beside predicted ones: joins, sums, shares, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from layerwise.hw.counters.op_counters import FORMAT, GROUPS, VERSION, Counters, OpCounters
from layerwise.scenarios.accuracy.counters import (
    compare_counters,
    compared_as_data,
    read_counters,
)
from layerwise.scenarios.commands.machines import COMMITTED_COUNTERS
from layerwise.sim.plan.errors import (
    FileFormatError,
    ProfileMismatchError,
    SpecError,
    TraceMismatchError,
)
from layerwise.sim.plan.files import load_scenario
from layerwise.sim.profile import Profile
from layerwise.sim.trace import as_data
from layerwise.sim.traffic import traffic_of
from tests.conftest import Run

READS, HITS, WRITES, DRAM_READ, DRAM_WRITE, TIME = GROUPS["memory"]
ASKED, NEAR, FAR = GROUPS["partitions"]
H100 = {"gpu": "pretend H100", "num_sms": "132", "l2_bytes": "52428800"}
H200 = {"gpu": "pretend H200", "num_sms": "132", "l2_bytes": "62914560"}


def op_counters(op: str, read_bytes: float, hbm_bytes: float) -> OpCounters:
    """Of every other byte that an SM reads, the half of the L2 beside it must ask the other."""
    sectors = read_bytes / 32
    hits = sectors - hbm_bytes / 32
    return OpCounters(
        op=op,
        kernels=("k1", "k2"),
        metrics={
            READS: 1.5 * sectors,
            HITS: hits,
            WRITES: 1.0,
            DRAM_READ: hbm_bytes,
            DRAM_WRITE: 64.0,
            TIME: 1e-6,
            ASKED: sectors,
            NEAR: hits / 2,
            FAR: hits / 2,
        },
    )


def counted(
    profile: Profile, name: str = "h1024-warm", missed: Callable[[int, int], float] = lambda m, _: m
) -> Counters:
    """Counters that agree with the prediction, unless `missed` makes others of (misses, hits)."""
    scenario = load_scenario(COMMITTED_COUNTERS / f"{name}.toml")
    traffic = traffic_of(scenario, profile)
    ops = tuple(
        op_counters(
            op, t.hbm_read_bytes + t.l2_read_bytes, missed(t.hbm_read_bytes, t.l2_read_bytes)
        )
        for op, t in traffic.items()
    )
    return Counters(
        name=name,
        scenario=as_data(scenario),
        ops=ops,
        ops_run=(*traffic, "P0.act.recv@m0"),
        passes={"memory": 1, "partitions": 1},
        warm_ups=5,
        environment=H100,
    )


def write(counters: Counters, path: Path, **changes: object) -> Path:
    data = {"format": FORMAT, "version": VERSION} | asdict(counters) | changes
    path.write_text(json.dumps(data))
    return path


def test_a_prediction_that_is_right_has_no_error(profile: Profile) -> None:
    found = compare_counters(counted(profile), profile)
    assert all(0 == pytest.approx(one.hit_error) for one in found.ops)
    assert found.total.predicted_hit == pytest.approx(found.total.counted_hit)
    assert 0 == pytest.approx(found.median_absolute_hit_error)


def test_errors_of_hits_are_differences_of_shares(profile: Profile) -> None:
    # A tenth of what each op reads came from HBM and should have hit.
    counters = counted(profile, missed=lambda miss, hit: miss + 0.1 * (miss + hit))
    found = compare_counters(counters, profile)
    assert all(one.hit_error == pytest.approx(0.1) for one in found.ops)
    assert found.total.hit_error == pytest.approx(0.1)
    assert found.median_absolute_hit_error == pytest.approx(0.1)


def test_layers_are_summed_and_lookups_are_told_from_reads(profile: Profile) -> None:
    found = compare_counters(counted(profile, "h1024-cold"), profile)
    groups = {one.op: one for one in found.groups}
    qkv = groups["attn.qkv"]
    assert qkv.counted is not None
    assert (9, 18) == (qkv.count, len(qkv.counted.kernels))
    assert 9 * (3 * 1024 * 1024 * 2 + 8 * 1024 * 2) == qkv.demand_bytes
    assert 1.5 * qkv.demand_bytes == pytest.approx(qkv.counted.l2_lookup_bytes)
    assert qkv.counted_hit == pytest.approx(qkv.counted.served_share)
    assert qkv.counted_hit / 1.5 == pytest.approx(qkv.counted.lookup_hit_share)
    assert found.total.demand_bytes == sum(one.demand_bytes for one in found.groups)


def test_an_op_without_kernels_is_listed_with_nothing_read(profile: Profile) -> None:
    counters = counted(profile)
    found = compare_counters(replace(counters, ops=counters.ops[1:]), profile)
    assert ("L00.attn.norm@m0",) == found.without_kernels
    assert 0 == found.ops[0].hbm_read_bytes


def test_chosen_ops_are_compared_alone(profile: Profile) -> None:
    counters = counted(profile)
    only = replace(counters, ops=counters.ops[1:3], ops_run=tuple(o.op for o in counters.ops[1:3]))
    assert only.ops_run == tuple(one.op for one in compare_counters(only, profile).ops)


def test_an_op_that_nobody_predicted_is_named(profile: Profile) -> None:
    counters = counted(profile)
    strange = (*counters.ops, op_counters("L00.surprise@m0", 64, 64))
    with pytest.raises(
        TraceMismatchError, match="1 ops are counted and not predicted: L00.surprise"
    ):
        compare_counters(replace(counters, ops=strange), profile)


def test_counters_of_no_predicted_op_are_refused(profile: Profile) -> None:
    with pytest.raises(TraceMismatchError, match="are of none of the predicted ops"):
        compare_counters(replace(counted(profile), ops=(), ops_run=("x",)), profile)


def test_predictions_are_for_the_gpu_that_was_measured(profile: Profile) -> None:
    counters = replace(counted(profile), environment=H200)
    with pytest.raises(ProfileMismatchError, match="are of an h200 and profile 'synthetic' is of"):
        compare_counters(counters, profile)
    found = compare_counters(counters, replace(profile, gpu="h200"))
    # 60 MiB of L2 hold all of a layer of 38 MB: what an H100 would have missed was counted.
    assert 1.0 == found.total.predicted_hit


def test_a_gpu_that_nobody_knows_is_refused(profile: Profile) -> None:
    with pytest.raises(ProfileMismatchError, match="num_sms=7 and l2_bytes=None, and no known GPU"):
        compare_counters(replace(counted(profile), environment={"num_sms": "7"}), profile)


def test_reads_of_working_sets_follow_the_curve_of_one_kernel(profile: Profile) -> None:
    sizes = {"read.32MB": 32_000_000, "read.48MB": 48_000_000}
    counters = Counters(
        name="reads",
        ops_run=tuple(sizes),
        working_sets_bytes=sizes,
        passes={},
        warm_ups=3,
        ops=tuple(op_counters(name, size, 0.0) for name, size in sizes.items()),
        environment=H100,
    )
    small, large = compare_counters(counters, profile).ops
    ramp = (0.95 * 52_428_800 - 48_000_000) / (0.2 * 52_428_800)
    assert (1.0, 1.0) == (small.predicted_hit, small.counted_hit)
    assert ramp == pytest.approx(large.predicted_hit, abs=1e-6)


def test_files_are_read_back(profile: Profile, tmp_path: Path) -> None:
    counters = counted(profile)
    assert counters == read_counters(write(counters, tmp_path / "c.json"))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"format": "layerwise-trace"},
            FileFormatError,
            "does not say format='layerwise-counters'",
        ),
        ({"version": 99}, FileFormatError, "version=99 is another than 1"),
        ({"warm_ups": "many"}, SpecError, "warm_ups='many'"),
        ({"surprise": 1}, SpecError, "surprise=1 is not a known key"),
    ],
)
def test_other_files_are_refused(
    profile: Profile, tmp_path: Path, changes: dict[str, object], kind: type, message: str
) -> None:
    with pytest.raises(kind, match=message):
        read_counters(write(counted(profile), tmp_path / "c.json", **changes))


def test_table_has_the_ops_and_the_step_in_100_columns(
    profile: Profile, profile_file: Path, tmp_path: Path, layerwise: Run
) -> None:
    counters = counted(profile, "h1024-cold", lambda miss, hit: miss + 0.1 * (miss + hit))
    path = write(replace(counters, num_outside=3), tmp_path / "c.json")
    ran = layerwise("compare", "--counters", path, "--profile", profile_file)
    assert 0 == ran.code, ran.err
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert ["attn.qkv x9"] == [line[:11] for line in lines if line.startswith("attn.qkv")]
    (total,) = (line.split() for line in lines if line.startswith("all "))
    assert "+10.0" in total
    said = " ".join(" ".join(lines).split())
    assert "median absolute error of hits 10.0 points" in said
    assert "3 kernels ran outside all ops" in said


def test_json_holds_every_op_by_its_full_name(
    profile: Profile, profile_file: Path, tmp_path: Path, layerwise: Run
) -> None:
    counters = counted(profile)
    path = write(counters, tmp_path / "c.json")
    ran = layerwise("compare", "--counters", path, "--json", "--profile", profile_file)
    (data,) = json.loads(ran.out)["counters"]
    assert compared_as_data(compare_counters(counters, profile)) == data
    assert [one.op for one in counters.ops] == [one["op"] for one in data["ops"]]
    assert data["total"]["demand_bytes"] == sum(one["demand_bytes"] for one in data["ops"])


def test_several_files_are_compared_in_their_order(
    profile: Profile, profile_file: Path, tmp_path: Path, layerwise: Run
) -> None:
    names = ("h1024-warm", "h1024-cold")
    paths = [write(counted(profile, name), tmp_path / f"{name}.json") for name in names]
    given = [each for path in paths for each in ("--counters", path)]
    ran = layerwise("compare", *given, "--json", "--profile", profile_file)
    assert list(names) == [one["name"] for one in json.loads(ran.out)["counters"]]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), "missing.json: cannot be read"),
        (("--all", "--level", "op"), "does not go with ['--all', '--level']; leave them out"),
    ],
)
def test_what_goes_wrong_is_one_line(
    tmp_path: Path, layerwise: Run, more: tuple[str, ...], says: str
) -> None:
    ran = layerwise("compare", "--counters", tmp_path / "missing.json", *more)
    assert (2, 1) == (ran.code, len(ran.err.splitlines()))
    assert says in ran.err

from __future__ import annotations

from pathlib import Path

import pytest

from layerwise.calibration.dataset import (
    Measurement,
    check_sweep,
    gpu_with_ramp,
    graph_launch_seconds,
    read_sweep,
    read_text,
    steady_traffic,
    tables,
)
from layerwise.calibration.points import SweepPoint, matmul, point
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.errors import FileFormatError
from tests.calibration.fabricated import (
    GRAPH_LAUNCH_S,
    L2,
    every_point,
    measured,
    some_points,
    write_sweep,
)

GOOD = '{"name": "a", "step_s": 1e-3, "num_ops": 2}\n'


def launch_points() -> list[SweepPoint]:
    return [point for point in every_point() if point.kind == "graph_launch"]


def small_matmul(warm: bool) -> SweepPoint:
    op = matmul(8, 2048, 2048)
    return point("matmul", "m8", op, op.weight.num_bytes, warm)


def test_cold_weights_miss_every_time() -> None:
    traffic = steady_traffic(small_matmul(warm=False), L2)

    assert 2 * 2048 * 2048 <= traffic.hbm_read_bytes


def test_small_warm_weights_hit_every_time() -> None:
    warm = small_matmul(warm=True)
    demand, traffic = demand_of(warm.op), steady_traffic(warm, L2)

    assert (0, demand.read_bytes) == (traffic.hbm_read_bytes, traffic.l2_read_bytes)
    assert demand.written_bytes == traffic.written_bytes


def test_l2_ramp_runs_between_its_two_edges() -> None:
    l2 = gpu_with_ramp("h100-sxm", 0.5, 1.5)
    size = l2.cluster.gpu.l2_bytes

    assert [1.0, 1.0, 0.5, 0.0, 0.0] == [
        l2.hit_fraction(round(share * size)) for share in (0.1, 0.5, 1.0, 1.5, 3.0)
    ]
    assert 1.5 * size == l2.hit_horizon_bytes


def test_sweep_survives_its_file(tmp_path: Path) -> None:
    found = measured(some_points()[:20])
    write_sweep(found, tmp_path / "sweep.jsonl")

    assert found == read_sweep(tmp_path / "sweep.jsonl")


def test_points_that_failed_or_did_not_fit_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    path.write_text(GOOD + '{"name": "b", "does_not_fit": "80 GB"}\n{"name": "c", "failed": "x"}\n')

    assert {"a": Measurement(1e-3, 2)} == read_sweep(path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not JSON", "line 2 is not a sweep point"),
        ('{"name": "b", "num_ops": 2}', "line 2 is not a sweep point: 'step_s'"),
        ('{"name": "b", "step_s": "fast", "num_ops": 2}', "line 2 is not a sweep point"),
        ('{"step_s": 1.0, "num_ops": 2}', "line 2 is not a sweep point: 'name'"),
        ("[1, 2]", "line 2 is not a sweep point"),
        ('{"name": "b", "step_s": 0.0, "num_ops": 2}', "line 2: b took 0.0 s"),
        ('{"name": "b", "step_s": NaN, "num_ops": 2}', "line 2: b took nan s"),
    ],
)
def test_bad_lines_are_refused_with_their_number(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "sweep.jsonl"
    path.write_text(GOOD + line + "\n")

    with pytest.raises(FileFormatError, match=says):
        read_sweep(path)


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="none.txt: cannot be read"):
        read_text(tmp_path / "none.txt")


def test_measurements_of_another_sweep_are_refused() -> None:
    found = measured(some_points()[:3])
    check_sweep(some_points(), found)

    with pytest.raises(FileFormatError, match="1 measured points are not in the sweep, 'odd'"):
        check_sweep(some_points(), found | {"odd": Measurement(1.0, 1)})


def test_measurements_with_other_repeats_are_refused() -> None:
    first = some_points()[0]

    with pytest.raises(FileFormatError, match="was measured with 999 ops .* measure again"):
        check_sweep(some_points(), {first.name: Measurement(1.0, 999)})


def test_launch_of_a_graph_is_the_intercept_over_its_ops() -> None:
    found = {
        p.name: Measurement(6e-6 + 2e-6 * p.num_repeats, p.num_repeats) for p in launch_points()
    }

    assert 6e-6 == pytest.approx(graph_launch_seconds(launch_points(), found))


def test_short_graphs_do_not_tell_the_launch() -> None:
    found = {
        p.name: Measurement(6e-6 + 2e-6 * p.num_repeats, p.num_repeats) for p in launch_points()
    }
    host_bound = {
        p.name: Measurement(1e-3, p.num_repeats) for p in launch_points() if p.num_repeats < 32
    }

    assert 6e-6 == pytest.approx(graph_launch_seconds(launch_points(), found | host_bound))


def test_too_few_launch_points_are_refused() -> None:
    with pytest.raises(FileFormatError, match="fewer than three graph_launch points"):
        graph_launch_seconds(launch_points(), {})


def test_tables_hold_the_measured_points_of_each_kind() -> None:
    norms = [p for p in some_points() if p.kind == "norm"][:6]
    found = measured([*norms[:4], *launch_points()], noise=0.0)

    joined = tables(norms + launch_points(), found, L2, GRAPH_LAUNCH_S)

    assert ["norm"] == list(joined)
    assert [p.name for p in norms[:4]] == list(joined["norm"].names)
    assert 4 == len(joined["norm"])
    assert joined["norm"].seconds == pytest.approx(
        [(found[p.name].step_s - GRAPH_LAUNCH_S) / p.num_repeats for p in norms[:4]]
    )


def test_rows_can_be_taken_by_mask() -> None:
    points = some_points()[:40]
    table = next(t for t in tables(points, measured(points), L2).values() if len(t) > 4)

    half = table.take(table.is_cold)

    assert [n for n in table.names if n.endswith("/cold")] == list(half.names)
    assert len(half) == len(half.seconds) == len(half.features) == len(half.head_dim)

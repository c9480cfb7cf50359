"""Sweeps: one line per point, resumed by name, stopped by a budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerwise.hw.sweep import measure_programs, names_in
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice, compile_step
from layerwise.sim.plan.errors import FileFormatError, ProgramError
from layerwise.sim.plan.ops import Buffer
from layerwise.sim.plan.placement import tensor_pipeline
from layerwise.sim.plan.program import Part, Program, Segment
from layerwise.sim.plan.workload import decode_steps
from tests.hw.scenes import TINY

POOL_BYTES = 8 * 2**20


def point(rows: int, columns: int = 64) -> tuple[str, Program]:
    op = ops.Matmul(
        name="matmul",
        source=Buffer("in", "activation", (rows, 32), "float32"),
        weight=Buffer("weight", "weight", (columns, 32), "float32", per_layer=True),
        output=Buffer("out", "activation", (rows, columns), "float32"),
        rows=rows,
        columns=columns,
        inner=32,
    )
    segment = Segment((op,))
    parts = tuple(Part(segment, f"L{layer:02d}", layer, 0) for layer in range(3))
    program = Program(rank=0, stage=0, replica=0, tensor_rank=0, tensor_parallel=1, parts=parts)
    return f"m{rows}.n{columns}", program


def sweep(points: list[tuple[str, Program]], out: Path, budget_s: float = 60.0) -> int:
    return measure_programs(
        points,
        device="cpu",
        out=out,
        budget_s=budget_s,
        pool_bytes=POOL_BYTES,
        progress=lambda line: None,
    )


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_each_point_is_a_line(tmp_path: Path) -> None:
    out = tmp_path / "points.jsonl"
    assert 0 == sweep([point(1), point(2)], out)
    first, second = lines(out)
    assert ("m1.n64", "m2.n64") == (first["name"], second["name"])
    assert 3 == first["num_ops"]
    assert 0 < float(str(first["best_s"])) <= float(str(first["step_s"]))


def test_a_sweep_resumes_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "points.jsonl"
    sweep([point(1)], out)
    before = out.read_text()
    sweep([point(1), point(2)], out)
    assert out.read_text().startswith(before)
    assert {"m1.n64", "m2.n64"} == names_in(out)


def test_a_line_cut_short_is_measured_again(tmp_path: Path) -> None:
    out = tmp_path / "points.jsonl"
    sweep([point(1)], out)
    with out.open("a") as file:
        file.write('{"name": "m2.n6')
    sweep([point(1), point(2)], out)
    assert ["m1.n64", "m2.n64"] == [line["name"] for line in lines(out)]


def test_a_spent_budget_leaves_points_to_do(tmp_path: Path) -> None:
    assert 2 == sweep([point(1), point(2)], tmp_path / "points.jsonl", budget_s=-1.0)


def test_a_point_that_does_not_fit_is_an_answer(tmp_path: Path) -> None:
    out = tmp_path / "points.jsonl"
    sweep([point(1, columns=2**17), point(1)], out)
    assert "the point needs 0.05 GiB" in str(lines(out)[0]["does_not_fit"])
    assert "step_s" in lines(out)[1]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "points.jsonl"
    out.write_text("not json\n")
    with pytest.raises(FileFormatError, match="not a sweep's file"):
        sweep([point(1)], out)


def test_ops_with_peers_are_refused(tmp_path: Path) -> None:
    (step,) = decode_steps((1,), 4, 1)
    placement = tensor_pipeline(TINY, tensor_parallel=2)
    program = compile_step(TINY, placement, step, KernelChoice()).programs[0]
    with pytest.raises(ProgramError, match="all_reduce@m0 needs another rank"):
        sweep([("tp", program)], tmp_path / "points.jsonl")


def test_a_kernel_that_refuses_is_recorded_and_the_sweep_goes_on(tmp_path: Path) -> None:
    (step,) = decode_steps((1,), 4, 1)
    kernels = KernelChoice(decode_attention="cudnn")
    program = compile_step(TINY, tensor_pipeline(TINY), step, kernels).programs[0]
    out = tmp_path / "points.jsonl"
    sweep([("cudnn", program), point(1)], out)
    assert "L00.attn.sdpa@m0 failed" in str(lines(out)[0]["failed"])
    assert "step_s" in lines(out)[1]

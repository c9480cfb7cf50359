"""Figures on the CPU, at tiny dimensions: what is compared is the same work, misses are misses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.figures.attention import AttentionPoint, DecodeAttention, attention_points
from layerwise.hw.figures.bench import (
    Bench,
    best_of,
    copies_for,
    lone,
    one_layer,
    ops_of,
    rotating,
)
from layerwise.hw.figures.host_time import host_times
from layerwise.hw.figures.matmuls import MatmulPoint, blas_library, matmul_points
from layerwise.hw.figures.pointwise import KERNELS, pointwise_points
from layerwise.hw.figures.prefill import prefill_share
from layerwise.hw.figures.report import Outcome, Verdict, table, write
from layerwise.hw.figures.run import FIGURES, Request, chosen, take
from layerwise.hw.figures.small_layer import (
    SmallLayer,
    against_plain,
    cache_of,
    input_of,
    plain_of,
    position_of,
)
from layerwise.hw.figures.stages import floor_share, traced_against_untraced
from layerwise.hw.figures.two_gpus import PipelineCase, pipeline, pipelines
from layerwise.hw.instrument.timing import Replay, Spread, in_turns, issue_seconds, spread_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.program import buffers_of
from layerwise.sim.plan.workload import Workload
from tests.conftest import Run
from tests.hw.scenes import TINY

CPU = torch.device("cpu")
DECODE = Workload(batch_size=3, context_tokens=12, num_microbatches=1)


def steady(replay: Replay, count: int) -> list[float]:
    """A timer by which every repeat takes a millisecond; one of them does run."""
    replay()
    return [1e-3] * count


def bench(timer: Callable[[Replay, int], list[float]] = steady) -> Bench:
    return Bench(
        device=CPU,
        timer=timer,
        kernels=KernelChoice(),
        launch="eager",
        timings=("clock",),
        read_rate=lambda device: 1e9,
        progress=lambda line: None,
    )


def verdict(seen: float | None, **changed: object) -> Verdict:
    usual = Verdict(what="it", sense="at least", bar=0.93, seen=seen, unit="share")
    return replace(usual, **changed)


@dataclass(frozen=True)
class Found:
    verdicts: tuple[Verdict, ...] = ()
    lines: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("sense", "seen", "word"),
    [
        ("at least", 0.93, "pass"),
        ("at least", 0.929, "MISS"),
        ("at most", 0.93, "pass"),
        ("at most", 0.931, "MISS"),
        ("below", 0.929, "pass"),
        ("below", 0.93, "MISS"),
        ("at least", None, "not measured"),
        ("at most", None, "not measured"),
    ],
)
def test_a_verdict_passes_only_what_was_seen_and_meets_its_bar(
    sense: str, seen: float | None, word: str
) -> None:
    found = verdict(seen, sense=sense)
    assert (word, word == "pass") == (found.word, found.passes)


def test_the_table_shows_bars_misses_and_failures() -> None:
    outcomes = [
        Outcome(name="good", took_s=1.0, result=Found((verdict(0.95),))),
        Outcome(name="bad", took_s=1.0, result=Found((verdict(0.5, note="hot"),))),
        Outcome(name="gone", took_s=1.0, problem="ValueError: no"),
        Outcome(name="told", took_s=1.0, result=Found()),
    ]
    cells = [[cell for cell in line.split("  ") if cell] for line in table(outcomes)]
    assert [
        ["figure", "what", "bar", "seen", "verdict"],
        ["good", "it", "at least 93.0%", "95.0%", "pass"],
        ["bad", "it", "at least 93.0%", "50.0%", "MISS: hot"],
        ["gone", "ValueError: no", "FAILED"],
        ["told", "reported only", "measured"],
    ] == [[cell.strip() for cell in row] for row in cells]


def test_the_json_has_verdicts_results_and_failures(tmp_path: Path) -> None:
    found = FoundStep(verdicts=(verdict(0.5),), step_s=2.0)
    outcomes = [
        Outcome(name="a", took_s=1.5, result=found, clocks={"power_w_before": "70"}),
        Outcome(name="b", took_s=0.5, problem="no"),
    ]
    write(
        tmp_path / "new" / "figures.json",
        outcomes,
        {"gpu": "H100"},
        "layerwise figures",
    )
    whole = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert {"gpu": "H100"} == whole["environment"]
    assert (0.5, 0.93, False) == tuple(
        whole["figures"]["a"]["verdicts"][0][key] for key in ("seen", "bar", "passes")
    )
    assert 2.0 == whole["figures"]["a"]["result"]["step_s"]
    assert {"took_s": 0.5, "clocks": {}, "failed": "no"} == whole["figures"]["b"]
    assert ["figures.json"] == [path.name for path in (tmp_path / "new").iterdir()]


@dataclass(frozen=True)
class FoundStep(Found):
    step_s: float = 0.0


def test_a_figure_that_fails_does_not_stop_the_others() -> None:
    def fails(bench: Bench) -> Found:
        raise ValueError("no such\n kernel")

    kept: list[int] = []
    outcomes = take(
        {"bad": fails, "good": lambda bench: Found((verdict(0.95),))},
        bench(),
        lambda so_far: kept.append(len(so_far)),
    )
    assert ["ValueError: no such kernel", ""] == [outcome.problem for outcome in outcomes]
    assert [False, True] == [outcome.passes for outcome in outcomes]
    assert [1, 2] == kept


def test_two_gpus_are_asked_of_those_that_have_them() -> None:
    assert list(FIGURES) == list(chosen([], 1))
    assert [*FIGURES, "two-gpus"] == list(chosen([], 2))
    assert ["stage-8", "prefill"] == list(chosen(["prefill", "stage-8"], 1))
    assert ["two-gpus"] == list(chosen([], 2, two_gpus_only=True))


def test_an_unknown_figure_is_refused_by_name() -> None:
    with pytest.raises(NotAvailableError, match="--only 'stage-9' is no figure"):
        chosen(["stage-9"], 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
@pytest.mark.parametrize(
    ("device", "says"),
    [("cuda", "1 CUDA GPUs are needed here"), ("cpu", "--device cpu: the figures are a GPU's")],
)
def test_without_a_gpu_it_says_so_in_a_line(
    tmp_path: Path, layerwise: Run, device: str, says: str
) -> None:
    ran = layerwise("figures", "--out", tmp_path / "figures.json", "--device", device)
    assert (2, 1) == (ran.code, len(ran.err.splitlines()))
    assert says in ran.err


def test_the_json_says_how_it_was_asked_for(
    tmp_path: Path, layerwise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def take_figures(request: Request) -> list[Outcome]:
        asked.append(request)
        return [Outcome(name="good", took_s=1.0, result=Found((verdict(0.95),)))]

    monkeypatch.setattr("layerwise.hw.figures.run.take_figures", take_figures)
    assert 0 == layerwise("figures", "--out", tmp_path / "f.json", "--only", "matmuls").code
    assert f"layerwise figures --out {tmp_path}/f.json --only matmuls" == asked[0].command


def test_a_missed_bar_is_exit_code_1(
    tmp_path: Path, layerwise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = Outcome(name="bad", took_s=1.0, result=Found((verdict(0.5),)))
    monkeypatch.setattr("layerwise.hw.figures.run.take_figures", lambda request: [missed])
    ran = layerwise("figures", "--out", tmp_path / "f.json")
    assert (1, True) == (ran.code, "MISS" in ran.out)


def test_the_plain_layer_computes_what_the_engine_computes() -> None:
    engine = lone(one_layer(bench(), TINY, DECODE), CPU)
    layer, start = plain_of(TINY, engine), input_of(engine).clone()
    kv = cache_of(engine).clone()
    with torch.no_grad():
        expected = layer(start, kv, position_of(engine))
    engine.run()
    assert 11 == position_of(engine)
    torch.testing.assert_close(input_of(engine), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cache_of(engine), kv, rtol=1e-5, atol=1e-5)


def test_dynamo_takes_the_plain_layer_whole() -> None:
    engine = lone(one_layer(bench(), TINY, DECODE), CPU)
    layer = plain_of(TINY, engine)
    compiled = torch.compile(layer, backend="aot_eager", dynamic=False, fullgraph=True)
    start, kv = input_of(engine).clone(), cache_of(engine)
    with torch.no_grad():
        torch.testing.assert_close(
            layer(start, kv.clone(), 11), compiled(start, kv.clone(), 11, None)
        )
    torch.compiler.reset()


def test_a_rival_that_does_other_work_or_fails_is_left_out() -> None:
    def refuses(layer: torch.nn.Module) -> Callable[..., torch.Tensor]:
        raise RuntimeError("no compiler")

    rivals = {
        "plain": (lambda layer: layer, ""),
        "compile wrong": (lambda layer: lambda hidden, *rest: hidden.clone(), ""),
        "compile refuses": (refuses, ""),
    }
    found = against_plain(bench(), TINY, DECODE, rivals, rounds=2, round_s=1e-3)
    assert ["plain"] == list(found.rivals_s)
    assert found.errors["plain"] < 1e-5
    assert "not the same work" in found.problems["compile wrong"]
    assert "RuntimeError: no compiler" == found.problems["compile refuses"]
    assert "not measured" == found.verdicts[1].word


def test_the_best_compiled_rival_is_the_one_to_beat() -> None:
    def one(seconds: float) -> Spread:
        return Spread(seconds, seconds, seconds)

    rivals = {"plain torch": one(20e-6), "compile": one(40e-6), "compile best": one(29e-6)}
    found = SmallLayer(
        engine_s=one(30e-6), rivals_s=rivals, errors=dict.fromkeys(rivals, 0.0), problems={}
    )
    absolute, relative = found.verdicts
    assert ("pass", "MISS") == (absolute.word, relative.word)
    assert "compile best" == relative.note


def test_a_stage_is_held_against_the_better_reading_of_its_floor() -> None:
    rates = iter([1e6, 2e6])
    asked = one_layer(bench(), TINY, DECODE, repeats=3)
    found = floor_share(replace(bench(), read_rate=lambda device: next(rates)), asked, 0.9)
    matmuls = TINY.matmul_parameters_per_layer * 4
    norms, kv = 2 * 64 * 4, 3 * 12 * TINY.kv_bytes_per_token_per_layer
    assert matmuls + norms + kv == found.read_bytes
    assert 2e6 == found.read_bytes_per_s
    assert found.read_bytes / 2e6 / found.step_s.median == found.share


def test_tracing_is_compared_with_not_tracing() -> None:
    asked = one_layer(bench(), TINY, DECODE, repeats=3)
    (step,) = traced_against_untraced(bench(), [asked]).steps
    assert ("h64", "clock", ()) == (step.what, step.timing, step.notes)
    assert step.traced_s.median / step.untraced_s.median == step.ratio


def test_a_tracer_that_cannot_be_had_is_noted_and_the_next_one_used() -> None:
    asked = one_layer(bench(), TINY, DECODE, repeats=3)
    found = traced_against_untraced(replace(bench(), timings=("cupti", "clock")), [asked])
    assert "clock" == found.steps[0].timing
    assert "cupti cannot be used on cpu" in found.lines[0]
    assert "timed by clock" == found.verdicts[0].note


def test_prefill_is_held_against_its_matmuls_and_attention_alone() -> None:
    workload = Workload(phase="prefill", batch_size=1, context_tokens=16, num_microbatches=1)
    asked = one_layer(bench(), TINY, workload)
    found = prefill_share(bench(), asked, 32, rounds=2, round_s=1e-3)
    computing = ["attn.qkv", "attn.sdpa", "attn.out", "mlp.gate_up", "mlp.down"]
    assert computing == list(found.alone_s)
    # A graph of n copies and the stage take the same by this timer: the sum of 1/n is left.
    copies = [
        copies_for(op, bench().l2_bytes) for name, op in ops_of(asked).items() if name in computing
    ]
    assert pytest.approx(sum(1 / n for n in copies)) == found.share
    assert 2 * 32**3 / 1e-3 == found.flops_per_s["probe"]


def test_host_time_counts_what_is_launched_and_not_what_is_only_viewed() -> None:
    (case,) = host_times(bench(), [(TINY, 12)], samples=3).cases
    assert 10 == case.engine_ops
    assert case.plain_ops > 10 and case.plain_views > 10
    assert case.engine_s.median > 0 and case.plain_s.median > 0


@pytest.mark.parametrize("prompt_from", [4, 3], ids=["a decode", "a prompt"])
def test_plain_arithmetic_is_that_of_the_fused_kernels(
    prompt_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerwise.hw.figures.pointwise.PROMPT_FROM", prompt_from)
    found = pointwise_points(bench(), [(3, 128)], {"eager": {"backend": "eager"}}, 60.0)
    assert list(KERNELS) == [point.kernel for point in found.points]
    assert [""] * 4 == [point.problem for point in found.points]
    assert all(point.error < 1e-2 for point in found.points)
    assert [1.0] * 4 == [point.ratio for point in found.points]


def test_points_beyond_the_budget_are_counted() -> None:
    found = pointwise_points(bench(), [(3, 128), (4, 128)], {}, -1.0)
    assert (0, 8) == (len(found.points), found.num_left_out)


def test_every_variant_multiplies_every_shape() -> None:
    variants = {
        "mm": ("", lambda s, w, out: torch.mm(s, w.t(), out=out)),
        "mm again": ("", lambda s, w, out: torch.mm(s, w.t(), out=out)),
    }
    found = matmul_points(bench(), [(TINY, 3, True), (TINY, 5, False)], variants)
    shapes = [(256 // 2, 64), (64, 64), (256, 64), (64, 128)]
    assert shapes * 2 == [(point.columns, point.inner) for point in found.points]
    assert [3] * 4 + [5] * 4 == [point.rows for point in found.points]
    assert 0.0 == found.noise


def test_the_gain_of_a_variant_is_what_it_saves_of_the_engines_time() -> None:
    point = MatmulPoint(
        what="w", rows=1, columns=2, inner=3, warm=False, seconds={"mm": 4e-6, "linear": 3e-6}
    )
    assert ("linear", 0.25) == (point.best, point.gain)


def test_a_preferred_library_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    preferred = ["cublas"]

    def prefer(name: str | None = None) -> str:
        preferred.append(name or preferred[-1])
        return preferred[-1]

    monkeypatch.setattr("torch.backends.cuda.preferred_blas_library", prefer)
    with blas_library("cublaslt"):
        assert "cublaslt" == preferred[-1]
    assert "cublas" == preferred[-1]


def test_decode_attention_is_timed_by_kernel_and_refusals_are_kept() -> None:
    found = attention_points(bench(), [(2, 4, 2, 16)], ("math", "split_kv", "cudnn"), 60.0)
    (point,) = found.points
    assert ["math", "split_kv"] == list(point.seconds)
    assert ["cudnn"] == list(point.problems)
    assert 2 * 2 * 2 * 16 * 128 * 2 == point.kv_bytes
    assert best_of(point.seconds) == point.best


def test_a_kernel_loses_where_another_is_clearly_faster() -> None:
    timed = [
        AttentionPoint(
            sequences=1,
            num_heads=1,
            num_key_value_heads=1,
            context_tokens=1,
            kv_bytes=1,
            seconds={"cudnn": 1.0, "flash": other},
            problems={},
        )
        for other in (0.98, 0.96)
    ]
    found = DecodeAttention(chosen="cudnn", points=tuple(timed))
    assert [False, True] == [found.loses_at(each) for each in timed]


def test_two_ranks_are_held_against_their_slower_stage_alone() -> None:
    asked = pipeline(bench(), TINY, 8, 2, 4, 4, 1)
    (case,) = pipelines(bench(), [replace(asked, run=replace(asked.run, repeats=3))]).cases
    slower_s = max(stage.median for stage in case.alone_s)
    assert 2 == len(case.alone_s)
    assert slower_s / case.pipeline_s.median == case.share


def test_a_pipeline_that_waits_misses() -> None:
    step = Spread(2.0, 2.0, 2.0)
    case = PipelineCase(what="p", batch_size=4, pipeline_s=step, alone_s=(step,), share=0.94)
    assert "94.0% of what the slower one allows" in case.line


def test_rotating_sets_share_nothing_and_exceed_the_cache() -> None:
    op = ops_of(one_layer(bench(), TINY, DECODE))["mlp.gate_up"]
    copies = copies_for(op, 100_000)
    assert copies * sum(b.num_bytes for b in buffers_of(op)) >= 2 * 100_000
    part = rotating(op, copies, CPU)
    pointers = {
        part.tensor(placed, buffer).data_ptr()
        for placed in part.program
        for buffer in buffers_of(placed.op)
    }
    assert 3 * copies == len(pointers)
    assert isinstance(op, ops.Matmul)


def test_turns_give_each_a_reading_in_every_round() -> None:
    order: list[str] = []

    def timer(replay: Replay, count: int) -> list[float]:
        replay()
        return [0.5] * count

    replays: dict[str, Replay] = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    found = in_turns(replays, timer, rounds=2, round_s=0.0, settle=1)
    assert {"a": [0.5, 0.5], "b": [0.5, 0.5]} == found
    assert ["a", "b"] * 3 == order[4:]


def test_a_spread_is_per_repeat() -> None:
    assert Spread(2.0, 1.0, 4.0) == spread_of([8.0, 2.0, 4.0], 2.0)


def test_issuing_is_timed_by_the_hosts_clock() -> None:
    calls: list[int] = []
    found = issue_seconds(lambda: calls.append(1), CPU, samples=5)
    assert 5 == len(found) and all(each >= 0 for each in found)
    assert 3 + 5 * 4 == len(calls)

"""What `layerwise measure` and `layerwise compare` say of a measurement besides its numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.calibration.data import FOLDER
from layerwise.scenarios.measure.measuring import summary
from layerwise.sim.profile import Profile
from layerwise.sim.trace import Trace, read_trace, write_trace
from tests.scenarios.conftest import Run, fake_trace

# A trace that was taken with a tracer that cost 3.5 %, and says so in its own numbers.
DISTURBED = FOLDER / "traces/fit-h100-sxm/layers/h768.kv6.l16.b1.c256.decode.jsonl.gz"
MARK = "the per-op split is disturbed by the tracer (x1.035)"


@pytest.fixture(scope="module")
def trace(profile: Profile) -> Trace:
    return replace(
        fake_trace(profile),
        untraced_step_s=(0.010, 0.012, 0.011, 0.010, 0.013),
        traced_step_s=(0.0112,),
        measured={},
        environment={},
    )


def test_step_times_come_with_repeats_and_spread(trace: Trace) -> None:
    expected = (
        "median step 11 ms of 5 repeats, half of them 10 to 12.5, all 10 to 13, "
        "traced / untraced 1.018 (1 traced)"
    )
    assert expected == summary(trace)


def test_fewer_than_four_repeats_have_no_spread(trace: Trace) -> None:
    few = replace(trace, untraced_step_s=(0.01, 0.02), traced_step_s=())
    assert "median step 15 ms of 2 repeats" == summary(few)


def test_joules_power_and_clocks_are_a_line(trace: Trace) -> None:
    measured = {
        "energy_per_step_j": 5.2,
        "energy_per_token_j": 0.65,
        "energy_uncertainty": 0.02,
        "mean_power_w": 480.0,
        "max_power_w": 610.0,
        "mean_sm_clock_hz": 1.85e9,
        "min_sm_clock_hz": 1.7e9,
        "max_temperature_c": 58.0,
    }
    expected = (
        "5.2 J a step, 0.65 J a token (+-2%); 480 W, at most 610 W a GPU; "
        "SM clock 1850 MHz, at least 1700 MHz; 58 C"
    )
    assert expected == summary(replace(trace, measured=measured)).splitlines()[1]


@pytest.mark.parametrize(
    "environment",
    [{"power": "not sampled: no NVML"}, {"power": "9 samples", "energy": "not sampled: no NVML"}],
)
def test_a_missing_energy_says_why(trace: Trace, environment: dict[str, str]) -> None:
    said = summary(replace(trace, environment=environment)).splitlines()
    assert "energy: not sampled: no NVML" == said[1]


def test_whatever_marks_a_run_is_a_line(trace: Trace) -> None:
    marked = replace(
        trace,
        traced_step_s=(0.0117,),
        environment={
            "throttled": "software power cap (83% of samples)",
            "throttled_before": "no",
            "throttled_after": "software power cap",
            "throttled_traced": "no",
            "timing_fallback": "CUPTI refuses: taken",
        },
    )
    assert [
        "caution: the per-op split is disturbed by the tracer (x1.064)",
        "caution: ops were timed by CUDA events, not by CUPTI: CUPTI refuses: taken",
        "caution: the GPU throttled in the timed repeats: software power cap (83% of samples)",
    ] == summary(marked).splitlines()[1:]


def test_a_trace_without_samples_tells_throttling_by_its_ends(trace: Trace) -> None:
    old = replace(
        trace, environment={"throttled_before": "no", "throttled_after": "software power cap"}
    )
    assert ("the GPU throttled at the end of the run: software power cap",) == old.cautions()


@pytest.mark.parametrize(("ratio", "disturbed"), [(1.029, False), (1.031, True), (0.99, False)])
def test_the_limit_of_the_tracer(trace: Trace, ratio: float, disturbed: bool) -> None:
    assert disturbed == replace(trace, traced_step_s=(0.011 * ratio,)).is_disturbed


def test_a_committed_trace_that_the_tracer_disturbed_is_marked() -> None:
    trace = read_trace(DISTURBED)
    assert MARK in trace.cautions()
    assert f"caution: {MARK}" in summary(trace).splitlines()


@pytest.mark.parametrize("level", ["op", "run"])
def test_compare_marks_a_disturbed_and_throttled_run(
    layerwise: Run, profile: Profile, profile_file: Path, tmp_path: Path, level: str
) -> None:
    clean = fake_trace(profile)
    slow = tuple(1.1 * seconds for seconds in clean.untraced_step_s)
    marked = replace(
        clean,
        purpose="other",
        traced_step_s=slow,
        environment={"throttled": "hardware thermal (9% of samples)"},
    )
    write_trace(marked, tmp_path / "marked.jsonl")
    ran = layerwise(
        "compare",
        "--measured",
        tmp_path / "marked.jsonl",
        "--level",
        level,
        "--profile",
        profile_file,
    )
    assert 1 == ran.out.count("stage: the per-op split is disturbed by the tracer (x1.100).\n")
    assert "stage: not scored: the GPU throttled in the timed repeats: hardware thermal" in ran.out


def test_compare_marks_in_json_too(
    layerwise: Run, profile: Profile, profile_file: Path, tmp_path: Path
) -> None:
    clean = fake_trace(profile)
    slow = tuple(1.1 * seconds for seconds in clean.untraced_step_s)
    found: list[tuple[bool, list[str], float]] = []
    for name, traced in (("clean", clean.traced_step_s), ("slow", slow)):
        write_trace(replace(clean, traced_step_s=traced), tmp_path / name)
        ran = layerwise(
            "compare", "--measured", tmp_path / name, "--json", "--profile", profile_file
        )
        one = json.loads(ran.out)["traces"][0]
        found.append((one["is_disturbed"], one["cautions"], one["stage"]["traced_ratio"]))
    mark = "the per-op split is disturbed by the tracer (x1.100)"
    assert [(False, [], pytest.approx(1.01)), (True, [mark], pytest.approx(1.1))] == found


def small_file(folder: Path, more: str = "") -> Path:
    file = folder / "scenario.toml"
    file.write_text(
        'name = "small"\n'
        "[model]\n"
        'name = "small"\nnum_layers = 1\nhidden_size = 64\nintermediate_size = 128\n'
        'num_attention_heads = 4\nnum_key_value_heads = 2\nhead_dim = 16\ndtype = "float32"\n'
        '[placement]\nstrategy = "tensor-pipeline"\n'
        "[workload]\nbatch_size = 2\ncontext_tokens = 8\nnum_microbatches = 1\n"
        f'[run]\nlaunch = "eager"\nrepeats = 5\n{more}'
    )
    return file


def test_measure_prints_what_it_found(layerwise: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = small_file(tmp_path)
    ran = layerwise("measure", file, "--out", tmp_path / "trace.jsonl", "--device", "cpu")
    assert 0 == ran.code, ran.err
    assert "ms of 5 repeats, half of them" in ran.err
    assert "energy: not sampled: NVML reads GPUs, and this ran on the CPU" in ran.err
    assert "clock" == read_trace(tmp_path / "trace.jsonl").timing


def test_a_field_is_changed_for_a_measurement_and_it_is_said(
    layerwise: Run, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "trace.jsonl"
    ran = layerwise(
        "measure",
        small_file(tmp_path),
        "--out",
        out,
        "--device",
        "cpu",
        "--set",
        "workload.batch_size=4",
    )
    assert 0 == ran.code, ran.err
    assert "changed: workload.batch_size=4" in ran.err
    assert 4 == read_trace(out).scenario["workload"]["batch_size"]


@pytest.mark.parametrize(
    ("key", "workload"),
    [
        ("decode_attention", ()),
        ("prefill_attention", ("workload.phase=prefill",)),
        (
            "chunked_prefill_attention",
            ("workload.phase=prefill", "workload.prefill_chunk_tokens=4"),
        ),
    ],
)
def test_cudnn_attention_on_the_cpu_says_what_runs_there(
    layerwise: Run, tmp_path: Path, key: str, workload: tuple[str, ...]
) -> None:
    pytest.importorskip("torch")
    file = small_file(tmp_path, f'[kernels]\n{key} = "cudnn"\n')
    ran = layerwise(
        "measure",
        file,
        "--out",
        tmp_path / "trace.jsonl",
        "--device",
        "cpu",
        *(f"--set={each}" for each in workload),
    )
    assert 2 == ran.code
    assert f"kernels.{key}='cudnn' runs on GPUs alone, and --device is 'cpu'" in ran.err
    assert "use 'math' or 'flash'" in ran.err
    assert not (tmp_path / "trace.jsonl").exists()


def test_cudnn_attention_that_a_run_never_meets_is_no_matter(
    layerwise: Run, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    file = small_file(tmp_path, '[kernels]\nprefill_attention = "cudnn"\n')
    ran = layerwise("measure", file, "--out", tmp_path / "trace.jsonl", "--device", "cpu")
    assert 0 == ran.code, ran.err


def test_a_run_on_the_cpu_without_kernels_is_compared_and_not_scored(
    layerwise: Run, tmp_path: Path, profile_file: Path
) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "trace.jsonl"
    ran = layerwise("measure", small_file(tmp_path), "--out", out, "--device", "cpu")
    assert 0 == ran.code, ran.err
    compared = layerwise("compare", "--measured", out, "--level", "run", "--profile", profile_file)
    assert (0, True) == (compared.code, "not scored: it was measured on a CPU" in compared.out), (
        compared.err
    )
    assert "math" == read_trace(out).scenario["kernels"]["decode_attention"]

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from layerwise.sim.plan.errors import (
    FileFormatError,
    SpecError,
    UnknownKeyError,
    UnsupportedModelError,
)
from layerwise.sim.plan.files import (
    NEWER_GPU_FIELDS,
    load_gpu,
    load_model_config,
    load_scenario,
    scenario_from_data,
    scenario_json_schema,
)
from layerwise.sim.plan.hardware import GPUS, HDR200, PCIE4, SlowParts
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.overrides import with_values
from layerwise.sim.plan.scenario import paper_scenario
from layerwise.sim.plan.workload import Workload

GOOD = """
name = "question"
[model]
preset = "paper-16"
num_layers = 4
[cluster]
num_gpus = 8
[placement]
strategy = "tensor-pipeline"
tensor_parallel = 4
[workload]
batch_size = 16
[run]
num_steps = 2
"""
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
}


def scenario_file(folder: Path, text: str) -> Path:
    path = folder / "question.toml"
    path.write_text(text)
    return path


def config_file(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**LLAMA, **changes}))
    return path


def refusal(path: Path) -> SpecError:
    with pytest.raises(SpecError) as error:
        load_scenario(path)
    return error.value


def test_scenario_file_resolves_presets_and_overrides(tmp_path: Path) -> None:
    scenario = load_scenario(scenario_file(tmp_path, GOOD))

    assert "question" == scenario.name
    assert replace(MODELS["paper-16"], num_layers=4) == scenario.model
    assert 8 == scenario.cluster.num_gpus
    assert Workload(batch_size=16) == scenario.workload


def test_scenario_without_a_name_is_called_after_its_file(tmp_path: Path) -> None:
    assert "question" == load_scenario(scenario_file(tmp_path, "[model]\npreset='paper-16'")).name


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[model]\npreset='paper-16'\n[workload]\nbatchsize=4",
            "workload.batchsize=4 is not a known key; did you mean 'batch_size'?",
        ),
        (
            "[model]\npreset='paper-16'\n[placment]\nstrategy='layer-wise'",
            "placment={'strategy': 'layer-wise'} is not a known key; did you mean 'placement'?",
        ),
        (
            "[model]\npreset='paper-16'\n[kernels]\nall_reduc='nccl'",
            "kernels.all_reduc='nccl' is not a known key; did you mean 'all_reduce'?",
        ),
        (
            "[model]\npreset='paper-16'\nhiden_size=4",
            "model.hiden_size=4 is not a known key; did you mean 'hidden_size'?",
        ),
        (
            "[model]\npreset='paper-99'",
            "model.preset='paper-99' is not known; did you mean 'paper-16'?",
        ),
        (
            "[model]\npreset='paper-16'\n[cluster]\ngpu='h100'",
            (
                "cluster.gpu='h100' is not known; did you mean 'h100-pcie' or 'h100-sxm'? "
                "(one's own: the path of a .toml file)"
            ),
        ),
        (
            "[model]\npreset='paper-16'\nconfig='c.json'",
            "model.config='c.json' and model.preset are both given; keep one of them",
        ),
        (
            "[model]\npreset='paper-16'\nnum_layers=0",
            "model.num_layers=0 is not positive; use 1 or more",
        ),
        (
            "[model]\npreset='paper-16'\n[cluster]\nnum_gpus=12",
            "cluster.num_gpus=12 does not fill nodes of 8 GPUs; use a multiple of 8",
        ),
        (
            "[model]\npreset='paper-16'\n[workload]\nbatch_size=0",
            "workload.batch_size=0 is not positive; use 1 or more",
        ),
        (
            "[model]\nhidden_size=64",
            "model.num_layers=None is missing; add num_layers = ...",
        ),
        (
            "name='x'",
            "model=None is missing; add a [model] table with a preset, a config or dimensions",
        ),
    ],
)
def test_wrong_scenario_is_refused_in_the_files_own_keys(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = scenario_file(tmp_path, text)

    assert f"{path}: {problem}" == str(refusal(path))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[model]\npreset='paper-16'\n[workload]\nbatch_size='4'", "workload.batch_size"),
        ("[model]\npreset='paper-16'\n[workload]\nbatch_size=4.5", "workload.batch_size"),
        ("[model]\npreset='paper-16'\n[workload]\nphase='train'", "workload.phase"),
        ("[model]\npreset='paper-16'\n[placement]\nstrategy='random'", "placement.strategy"),
        ("[model]\npreset='paper-16'\n[run]\nlaunch='fast'", "run.launch"),
        ("[model]\npreset='paper-16'\n[cluster]\ngpus_per_node=0", "cluster.gpus_per_node"),
        ("[model]\npreset='paper-16'\n[run]\nnum_steps=0", "run.num_steps"),
        ("model='paper-16'", "model"),
    ],
)
def test_wrong_value_is_refused_naming_its_key(tmp_path: Path, text: str, key: str) -> None:
    path = scenario_file(tmp_path, text)

    assert (key, str(path)) == (refusal(path).key, refusal(path).source)


def test_key_far_from_every_known_one_lists_them(tmp_path: Path) -> None:
    error = refusal(scenario_file(tmp_path, "[model]\npreset='paper-16'\n[run]\nzzz=1"))

    assert isinstance(error, UnknownKeyError)
    assert error.fix.startswith("known keys are ['context_growth_tokens', ")


@pytest.mark.parametrize("content", [b"[model", b"\xff\xfe", b"{}"])
def test_scenario_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "question.toml"
    path.write_bytes(content)

    with pytest.raises(FileFormatError, match="question.toml: is not a TOML file"):
        load_scenario(path)


def test_missing_scenario_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="none.toml: cannot be read: No such file"):
        load_scenario(tmp_path / "none.toml")


def test_scenario_names_a_config_beside_it(tmp_path: Path) -> None:
    config_file(tmp_path)
    scenario = load_scenario(scenario_file(tmp_path, "[model]\nconfig='config.json'"))

    assert 8 == scenario.model.num_key_value_heads


def test_scenario_survives_a_trace_header() -> None:
    scenario = paper_scenario("layer-wise")

    assert scenario == scenario_from_data(json.loads(json.dumps(asdict(scenario))), "trace")


def test_scenario_in_a_trace_header_is_checked_again() -> None:
    data = asdict(paper_scenario("layer-wise"))
    data["model"]["num_layers"] = 0

    with pytest.raises(SpecError, match="trace: model.num_layers=0 is not positive"):
        scenario_from_data(data, "trace")


def test_a_trace_header_older_than_a_gpu_field_gets_the_known_gpus_value() -> None:
    data = asdict(paper_scenario("layer-wise"))
    for key in NEWER_GPU_FIELDS:
        del data["cluster"]["gpu"][key]

    assert paper_scenario("layer-wise") == scenario_from_data(data, "trace")


def test_a_trace_header_keeps_the_gpu_field_that_it_has() -> None:
    data = asdict(paper_scenario("layer-wise"))
    data["cluster"]["gpu"]["persisting_l2_bytes"] = 0

    assert 0 == scenario_from_data(data, "trace").cluster.gpu.persisting_l2_bytes


def test_cluster_may_name_its_wires(tmp_path: Path) -> None:
    wires = '[cluster]\nnvlink = "pcie4"\nnic = "hdr200"'
    cluster = load_scenario(scenario_file(tmp_path, GOOD.replace("[cluster]", wires))).cluster

    assert (PCIE4, HDR200) == (cluster.nvlink, cluster.nic)


def test_cluster_may_name_its_slow_parts(tmp_path: Path) -> None:
    slow = "[cluster.slow]\ngpus = [5]\nclock_share = 0.7\nports = [3, 4]\nnvlink_share = 0.5\n"
    cluster = load_scenario(scenario_file(tmp_path, f"{GOOD}{slow}")).cluster

    assert cluster.slow == SlowParts(gpus=(5,), clock_share=0.7, ports=(3, 4), nvlink_share=0.5)


@pytest.mark.parametrize(
    ("slow", "problem"),
    [
        (
            "gpus = [5]\nclock_share = 7",
            "cluster.slow.clock_share=7.0 is no share of full speed; use",
        ),
        ("gpus = [8]", "cluster.slow.gpus=(8,) names a rank beyond the 8 GPUs; use 0 to 7"),
        ("hbm_share = 0.5", "cluster.slow.hbm_share=0.5 slows nobody: gpus is empty; name"),
        ("gpu = [5]", "cluster.slow.gpu=[5] is not a known key; did you mean 'gpus'?"),
        ("gpus = 5", "cluster.slow.gpus=5 is wrong: "),
    ],
)
def test_wrong_slow_parts_are_refused_in_the_files_own_keys(
    tmp_path: Path, slow: str, problem: str
) -> None:
    path = scenario_file(tmp_path, f"{GOOD}[cluster.slow]\n{slow}\n")

    assert str(refusal(path)).startswith(f"{path}: {problem}")


def test_schema_describes_slow_parts() -> None:
    slow = scenario_json_schema()["$defs"]["SlowParts"]["properties"]

    assert {"gpus", "clock_share", "hbm_share", "ports", "nvlink_share", "nic_share"} == set(slow)
    assert "array" == slow["gpus"]["type"]


def test_slow_parts_survive_a_trace_header() -> None:
    slow = {"cluster.slow.gpus": (5, 6), "cluster.slow.clock_share": 0.7}
    scenario = with_values(paper_scenario("layer-wise"), slow)

    assert scenario == scenario_from_data(json.loads(json.dumps(asdict(scenario))), "trace")


def test_a_trace_header_older_than_slow_parts_has_none() -> None:
    data = asdict(paper_scenario("layer-wise"))
    del data["cluster"]["slow"]

    assert paper_scenario("layer-wise") == scenario_from_data(data, "trace")


def test_unknown_wire_is_refused(tmp_path: Path) -> None:
    wire = '[cluster]\nnvlink = "nvlink"'
    error = refusal(scenario_file(tmp_path, GOOD.replace("[cluster]", wire)))

    assert str(error).endswith(
        "cluster.nvlink='nvlink' is not known; did you mean 'nvlink3' or 'nvlink4' or 'nvlink5'?"
    )


def test_schema_names_every_table() -> None:
    assert {"name", "model", "cluster", "placement", "workload", "run", "kernels"} == set(
        scenario_json_schema()["properties"]
    )


def test_grouped_query_model_is_imported(tmp_path: Path) -> None:
    model = load_model_config(config_file(tmp_path))

    assert (32, 32, 8, 128) == (
        model.num_layers,
        model.num_attention_heads,
        model.num_key_value_heads,
        model.head_dim,
    )
    assert (14_336, 128_256, 500_000.0) == (
        model.intermediate_size,
        model.vocab_size,
        model.rope_theta,
    )


def test_model_without_kv_heads_has_as_many_as_heads(tmp_path: Path) -> None:
    model = load_model_config(config_file(tmp_path, num_key_value_heads=None))

    assert 32 == model.num_key_value_heads


def test_explicit_head_dim_wins(tmp_path: Path) -> None:
    assert 64 == load_model_config(config_file(tmp_path, head_dim=64)).head_dim


def test_imported_model_is_called_after_its_folder(tmp_path: Path) -> None:
    assert tmp_path.name == load_model_config(config_file(tmp_path)).name


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_local_experts": 8, "model_type": "mixtral"}, "num_local_experts"),
        ({"n_routed_experts": 64}, "n_routed_experts"),
        ({"model_type": "gpt2"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"attention_bias": True}, "attention_bias"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_model_outside_the_described_is_refused(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    path = config_file(tmp_path, **changes)

    with pytest.raises(UnsupportedModelError) as error:
        load_model_config(path)

    assert (key, str(path)) == (error.value.key, error.value.source)


def test_mixture_of_experts_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="num_local_experts=8 is a mixture of experts"):
        load_model_config(config_file(tmp_path, num_local_experts=8))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_wrong_config_value_is_refused(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as error:
        load_model_config(config_file(tmp_path, **changes))

    assert key == error.value.key


@pytest.mark.parametrize("content", ["{", "[]"])
def test_config_that_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)

    with pytest.raises(FileFormatError, match="config.json: .* JSON"):
        load_model_config(path)


def test_gpu_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gpu.toml"
    path.write_text("\n".join(f"{k} = {v!r}" for k, v in asdict(GPUS["h200"]).items()))

    assert GPUS["h200"] == load_gpu(path)


def test_gpu_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gpu.toml"
    path.write_text("num_sm = 4")

    with pytest.raises(SpecError, match="gpu.toml: num_sm=4 is not a known key; did you mean 'num"):
        load_gpu(path)


def test_missing_gpu_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="none.toml: cannot be read: No such file"):
        load_gpu(tmp_path / "none.toml")


def test_cluster_may_name_a_gpu_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nnum_sms = 100\npeak_flops_per_s = 1e15\nhbm_bytes = 1000000000\n'
        "hbm_bytes_per_s = 1e12\nl2_bytes = 1000000\nl2_bytes_per_s = 5e12\nsource = 'mine'\n"
    )
    scenario = tmp_path / "scenario.toml"
    scenario.write_text('[model]\npreset = "paper-16"\n[cluster]\ngpu = "mine.toml"\n')

    assert "mine" == load_scenario(scenario).cluster.gpu.name


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype='float8_e4m3fn'"),
        ({"torch_dtype": 7}, "torch_dtype=7"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config="),
        ({"rope_scaling": "x"}, "rope_scaling='x'"),
        ({"vocab_size": None}, "vocab_size=None"),
    ],
)
def test_config_fields_that_would_change_the_work_are_refused(
    tmp_path: Path, change: dict[str, object], key: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, **change}))

    with pytest.raises(SpecError, match=re.escape(key)):
        load_model_config(path)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", "bfloat16"), ("float16", "bfloat16"), ("float32", "float32")],
)
def test_config_dtype_is_kept(tmp_path: Path, dtype: str, expected: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, "torch_dtype": dtype}))

    assert expected == load_model_config(path).dtype


def test_tied_embeddings_count_once(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, "tie_word_embeddings": True}))
    tied = load_model_config(path)
    path.write_text(json.dumps(LLAMA))

    assert (
        tied.vocab_size * tied.hidden_size == load_model_config(path).parameters - tied.parameters
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[run]\nonly_rank = 99",
            "run.only_rank=99 is no rank of layer-wise over 16 GPUs; use 0 to",
        ),
        ("[placement]\ntensor_parallel = 8", "placement.tensor_parallel=8 has no meaning with"),
        ("[cluster]\nnum_gpus = 0", "cluster.num_gpus=0 is not positive; use 1 or more"),
        ("[cluster]\nnum_gpus = 32", "cluster.num_gpus=32 stages for model.num_layers=16"),
        ("[workload]\nbatch_size = 9223372036854775807", "is beyond any machine"),
        (
            "[workload]\nphase = 'prefill'\nprefill_chunk_tokens = 7",
            "cuts a prompt of 10000 tokens into 1429 steps; use 157 or more",
        ),
    ],
)
def test_impossible_requests_name_the_file_and_the_fix(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "s.toml"
    path.write_text('[model]\npreset = "paper-16"\n' + text)

    with pytest.raises(SpecError) as error:
        load_scenario(path)

    assert str(error.value).startswith(f"{path}: ")
    assert problem in str(error.value)

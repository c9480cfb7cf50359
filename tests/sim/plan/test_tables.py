"""One key space: what a file may say, `--set` says too, and it means the same."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from layerwise.sim.plan.compile import GivenKernels, KernelChoice
from layerwise.sim.plan.errors import SpecError, UnknownKeyError
from layerwise.sim.plan.files import Written, load_scenario, scenario_json_schema
from layerwise.sim.plan.hardware import GPUS, HDR200, NDR400, NVLINK3, NVLINK4, GpuSpec, LinkSpec
from layerwise.sim.plan.model import MODELS, ModelSpec
from layerwise.sim.plan.overrides import parse_settings, with_values
from layerwise.sim.plan.scenario import Scenario, paper_scenario
from layerwise.sim.plan.tables import SHORT, GpuTable, LinkTable, ModelTable, keys, tables_of
from layerwise.sim.predict import predict
from tests.synthetic import synthetic_profile

MODEL = '[model]\npreset = "paper-16"\n'
# Where a value needs another beside it, both are written; the first is what is set.
BESIDE: dict[str, str] = {
    "cluster.slow.clock_share": "cluster.slow.gpus = [5]",
    "cluster.slow.hbm_share": "cluster.slow.gpus = [5]",
    "cluster.slow.nvlink_share": "cluster.slow.ports = [5]",
    "cluster.slow.nic_share": "cluster.slow.ports = [5]",
    "placement.tensor_parallel": 'placement.strategy = "tensor-pipeline"',
    "placement.pipeline_parallel": 'placement.strategy = "tensor-pipeline"',
    "model.preset": "",
}
VALUES: dict[str, Any] = {
    "name": "other",
    "run.regime": "burst",
    "model.preset": "paper-30b",
    "model.config": "config.json",
    "model.dtype": "float32",
    "model.weight_dtype": "float8_e4m3fn",
    "model.kv_dtype": "float8_e4m3fn",
    "model.num_layers": 32,
    "model.num_attention_heads": 64,
    "cluster.gpu": "h200",
    "cluster.gpu.base": "h200",
    "cluster.nvlink": "pcie5",
    "cluster.nvlink.base": "pcie5",
    "cluster.nic": "hdr200",
    "cluster.nic.base": "hdr200",
    "cluster.num_gpus": 8,
    "cluster.gpus_per_node": 4,
    "cluster.gpu.persisting_l2_bytes": 1_000_000,
    "placement.strategy": "tensor-pipeline",
    "placement.num_gpus": 8,
    "placement.on_chip_bytes": 60_000_000,
    "workload.phase": "prefill",
    "run.launch": "eager",
    "run.only_rank": 2,
    "kernels.decode_attention": "flash",
    "kernels.prefill_attention": "flash",
    "kernels.chunked_prefill_attention": "flash",
    "kernels.all_reduce": "one_shot",
    "kernels.small_matmul": "skinny",
}
BY_TYPE: dict[Any, Any] = {int: 2, float: 0.5, bool: True, str: "other"}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}


def schema_keys(schema: dict[str, Any]) -> list[str]:
    """Every dotted key that the JSON schema has, also of tables that may be a name instead."""
    found: list[str] = []

    def walk(table: dict[str, Any], prefix: str) -> None:
        for name, field in table["properties"].items():
            forms = field.get("anyOf", [field])
            inner = [form["$ref"].rpartition("/")[2] for form in forms if "$ref" in form]
            if len(forms) > len(inner):
                found.append(prefix + name)
            for each in inner:
                walk(schema["$defs"][each], f"{prefix}{name}.")

    walk(schema, "")
    return found


KEYS = schema_keys(scenario_json_schema())


def value_of(key: str) -> Any:
    if key in VALUES:
        return VALUES[key]
    if key.endswith(("slow.gpus", "slow.ports")):
        return [3, 4]
    if key.endswith("_per_s"):
        return 2e12
    return 2_000_000_000 if key.endswith("_bytes") else BY_TYPE[keys()[key]]


def resolved(folder: Path, key: str, *, by_setting: bool) -> Scenario | str:
    """The scenario, or why there is none, with a key in the file or set beside it."""
    (folder / "config.json").write_text(json.dumps(LLAMA))
    value = value_of(key)
    lines = [BESIDE.get(key, ""), "" if by_setting else f"{key} = {json.dumps(value)}"]
    model = "" if key in ("model.config", "model.preset") else 'model.preset = "paper-16"'
    path = folder / "question.toml"
    path.write_text("\n".join([model, *lines]))
    settings = {key: str(value)} if by_setting else {}
    return load_scenario(path, settings)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_the_schema_means_set_what_it_means_in_a_file(tmp_path: Path, key: str) -> None:
    plain = load_scenario_without(tmp_path, key)
    in_file, by_setting = (resolved(tmp_path, key, by_setting=each) for each in (False, True))

    assert in_file == by_setting
    assert plain != in_file


def load_scenario_without(folder: Path, key: str) -> Scenario:
    path = folder / "question.toml"
    path.write_text(f'model.preset = "paper-16"\n{BESIDE.get(key, "")}')
    return load_scenario(path)


def test_set_takes_the_keys_of_the_schema_and_a_models_name() -> None:
    assert {*KEYS, "model"} == set(keys())


@pytest.mark.parametrize(("table", "spec"), [(GpuTable, GpuSpec), (LinkTable, LinkSpec)])
def test_a_table_with_a_base_has_every_field_of_what_it_makes(table: type, spec: type) -> None:
    assert {f.name for f in fields(table)} == {"base", *(f.name for f in fields(spec))}


def test_given_kernels_are_the_keys_of_a_choice() -> None:
    assert [f.name for f in fields(KernelChoice)] == [f.name for f in fields(GivenKernels)]


def scenario_of(folder: Path, text: str, **settings: object) -> Scenario:
    path = folder / "question.toml"
    path.write_text(MODEL + text)
    return load_scenario(path, settings)


def test_a_gpu_may_be_a_known_one_with_other_values(tmp_path: Path) -> None:
    table = '[cluster.gpu]\nbase = "a100-80gb"\nhbm_bytes = "96GB"\n'
    cluster = scenario_of(tmp_path, table).cluster

    said = "; what-if: hbm_bytes=96000000000"
    made = replace(GPUS["a100-80gb"], hbm_bytes=96 * 10**9, source=GPUS["a100-80gb"].source + said)
    assert (made, NVLINK3, HDR200) == (cluster.gpu, cluster.nvlink, cluster.nic)


def test_a_gpus_base_may_be_a_file_beside_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nnum_sms = 10\npeak_flops_per_s = 1e14\nhbm_bytes = "8GB"\n'
        'hbm_bytes_per_s = "1TB/s"\nl2_bytes = "8MB"\nl2_bytes_per_s = "2TB/s"\nsource = "me"\n'
    )
    gpu = scenario_of(tmp_path, '[cluster.gpu]\nbase = "mine.toml"\nnum_sms = 12\n').cluster.gpu

    assert ("mine", 12, "me; what-if: num_sms=12") == (gpu.name, gpu.num_sms, gpu.source)


def test_a_wire_without_a_base_is_the_gpus_usual_one(tmp_path: Path) -> None:
    cluster = scenario_of(tmp_path, '[cluster.nvlink]\nbytes_per_s = "225GB/s"\n').cluster

    assert ("nvlink4", 225e9, NDR400) == (
        cluster.nvlink.name,
        cluster.nvlink.bytes_per_s,
        cluster.nic,
    )


def test_a_wire_may_be_a_known_one_with_another_rate(tmp_path: Path) -> None:
    table = '[cluster.nic]\nbase = "hdr200"\nbytes_per_s = "20GB/s"\n'
    cluster = scenario_of(tmp_path, table).cluster

    assert ("hdr200", 20e9, NVLINK4) == (cluster.nic.name, cluster.nic.bytes_per_s, cluster.nvlink)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '[cluster.gpu]\nbase = "h100"',
            "cluster.gpu='h100' is not known; did you mean 'h100-pcie'",
        ),
        (
            "[cluster.gpu]\nl2_byte = 5",
            "cluster.gpu.l2_byte=5 is not a known key; did you mean 'l2_byt",
        ),
        (
            "[cluster.gpu]\nnum_sms = 0",
            "cluster.gpu.num_sms=0 is not positive; use a value above 0",
        ),
        ('[cluster.nic]\nbytes_per_s = "1GB"', "cluster.nic.bytes_per_s='1GB' has the unit 'GB'"),
        ("cluster.gpu = 5", "cluster.gpu=5 is wrong: "),
        ("cluster = 5", "cluster=5 is of another kind; write its keys under [cluster]"),
        ("name = 5", "name=5 is of another kind; write text in quotes"),
    ],
)
def test_a_wrong_table_is_refused_by_its_key_and_file(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "question.toml"
    path.write_text(f"{text}\n{MODEL}" if "=" in text.splitlines()[0] else MODEL + text)
    with pytest.raises(SpecError) as error:
        load_scenario(path)

    assert str(error.value).startswith(f"{path}: {problem}")


def test_a_setting_is_made_before_the_file_is_checked(tmp_path: Path) -> None:
    found = scenario_of(tmp_path, "[cluster]\nnum_gpus = 12\n", **{"cluster.num_gpus": "1_6"})

    assert 16 == found.cluster.num_gpus


def test_a_wrong_setting_does_not_blame_the_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        scenario_of(tmp_path, "", **{"cluster.num_gpus": "12"})

    assert str(error.value).startswith("cluster.num_gpus=12 does not fill nodes of 8 GPUs")


def test_a_name_replaces_the_whole_table(tmp_path: Path) -> None:
    table = '[cluster.gpu]\nbase = "h200"\nnum_sms = 99\n'
    found = scenario_of(tmp_path, table, **{"cluster.gpu": "b200", "model": "paper-30b"})

    assert (GPUS["b200"], MODELS["paper-30b"]) == (found.cluster.gpu, found.model)


def test_a_config_replaces_a_preset(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    found = scenario_of(tmp_path, "", model="config.json")

    assert 128_256 == found.model.vocab_size


def test_what_the_file_says_of_its_wires_stays_with_another_gpu(tmp_path: Path) -> None:
    cluster = scenario_of(
        tmp_path, '[cluster]\nnvlink = "nvlink3"\n', **{"cluster.gpu": "b200"}
    ).cluster

    assert NVLINK3 == cluster.nvlink


@pytest.mark.parametrize("written", ["64", "64.0", "6.4e1", " 64 "])
def test_numbers_are_set_as_people_write_them(written: str) -> None:
    found = with_values(paper_scenario("layer-wise"), {"workload.batch_size": written})

    assert 64 == found.workload.batch_size


@pytest.mark.parametrize(
    "key", [*SHORT, "cluster.num_gpus", "kernels.all_reduce", "cluster.slow.gpus"]
)
def test_the_tables_of_a_scenario_say_what_it_is(key: str) -> None:
    value = {"model": "paper-30b", "cluster.slow.gpus": "2"}.get(key) or str(value_of(key))
    changed = with_values(paper_scenario("layer-wise"), {key: value})

    assert changed == Written(tables_of(changed)).scenario()


def test_a_second_change_of_a_gpu_tells_of_both() -> None:
    once = with_values(paper_scenario("layer-wise"), {"cluster.gpu.num_sms": 100})
    twice = with_values(once, {"cluster.gpu.hbm_bytes": "96GB"}).cluster.gpu

    assert twice.source.endswith("; what-if: num_sms=100, hbm_bytes=96000000000")
    assert GPUS["h100-sxm"] == with_values(once, {"cluster.gpu": "h100-sxm"}).cluster.gpu


def test_a_file_named_on_the_command_line_is_one_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))

    assert {"model.config": str(tmp_path / "config.json")} == parse_settings(
        ["model.config=config.json"]
    )
    assert {"model.config": "other.json"} == parse_settings(["model.config=other.json"])


def test_some_kernels_of_a_file_leave_the_others_to_the_profile(tmp_path: Path) -> None:
    asked = scenario_of(tmp_path, '[kernels]\ndecode_attention = "flash"\n[workload]\nbatch_size=8')
    profile = replace(
        synthetic_profile(), kernels=KernelChoice(decode_attention="cudnn", small_matmul="skinny")
    )
    whole = replace(
        asked, given_kernels=None, kernels=replace(profile.kernels, decode_attention="flash")
    )
    asked, whole = (each.with_microbatches(8) for each in (asked, whole))

    assert predict(whole, profile).step_s == predict(asked, profile).step_s
    assert whole.kernels == asked.with_kernels(profile.kernels).kernels


def test_all_kernels_of_a_file_are_its_choice(tmp_path: Path) -> None:
    lines = "".join(f'{f.name} = "{f.default}"\n' for f in fields(KernelChoice))
    asked = scenario_of(tmp_path, f"[kernels]\n{lines}")

    assert (KernelChoice(), None) == (asked.kernels, asked.given_kernels)


def test_a_key_that_is_gone_names_its_replacement() -> None:
    with pytest.raises(UnknownKeyError, match=r"set cluster\.num_gpus, which counts those of all"):
        with_values(paper_scenario("layer-wise"), {"cluster.num_nodes": 2})


@pytest.mark.parametrize(
    ("table", "spec", "more"),
    [
        (GpuTable, GpuSpec, {"base"}),
        (LinkTable, LinkSpec, {"base"}),
        (ModelTable, ModelSpec, {"preset", "config"}),
    ],
)
def test_a_table_takes_every_field_of_what_it_describes(
    table: type, spec: type, more: set[str]
) -> None:
    assert {each.name for each in fields(spec)} | more == {each.name for each in fields(table)}

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerwise.sim.plan.compile import GivenKernels, KernelChoice
from layerwise.sim.plan.errors import PlacementError, SpecError, UnknownKeyError
from layerwise.sim.plan.hardware import GPUS, HDR200, NVLINK3, PCIE5, SlowParts
from layerwise.sim.plan.overrides import parse_settings, with_values
from layerwise.sim.plan.scenario import paper_scenario
from layerwise.sim.plan.tables import SHORT, keys

PAPER = replace(paper_scenario("layer-wise"), kernels=KernelChoice())
# What names a whole table is no field of a scenario.
NAMES = {*SHORT, "model.preset", "model.config", *(f"{key}.base" for key in SHORT)}


def value_at(spec: Any, key: str) -> Any:
    for part in key.split("."):
        spec = getattr(spec, part)
    return spec


def leaves() -> list[str]:
    return sorted(set(keys()) - NAMES)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("cluster.gpu.l2_bytes", 5e10, 50_000_000_000),
        ("cluster.gpu.l2_bytes", "11GiB", 11 * 2**30),
        ("workload.batch_size", 64, 64),
        ("model.num_key_value_heads", "8", 8),
        ("cluster.nvlink.bytes_per_s", "225GB/s", 225e9),
        ("cluster.gpu.peak_flops_per_s", "2PFLOP/s", 2e15),
        ("cluster.num_gpus", 8, 8),
        ("model.tie_word_embeddings", "true", True),
        ("model.tie_word_embeddings", False, False),
        ("run.launch", "eager", "eager"),
        ("model.rope_theta", 500_000, 500_000.0),
        ("name", "another", "another"),
        ("kernels.all_reduce", "one_shot", "one_shot"),
        ("cluster.slow.gpus", "5", (5,)),
        ("cluster.slow.gpus", "[5, 13]", (5, 13)),
        ("cluster.slow.ports", 7, (7,)),
        ("cluster.slow.ports", (7, 8), (7, 8)),
    ],
)
def test_a_field_is_changed_by_its_key(key: str, value: object, expected: object) -> None:
    found = value_at(with_values(PAPER, {key: value}), key)

    assert (expected, type(expected)) == (found, type(found))


@given(st.sampled_from(leaves()))
def test_the_value_that_is_there_changes_nothing(key: str) -> None:
    assert with_values(PAPER, {key: str(value_at(PAPER, key))}) == PAPER


@given(st.integers(1, 2**60), st.integers(1, 65_536))
def test_what_was_set_is_read_back(l2_bytes: int, batch_size: int) -> None:
    gpu = {"cluster.gpu.persisting_l2_bytes": 0, "cluster.gpu.l2_bytes": str(l2_bytes)}
    found = with_values(PAPER, {**gpu, "workload.batch_size": batch_size})

    assert (l2_bytes, batch_size) == (found.cluster.gpu.l2_bytes, found.workload.batch_size)


def test_nothing_else_changes() -> None:
    found = with_values(PAPER, {"workload.batch_size": 64})

    assert replace(PAPER, workload=replace(PAPER.workload, batch_size=64)) == found


def test_values_that_belong_together_are_checked_together() -> None:
    found = with_values(PAPER, {"model.num_attention_heads": 6, "model.num_key_value_heads": 3})

    assert 3 == found.model.num_key_value_heads


def test_slow_parts_are_set_together() -> None:
    found = with_values(PAPER, {"cluster.slow.clock_share": 0.7, "cluster.slow.gpus": 5}).cluster

    assert SlowParts(gpus=(5,), clock_share=0.7) == found.slow
    assert "16x h100-sxm (clock_share=0.7 of GPU 5)" == found.name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"cluster.slow.gpus": 5, "cluster.slow.hbm_share": 2},
            "cluster.slow.hbm_share=2.0 is no share of full speed; use 0.01 to 1",
        ),
        (
            {"cluster.slow.ports": "3,16"},
            "cluster.slow.ports=(3, 16) names a rank beyond the 16 GPUs; use 0 to 15",
        ),
        (
            {"cluster.slow.gpus": "first"},
            "cluster.slow.gpus='first' is not a number; write a plain number",
        ),
    ],
)
def test_slow_parts_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as error:
        with_values(PAPER, values)

    assert message == str(error.value)


def test_a_made_up_value_says_so_in_its_source() -> None:
    found = with_values(PAPER, {"cluster.nic.bytes_per_s": "25GB/s"})

    assert found.cluster.nic.source.endswith("; what-if: bytes_per_s=25000000000.0")


def test_a_gpu_by_its_name_brings_its_usual_wires() -> None:
    cluster = with_values(PAPER, {"cluster.gpu": "a100-80gb"}).cluster

    assert (GPUS["a100-80gb"], NVLINK3, HDR200) == (cluster.gpu, cluster.nvlink, cluster.nic)


def test_a_wire_that_is_given_beats_the_usual_one() -> None:
    cluster = with_values(PAPER, {"cluster.nvlink": "pcie5", "cluster.gpu": "a100-80gb"}).cluster

    assert (PCIE5, HDR200) == (cluster.nvlink, cluster.nic)


def test_a_name_comes_before_the_fields_below_it() -> None:
    gpu = with_values(PAPER, {"cluster.gpu.num_sms": 120, "cluster.gpu": "h200"}).cluster.gpu

    assert ("h200", 120) == (gpu.name, gpu.num_sms)


def test_a_cluster_is_called_after_what_it_is_now() -> None:
    assert "8x h100-sxm" == with_values(PAPER, {"cluster.num_gpus": 8}).cluster.name


def test_a_cluster_that_somebody_named_keeps_its_name() -> None:
    mine = replace(PAPER, cluster=replace(PAPER.cluster, name="mine"))

    assert "mine" == with_values(mine, {"cluster.num_gpus": 8}).cluster.name


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cluster.gpu.l2_byte", 5, "did you mean 'cluster.gpu.l2_bytes'?"),
        ("l2_bytes", 5, "did you mean 'cluster.gpu.l2_bytes'?"),
        ("workload.batch_sise", 5, "did you mean 'workload.batch_size'?"),
        ("cluster.num_nodes", 8, "set cluster.num_gpus, which counts those of all nodes"),
        ("cluster.name", 8, "a cluster is called after its GPUs; set cluster.gpu.name, or name"),
        (
            "nothing",
            8,
            (
                "a key is a field of cluster, kernels, model, placement, run, workload, as "
                "in workload.batch_size"
            ),
        ),
    ],
)
def test_an_unknown_key_is_refused_naming_the_nearest(key: str, value: int, message: str) -> None:
    with pytest.raises(UnknownKeyError) as error:
        with_values(PAPER, {key: value})

    assert f"{key}={value} is not a known key; {message}" == str(error.value)


def test_a_kernel_that_is_set_alone_leaves_the_others_to_the_profile() -> None:
    asked = with_values(paper_scenario("layer-wise"), {"kernels.all_reduce": "one_shot"})
    profiles = KernelChoice(decode_attention="cudnn", small_matmul="skinny")

    assert (None, GivenKernels(all_reduce="one_shot")) == (asked.kernels, asked.given_kernels)
    assert replace(profiles, all_reduce="one_shot") == asked.with_kernels(profiles).kernels
    assert KernelChoice(all_reduce="one_shot") == asked.kernels_on()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workload.batch_size": 1.5}, "workload.batch_size='1.5' is not a whole number; use 2"),
        ({"run.num_steps": True}, "run.num_steps=True is not a number; write a number"),
        ({"run.launch": "fast"}, "run.launch='fast' is unknown; use one of ['graph', 'eager']"),
        (
            {"model.tie_word_embeddings": 2},
            "model.tie_word_embeddings=2 is neither true nor false; use true or false",
        ),
        (
            {"cluster.gpu": "h100"},
            (
                "cluster.gpu='h100' is not known; did you mean 'h100-pcie' or 'h100-sxm'? (one's own: the path "
                "of a .toml file)"
            ),
        ),
        (
            {"model.num_key_value_heads": 3},
            (
                "model.num_key_value_heads=3 does not divide num_attention_heads=32; use one of "
                "[1, 2, 4, 8, 16, 32]"
            ),
        ),
        (
            {"cluster.gpu.l2_bytes": "1MB"},
            (
                "cluster.gpu.persisting_l2_bytes=32768000 is not a part of l2_bytes=1000000; use 0 to "
                "1000000"
            ),
        ),
        ({"workload.batch_size": 0}, "workload.batch_size=0 is not positive; use 1 or more"),
        (
            {"cluster.gpu.hbm_bytes_per_s": "-1"},
            "cluster.gpu.hbm_bytes_per_s=-1.0 is not positive; use a value above 0",
        ),
    ],
)
def test_a_value_that_does_not_go_is_refused_by_its_whole_key(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError) as error:
        with_values(PAPER, values)

    assert message == str(error.value)


def test_what_cannot_be_placed_is_refused() -> None:
    with pytest.raises(PlacementError, match="model.num_layers=16"):
        with_values(PAPER, {"cluster.num_gpus": 32})


def test_settings_are_keys_and_values() -> None:
    assert {"a.b": "1", "c": "x=y"} == parse_settings(["a.b = 1", "c=x=y"])


@pytest.mark.parametrize("setting", ["a", "=1", "a=", ""])
def test_a_setting_without_key_or_value_is_refused(setting: str) -> None:
    with pytest.raises(SpecError, match="is not KEY=VALUE; write it like --set workload.batch"):
        parse_settings([setting])


def test_a_key_that_is_set_twice_is_refused() -> None:
    with pytest.raises(SpecError, match="--set='a=2' sets a again; keep one of them"):
        parse_settings(["a=1", "a=2"])

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.hardware import (
    FULL_SPEED,
    GPUS,
    HDR200,
    LINKS,
    NVLINK4,
    PCIE4,
    SlowParts,
    Speed,
    dgx_cluster,
)
from layerwise.sim.plan.model import MODELS, ModelSpec
from layerwise.sim.plan.workload import Step, Workload, decode_steps, prefill_steps, split_evenly
from tests.sim.scenes import TINY


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers=0 is not positive; use 1 or more"),
        ({"hidden_size": -4}, "hidden_size=-4 is not positive; use 1 or more"),
        ({"vocab_size": -1}, "vocab_size=-1 is negative; use 0 for no LM head"),
        (
            {"num_key_value_heads": 3},
            "num_key_value_heads=3 does not divide num_attention_heads=8; use one of [1, 2, 4, 8]",
        ),
        ({"head_dim": 7}, "head_dim=7 is odd; rotary positions need pairs"),
        (
            {"dtype": "int4"},
            "dtype='int4' is unknown; use one of ['bfloat16', 'float32']",
        ),
    ],
)
def test_model_refuses_naming_key_value_and_fix(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        replace(TINY, **changes)

    assert message == str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phase": "train"}, "phase='train' is unknown; use 'decode' or 'prefill'"),
        ({"batch_size": 0}, "batch_size=0 is not positive; use 1 or more"),
        (
            {"num_microbatches": 200},
            (
                "num_microbatches=200 is not between 1 and batch_size=128; "
                "use 0 for the best number found"
            ),
        ),
    ],
)
def test_workload_refuses_naming_key_value_and_fix(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        Workload(**changes)

    assert message == str(error.value)


def test_hardware_refuses_a_rate_that_is_not_positive() -> None:
    with pytest.raises(SpecError, match="bytes_per_s=0.0 is not positive; use a value above 0"):
        replace(NVLINK4, bytes_per_s=0.0)


def test_hardware_refuses_a_rate_that_is_no_number() -> None:
    with pytest.raises(SpecError, match="hbm_bytes_per_s=nan is not positive"):
        replace(GPUS["h100-sxm"], hbm_bytes_per_s=float("nan"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "persisting_l2_bytes",
            52_428_801,
            "persisting_l2_bytes=52428801 is not a part of l2_bytes=52428800; use 0 to 52428800",
        ),
        (
            "persisting_l2_bytes",
            -1,
            "persisting_l2_bytes=-1 is not a part of l2_bytes=52428800; use 0 to 52428800",
        ),
        ("access_window_bytes", -1, "access_window_bytes=-1 is negative; use 0 for none known"),
    ],
)
def test_hardware_refuses_a_set_aside_that_cannot_be(key: str, value: int, message: str) -> None:
    changes: dict[str, Any] = {key: value}
    with pytest.raises(SpecError) as error:
        replace(GPUS["h100-sxm"], **changes)

    assert message == str(error.value)


@pytest.mark.parametrize(
    ("gpu", "wires"),
    [
        ("h100-sxm", ("nvlink4", "ndr400")),
        ("h200", ("nvlink4", "ndr400")),
        ("h100-pcie", ("pcie5", "ndr400")),
        ("a100-80gb", ("nvlink3", "hdr200")),
        ("b200", ("nvlink5", "ndr400")),
    ],
)
def test_a_gpu_comes_with_the_wires_of_its_machine(gpu: str, wires: tuple[str, str]) -> None:
    cluster = dgx_cluster(GPUS[gpu], 16)

    assert wires == (cluster.nvlink.name, cluster.nic.name)


def test_given_wires_replace_the_usual_ones() -> None:
    cluster = dgx_cluster(GPUS["a100-80gb"], 16, nvlink=PCIE4)

    assert (PCIE4, HDR200) == (cluster.nvlink, cluster.nic)


@pytest.mark.parametrize("name", GPUS)
def test_gpus_and_links_are_listed_under_their_names(name: str) -> None:
    assert name == GPUS[name].name
    assert all(link.name == key for key, link in LINKS.items())


def test_cluster_refuses_a_node_that_is_partly_filled() -> None:
    with pytest.raises(SpecError, match="num_gpus=12 does not fill nodes of 8.*multiple of 8"):
        dgx_cluster(GPUS["h100-sxm"], 12)


@pytest.mark.parametrize("per_node", [0, -8])
def test_cluster_refuses_nodes_without_gpus(per_node: int) -> None:
    with pytest.raises(SpecError, match="gpus_per_node"):
        dgx_cluster(GPUS["h100-sxm"], 16, per_node)


def test_hop_inside_a_node_is_nvlink_and_between_nodes_the_nic() -> None:
    cluster = dgx_cluster(GPUS["h100-sxm"], 16)

    assert "nvlink4" == cluster.link_between(0, 7).name
    assert "ndr400" == cluster.link_between(7, 8).name


def test_cluster_smaller_than_a_node_is_one_node() -> None:
    assert 1 == dgx_cluster(GPUS["h100-sxm"], 4).num_nodes


def test_step_refuses_a_context_beyond_its_cache() -> None:
    with pytest.raises(SpecError, match="context_tokens=9 is not between query_tokens=1 and kv_"):
        Step(
            phase="decode",
            microbatch_sizes=(1,),
            query_tokens=1,
            context_tokens=9,
            kv_capacity_tokens=8,
        )


def test_split_is_even_and_larger_shares_come_first() -> None:
    assert (3, 3, 2) == split_evenly(8, 3)


def test_decode_steps_grow_and_share_one_capacity() -> None:
    steps = decode_steps((2,), 10, 3)

    assert [(10, 12), (11, 12), (12, 12)] == [
        (s.context_tokens, s.kv_capacity_tokens) for s in steps
    ]


def test_decode_steps_chain_by_their_tokens() -> None:
    steps = decode_steps((2,), 10, 3)

    assert [(False, True), (True, True), (True, False)] == [
        (s.takes_feedback, s.gives_feedback) for s in steps
    ]


def test_prefill_falls_into_chunks_with_a_shorter_last_one() -> None:
    steps = prefill_steps((1,), 10, 4)

    assert [(4, 4), (4, 8), (2, 10)] == [(s.query_tokens, s.context_tokens) for s in steps]


def test_paper_models_have_the_papers_parameters() -> None:
    small, large = MODELS["paper-16"].parameters / 1e9, MODELS["paper-30b"].parameters / 1e9

    assert (4.3, 30.1) == (round(small, 1), round(large, 1))


def test_vocabulary_adds_embedding_head_and_final_norm() -> None:
    with_head = TINY.with_vocabulary(100)

    assert 2 * 100 * 64 + 64 == with_head.parameters - TINY.parameters


def test_model_spec_is_hashable_and_compared_by_value() -> None:
    assert {TINY} == {ModelSpec(**TINY.__dict__)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"gpus": (5,), "clock_share": 1.5},
            "clock_share=1.5 is no share of full speed; use 0.01 to 1",
        ),
        (
            {"gpus": (5,), "hbm_share": 0.0},
            "hbm_share=0.0 is no share of full speed; use 0.01 to 1",
        ),
        (
            {"ports": (5,), "nic_share": float("nan")},
            "nic_share=nan is no share of full speed; use 0.01 to 1",
        ),
        (
            {"clock_share": 0.7},
            "clock_share=0.7 slows nobody: gpus is empty; name the ranks, as in gpus = [5]",
        ),
        (
            {"gpus": (5,), "nvlink_share": 0.7},
            "nvlink_share=0.7 slows nobody: ports is empty; name the ranks, as in ports = [5]",
        ),
        ({"gpus": (-1,)}, "gpus=(-1,) has a negative rank; ranks begin at 0"),
        ({"ports": (3, 3)}, "ports=(3, 3) names a rank twice; name each once"),
    ],
)
def test_slow_parts_refuse_naming_key_value_and_fix(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        SlowParts(**changes)

    assert message == str(error.value)


@pytest.mark.parametrize("key", ["gpus", "ports"])
def test_slow_parts_are_parts_of_the_cluster(key: str) -> None:
    with pytest.raises(SpecError) as error:
        dgx_cluster(GPUS["h100-sxm"], 16, slow=SlowParts(**{key: (16,)}))

    assert f"slow.{key}=(16,) names a rank beyond the 16 GPUs; use 0 to 15" == str(error.value)


def test_a_slow_gpu_is_slow_and_the_others_are_not() -> None:
    cluster = dgx_cluster(
        GPUS["h100-sxm"], 16, slow=SlowParts(gpus=(5,), clock_share=0.7, hbm_share=0.9)
    )

    assert [FULL_SPEED, Speed(0.7, 0.9)] == [cluster.speed_of(rank) for rank in (4, 5)]


@pytest.mark.parametrize(
    ("wire", "ranks", "expected"),
    [
        ("nvlink4", (3, 4), 0.5),
        ("nvlink4", (4, 5), 1.0),
        ("ndr400", (11, 3), 0.25),
        ("ndr400", (), 1.0),
    ],
)
def test_the_slowest_port_counts(wire: str, ranks: tuple[int, ...], expected: float) -> None:
    slow = SlowParts(ports=(3,), nvlink_share=0.5, nic_share=0.25)

    assert expected == dgx_cluster(GPUS["h100-sxm"], 16, slow=slow).port_share(wire, ranks)


def test_a_cluster_is_called_after_its_slow_parts() -> None:
    slow = SlowParts(gpus=(5, 6), clock_share=0.7, ports=(3,))

    assert "16x h100-sxm (clock_share=0.7 of GPU 5, 6)" == (
        dgx_cluster(GPUS["h100-sxm"], 16, slow=slow).name
    )


def test_only_ranks_below_full_speed_are_slow() -> None:
    assert frozenset({5}) == SlowParts(gpus=(5,), hbm_share=0.9, ports=(3,)).ranks

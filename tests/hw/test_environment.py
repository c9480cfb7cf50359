"""Where each rank ran, in a trace's environment: hosts by number, never by name."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from layerwise.hw.host.environment import (
    Binding,
    binding_of,
    environment_of,
    places_as_text,
    version_of,
)
from layerwise.hw.options import Options
from layerwise.hw.ranks.launch import launch
from tests.hw.scenes import scenario

CPU = torch.device("cpu")
TORCHRUN = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node7",
    "GROUP_WORLD_SIZE": "2",
    "NCCL_DEBUG": "WARN",
}
PLACE = Binding(
    rank=0,
    host="token of a",
    local_rank=0,
    device="cuda:0",
    pci_bus_id="0000:0c:00.0",
    numa_node=0,
    nics=("mlx5_0", "mlx5_1"),
    nics_through="a PCIe switch",
    cpus=(0, 1, 2),
    rendezvous="torchrun: 3 ranks of 2 agents",
    settings={"NCCL_DEBUG": "WARN"},
)


def test_a_rank_is_told_from_host_to_nic() -> None:
    assert {
        "rendezvous": "torchrun: 3 ranks of 2 agents",
        "num_hosts": "1",
        "communication_settings": "NCCL_DEBUG=WARN",
        "rank_0": "host 0, local rank 0, cuda:0, PCI 0000:0c:00.0, NUMA 0, "
        "NIC mlx5_0+mlx5_1 through a PCIe switch, CPUs 0-2",
    } == places_as_text([PLACE])


def test_hosts_are_numbered_by_their_first_rank() -> None:
    hosts = ("token of z", "token of a", "token of z")
    found = places_as_text([replace(PLACE, rank=r, host=h) for r, h in enumerate(hosts)])
    assert "2" == found["num_hosts"]
    assert ["host 0", "host 1", "host 0"] == [
        found[f"rank_{rank}"].partition(",")[0] for rank in range(3)
    ]
    assert "token" not in json.dumps(found)


def test_a_rank_with_other_settings_has_its_own_line() -> None:
    other = replace(PLACE, rank=1, settings={"NCCL_DEBUG": "INFO"})
    found = places_as_text([PLACE, other, replace(PLACE, rank=2)])
    own = {key: text for key, text in found.items() if key.startswith("communication_settings_")}
    assert {"communication_settings_rank_1": "NCCL_DEBUG=INFO"} == own


def test_what_the_machine_does_not_tell_is_left_out() -> None:
    bare = replace(PLACE, device="cpu", pci_bus_id="", numa_node=-1, nics=(), settings={})
    found = places_as_text([bare])
    assert "host 0, local rank 0, cpu, CPUs 0-2" == found["rank_0"]
    assert "none" == found["communication_settings"]


def test_torchrun_names_the_local_rank_and_the_rendezvous() -> None:
    found = binding_of(9, CPU, 16, environment=TORCHRUN)
    assert (9, 1, "cpu", "torchrun: 16 ranks of 2 agents", {"NCCL_DEBUG": "WARN"}) == (
        found.rank,
        found.local_rank,
        found.device,
        found.rendezvous,
        found.settings,
    )


def test_a_rank_by_itself_meets_nobody() -> None:
    found = binding_of(5, CPU, environment={})
    assert (5, 0, "none: one process") == (found.rank, found.local_rank, found.rendezvous)


def test_ranks_of_one_host_have_one_token_that_hides_its_name() -> None:
    one, other = (binding_of(rank, CPU, 2, environment={}) for rank in range(2))
    assert one.host == other.host
    assert platform.node() not in one.host


def test_a_gpu_without_nvml_has_no_bus_id(tmp_path: Path) -> None:
    if version_of("nvidia-ml-py"):
        pytest.skip("NVML is installed here")
    found = binding_of(0, torch.device("cuda", 3), sys=tmp_path, environment={})
    assert ("cuda:3", "", -1, ()) == (found.device, found.pci_bus_id, found.numa_node, found.nics)


def test_versions_are_those_that_are_installed() -> None:
    assert "" == version_of("no-such-package-anywhere")
    assert str(torch.__version__) == environment_of(CPU)["torch"]


def test_a_trace_of_two_ranks_says_where_each_ran() -> None:
    trace = launch(scenario(pipeline_parallel=2), Options(timing="none", device="cpu"))
    assert trace is not None
    found = trace.environment
    assert ("1", "a store of the process that started all") == (
        found["num_hosts"],
        found["rendezvous"],
    )
    starts = [found[f"rank_{rank}"].partition(", CPUs")[0] for rank in range(2)]
    assert ["host 0, local rank 0, cpu", "host 0, local rank 1, cpu"] == starts

"""What sits near what, on a machine made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerwise.hw.host.affinity import (
    GpuPair,
    Launcher,
    Nearest,
    as_ranges,
    communication_settings,
    gpu_pairs,
    launcher_of,
    nearest_nics,
    nics,
    numa_node_of,
    numa_nodes_of_cpus,
    short_bus_id,
)
from tests.hw.machines import BUS_IDS, Nvml, make_sys


@pytest.fixture
def sys_folder(tmp_path: Path) -> Path:
    return make_sys(tmp_path)


def test_adapters_come_in_the_order_of_their_numbers(sys_folder: Path) -> None:
    assert ["mlx5_0", "mlx5_2", "mlx5_10"] == [nic.name for nic in nics(sys_folder)]


def test_an_adapter_has_a_place_a_state_and_a_rate(sys_folder: Path) -> None:
    nic = nics(sys_folder)[0]
    assert ("0000:0d:00.0", 0, "ACTIVE", "InfiniBand", 50e9) == (
        nic.pci_bus_id,
        nic.numa_node,
        nic.state,
        nic.link_layer,
        nic.rate_bytes_per_s,
    )


def test_a_machine_without_adapters_has_none(tmp_path: Path) -> None:
    assert () == nics(tmp_path)


def test_the_adapter_under_the_same_switch_is_nearest(sys_folder: Path) -> None:
    expected = Nearest(names=("mlx5_0",), through="a PCIe switch")
    assert expected == nearest_nics(BUS_IDS[0], nics(sys_folder), sys_folder)


def test_without_a_common_bridge_the_numa_node_decides(sys_folder: Path) -> None:
    expected = Nearest(names=("mlx5_10",), through="the NUMA node")
    assert expected == nearest_nics(BUS_IDS[1], nics(sys_folder), sys_folder)


def test_adapters_that_are_down_are_near_only_where_all_are(sys_folder: Path) -> None:
    down = [nic for nic in nics(sys_folder) if nic.state == "DOWN"]
    expected = Nearest(names=("mlx5_2",), through="a PCIe switch")
    assert expected == nearest_nics(BUS_IDS[0], down, sys_folder)


def test_a_far_adapter_is_reached_through_the_system(sys_folder: Path) -> None:
    far = [nic for nic in nics(sys_folder) if nic.name == "mlx5_10"]
    expected = Nearest(names=("mlx5_10",), through="the system")
    assert expected == nearest_nics(BUS_IDS[0], far, sys_folder)


def test_no_adapter_is_nearest_where_there_is_none(sys_folder: Path) -> None:
    assert nearest_nics(BUS_IDS[0], (), sys_folder) is None


def test_the_numa_node_of_an_unknown_device_is_unknown(sys_folder: Path) -> None:
    assert (1, -1) == (
        numa_node_of(BUS_IDS[1], sys_folder),
        numa_node_of("0000:ff:00.0", sys_folder),
    )


def test_cpus_belong_to_numa_nodes(sys_folder: Path) -> None:
    assert (0, 1) == numa_nodes_of_cpus((1, 3), sys_folder)
    assert (1,) == numa_nodes_of_cpus((2,), sys_folder)


def test_nvml_and_sys_spell_a_bus_id_alike() -> None:
    assert "0000:0c:00.0" == short_bus_id("00000000:0C:00.0")
    assert "10000:0c:00.0" == short_bus_id("00010000:0C:00.0")


def test_links_into_a_switch_all_lead_to_the_peer() -> None:
    expected = GpuPair(
        first=0, second=1, nvlinks=18, nvlink_version="4.0", common_ancestor="the system"
    )
    assert (expected,) == gpu_pairs(Nvml(), [0, 1])


def test_a_bridge_counts_the_links_that_end_at_the_peer() -> None:
    assert 4 == gpu_pairs(Nvml(links=4, remote=f"0000{BUS_IDS[1]}"), [0, 1])[0].nvlinks


def test_gpus_that_nvlink_does_not_join_have_no_links() -> None:
    assert (0, "") == _links(Nvml(links=0))
    assert (0, "") == _links(Nvml(p2p=5))


def _links(nvml: Nvml) -> tuple[int, str]:
    pair = gpu_pairs(nvml, [0, 1])[0]
    return pair.nvlinks, pair.nvlink_version


def test_every_two_gpus_are_a_pair() -> None:
    found = gpu_pairs(Nvml(), [0, 1, 0])
    assert [(0, 1), (0, 2), (1, 2)] == [(pair.first, pair.second) for pair in found]


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((0, 1, 2, 5), "0-2,5"), ((3,), "3"), ((2, 0, 1), "0-2")]
)
def test_ranges_are_written_as_taskset_writes_them(numbers: tuple[int, ...], text: str) -> None:
    assert text == as_ranges(numbers)


def test_settings_of_communication_tell_no_host_and_no_folder() -> None:
    environment = {
        "NCCL_TOPO_FILE": "/srv/site/topology.xml",
        "NCCL_COMM_ID": "node7:4000",
        "PATH": "/bin",
        "TORCH_NCCL_BLOCKING_WAIT": "1",
        "GLOO_SOCKET_IFNAME": "eth0",
    }
    assert {
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_COMM_ID": "(set)",
        "NCCL_TOPO_FILE": ".../topology.xml",
        "TORCH_NCCL_BLOCKING_WAIT": "1",
    } == communication_settings(environment)


def test_a_launcher_is_known_by_its_variables() -> None:
    environment = {
        "RANK": "3",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "3",
        "MASTER_ADDR": "node7",
        "GROUP_WORLD_SIZE": "2",
        "SLURM_JOB_ID": "1",
        "SLURM_NNODES": "2",
    }
    found = launcher_of(environment)
    assert "torchrun: 16 ranks of 2 agents, Slurm: 2 nodes" == found.name
    assert "by hand: no torchrun, no Slurm" == launcher_of({}).name
    assert Launcher(
        under_torchrun=False, under_slurm=True, num_agents=1, world_size=1, num_slurm_nodes=2
    ) == launcher_of({"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "2"})

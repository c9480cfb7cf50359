"""What sits near what: PCI bus, NUMA nodes, NICs, NVLink, and the CPUs that a process may use.

Read from /sys, /proc and NVML, without torch. The folder and NVML's module are handed in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, takewhile
from pathlib import Path
from typing import Any

SYS = Path("/sys")
UNKNOWN_NODE = -1
# Source: NVML API reference, nvmlGpuTopologyLevel_t.
COMMON_ANCESTORS = {
    0: "one board",
    10: "a PCIe switch",
    20: "several PCIe switches",
    30: "the host bridge",
    40: "the NUMA node",
    50: "the system",
}
# Source: nvml.h, nvmlNvlinkVersion_t.
NVLINK_VERSIONS = {1: "1.0", 2: "2.0", 3: "2.2", 4: "3.0", 5: "3.1", 6: "4.0", 7: "5.0", 8: "6.0"}
# NVML_NVLINK_MAX_LINKS; a link that a GPU lacks answers with an error. Source: nvml.h, driver 610.
MAX_NVLINKS = 36
P2P_NVLINK, P2P_OK = 2, 0
CHARACTERS = re.compile(r"(\d+)")


@dataclass(frozen=True, kw_only=True)
class Nic:
    """A port of a network adapter under /sys/class/infiniband; `rate_bytes_per_s` 0: unknown."""

    name: str
    pci_bus_id: str
    numa_node: int
    state: str
    link_layer: str
    rate_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The nearest NICs of a GPU, and what a byte between them passes through."""

    names: tuple[str, ...]
    through: str


@dataclass(frozen=True, kw_only=True)
class GpuPair:
    """How two GPUs are joined. `nvlinks` counts active links that lead to the peer or to a switch.

    `first`, `second` index the GPUs that were asked about.
    """

    first: int
    second: int
    nvlinks: int
    nvlink_version: str
    common_ancestor: str


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Who started this process: torchrun, Slurm, both or neither. Never a host's name."""

    under_torchrun: bool
    under_slurm: bool
    num_agents: int
    world_size: int
    num_slurm_nodes: int

    @property
    def name(self) -> str:
        """In words."""
        parts = []
        if self.under_torchrun:
            parts.append(f"torchrun: {self.world_size} ranks of {self.num_agents} agents")
        if self.under_slurm:
            parts.append(f"Slurm: {self.num_slurm_nodes} nodes")
        return ", ".join(parts) or "by hand: no torchrun, no Slurm"


def launcher_of(environment: Mapping[str, str] = os.environ) -> Launcher:
    """Read the launcher's variables."""

    def count(*keys: str) -> int:
        given = (environment.get(key, "") for key in keys)
        return next((int(value) for value in given if value.isdigit()), 1)

    needed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    return Launcher(
        under_torchrun=all(key in environment for key in needed),
        under_slurm="SLURM_JOB_ID" in environment,
        num_agents=count("GROUP_WORLD_SIZE"),
        world_size=count("WORLD_SIZE"),
        num_slurm_nodes=count("SLURM_NNODES", "SLURM_JOB_NUM_NODES"),
    )


def communication_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """All NCCL_*, TORCH_NCCL_* and GLOO_* variables, sorted; no host's name, no folder.

    A path keeps its last part. NCCL_COMM_ID is an address, and is kept as "(set)".
    """
    return {
        key: "(set)" if key == "NCCL_COMM_ID" else re.sub(r"\S*/", ".../", environment[key])
        for key in sorted(environment)
        if key.startswith(("NCCL_", "TORCH_NCCL_", "GLOO_"))
    }


def short_bus_id(bus_id: str) -> str:
    """NVML's `00000000:0C:00.0` as /sys spells it: `0000:0c:00.0`."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def numa_node_of(pci_bus_id: str, sys: Path = SYS) -> int:
    """The NUMA node of a PCI device; -1 where the machine does not say."""
    return _number(sys / "bus/pci/devices" / pci_bus_id / "numa_node", UNKNOWN_NODE)


def nics(sys: Path = SYS) -> tuple[Nic, ...]:
    """The first port of every adapter, by name; none on a machine without RDMA."""
    folder = sys / "class/infiniband"
    return tuple(_nic(place, sys) for place in sorted(folder.glob("*"), key=_natural))


def nearest_nics(pci_bus_id: str, found: Iterable[Nic], sys: Path = SYS) -> Nearest | None:
    """The NICs with the longest common way down the PCI tree, else on the same NUMA node.

    Of active NICs where there are any; None when there is no NIC.
    """
    every = tuple(found)
    usable = [nic for nic in every if nic.state == "ACTIVE"] or every
    ranked = {nic.name: _nearness(pci_bus_id, nic, sys) for nic in usable}
    if not ranked:
        return None
    nearest = max(ranked.values())
    names = tuple(name for name, nearness in ranked.items() if nearness == nearest)
    return Nearest(names=names, through=nearest[1])


def gpu_pairs(nvml: Any, handles: list[Any]) -> tuple[GpuPair, ...]:
    """Every pair of GPUs: NVLinks between them, and where their PCIe ways meet."""
    return tuple(
        _pair(nvml, (first, handles[first]), (second, handles[second]))
        for first, second in combinations(range(len(handles)), 2)
    )


def cpus_of_this_process() -> tuple[int, ...]:
    """The CPUs that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def numa_nodes_of_cpus(cpus: Iterable[int], sys: Path = SYS) -> tuple[int, ...]:
    """The NUMA nodes that these CPUs belong to."""
    wanted = set(cpus)
    return tuple(
        sorted(
            int(node.name[4:])
            for node in (sys / "devices/system/node").glob("node[0-9]*")
            if wanted & _range_members(_text(node / "cpulist"))
        )
    )


def as_ranges(numbers: Iterable[int]) -> str:
    """0,1,2,5 as `0-2,5`, the way taskset writes it."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def _nic(place: Path, sys: Path) -> Nic:
    bus_id = (place / "device").resolve().name
    port = place / "ports/1"
    rate = re.match(r"([\d.]+) Gb/sec", _text(port / "rate"))
    return Nic(
        name=place.name,
        pci_bus_id=bus_id,
        numa_node=numa_node_of(bus_id, sys),
        state=_text(port / "state").partition(": ")[2] or "unknown",
        link_layer=_text(port / "link_layer") or "unknown",
        rate_bytes_per_s=float(rate[1]) * 1e9 / 8 if rate else 0.0,
    )


def _nearness(pci_bus_id: str, nic: Nic, sys: Path) -> tuple[int, str]:
    gpu_way, nic_way = _way_to(pci_bus_id, sys), _way_to(nic.pci_bus_id, sys)
    pairs = zip(gpu_way, nic_way, strict=False)
    num_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if num_common > 1:
        return 1 + num_common, "a PCIe switch"
    if num_common:
        return 2, "the host bridge"
    if numa_node_of(pci_bus_id, sys) == nic.numa_node != UNKNOWN_NODE:
        return 1, "the NUMA node"
    return 0, "the system"


def _way_to(pci_bus_id: str, sys: Path) -> list[str]:
    """Bridges from the root complex down to a device, without the device."""
    whole = (sys / "bus/pci/devices" / pci_bus_id).resolve().parts
    roots = [index for index, part in enumerate(whole) if re.match(r"pci[\da-f]+:[\da-f]+$", part)]
    return list(whole[roots[0] : -1]) if roots else []


def _pair(nvml: Any, one: tuple[int, Any], other: tuple[int, Any]) -> GpuPair:
    (first, handle), (second, peer) = one, other
    nvlinks, version = _nvlinks_between(nvml, handle, peer)
    level = asked(nvml, lambda: nvml.nvmlDeviceGetTopologyCommonAncestor(handle, peer), None)
    ancestor = COMMON_ANCESTORS.get(level, "unknown")
    return GpuPair(
        first=first,
        second=second,
        nvlinks=nvlinks,
        nvlink_version=version,
        common_ancestor=ancestor,
    )


def _nvlinks_between(nvml: Any, handle: Any, peer: Any) -> tuple[int, str]:
    """Active links straight to the peer; where a switch joins them, all that lead into it."""
    active = [
        link
        for link in range(MAX_NVLINKS)
        if asked(nvml, lambda link=link: nvml.nvmlDeviceGetNvLinkState(handle, link), 0)
    ]
    joined = asked(nvml, lambda: nvml.nvmlDeviceGetP2PStatus(handle, peer, P2P_NVLINK), None)
    if not active or joined != P2P_OK:
        return 0, ""
    at = short_bus_id(bus_id_of(nvml, peer))
    straight = [link for link in active if _leads_to(nvml, handle, link) == at]
    number = asked(nvml, lambda: nvml.nvmlDeviceGetNvLinkVersion(handle, active[0]), 0)
    return len(straight or active), NVLINK_VERSIONS.get(number, "")


def bus_id_of(nvml: Any, handle: Any) -> str:
    """A GPU's PCI bus id, as NVML spells it."""
    found = nvml.nvmlDeviceGetPciInfo(handle).busId
    return found.decode() if isinstance(found, bytes) else str(found)


def _leads_to(nvml: Any, handle: Any, link: int) -> str:
    remote = asked(nvml, lambda: nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link), None)
    if remote is None:
        return ""
    found = remote.busId
    return short_bus_id(found.decode() if isinstance(found, bytes) else str(found))


def asked(nvml: Any, question: Callable[[], Any], otherwise: Any) -> Any:
    """NVML's answer, or `otherwise` where this GPU or driver has none."""
    try:
        return question()
    except nvml.NVMLError:
        return otherwise


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in CHARACTERS.split(path.name)]


def _range_members(text: str) -> set[int]:
    members: set[int] = set()
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        members.update(range(int(low), int(high or low) + 1))
    return members


def _number(path: Path, otherwise: int) -> int:
    with suppress(ValueError):
        return int(_text(path))
    return otherwise


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""

"""Stand-ins for a machine with GPUs: a /sys folder, NVML's module, what is needed of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

H100 = "NVIDIA H100 80GB HBM3"
BUS_IDS = ("0000:0c:00.0", "0000:9c:00.0")
# Two sockets, a switch under each; a GPU and an adapter under each switch, one adapter elsewhere.
DEVICES = {
    "0000:0c:00.0": ("pci0000:00/0000:00:01.0/0000:0a:00.0", 0),
    "0000:0d:00.0": ("pci0000:00/0000:00:01.0/0000:0a:00.0", 0),
    "0000:9c:00.0": ("pci0000:80/0000:80:01.0", 1),
    "0000:e1:00.0": ("pci0000:e0", 1),
}
ADAPTERS = {
    "mlx5_0": ("0000:0d:00.0", "4: ACTIVE", "400 Gb/sec (4X NDR)"),
    "mlx5_10": ("0000:e1:00.0", "4: ACTIVE", "200 Gb/sec (4X HDR)"),
    "mlx5_2": ("0000:0d:00.0", "1: DOWN", "40 Gb/sec (4X QDR)"),
}


def make_sys(folder: Path) -> Path:
    """A /sys of two NUMA nodes with two CPUs each."""
    (folder / "bus/pci/devices").mkdir(parents=True)
    for bus_id, (way, node) in DEVICES.items():
        device = folder / "devices" / way / bus_id
        device.mkdir(parents=True)
        (device / "numa_node").write_text(f"{node}\n")
        (folder / "bus/pci/devices" / bus_id).symlink_to(device)
    for name, (bus_id, state, rate) in ADAPTERS.items():
        port = folder / "class/infiniband" / name / "ports/1"
        port.mkdir(parents=True)
        for key, text in (("state", state), ("rate", rate), ("link_layer", "InfiniBand")):
            (port / key).write_text(f"{text}\n")
        (folder / "class/infiniband" / name / "device").symlink_to(
            folder / "bus/pci/devices" / bus_id
        )
    for node, cpus in ((0, "0-1"), (1, "2,3")):
        (folder / f"devices/system/node/node{node}").mkdir(parents=True)
        (folder / f"devices/system/node/node{node}/cpulist").write_text(f"{cpus}\n")
    return folder


class NvmlError(Exception):
    """What NVML's module raises."""


@dataclass
class Nvml:
    """NVML of two GPUs; a handle is the GPU's index. `remote` is where each of `links` leads."""

    links: int = 18
    remote: str = "00000000:05:00.0"
    p2p: int = 0
    throttle: int = 0
    limit_w: float = 700.0
    used_bytes: int = 600_000_000
    refuses: str = ""
    NVMLError: type[Exception] = NvmlError
    NVML_CLOCK_SM: int = 1
    NVML_CLOCK_MEM: int = 2

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetHandleByUUID": lambda uuid: int(uuid.removeprefix("GPU-")),
            "nvmlDeviceGetPciInfo": lambda handle: SimpleNamespace(
                busId=f"0000{BUS_IDS[handle].upper()}".encode()
            ),
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: self.throttle,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=self.used_bytes),
            "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 1500, 2: 2619}[kind],
            "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 1980,
            "nvmlDeviceGetEnforcedPowerLimit": lambda handle: round(self.limit_w * 1e3),
            "nvmlDeviceGetPowerManagementDefaultLimit": lambda handle: 700_000,
            "nvmlDeviceGetTopologyCommonAncestor": lambda one, other: 50,
            "nvmlDeviceGetP2PStatus": lambda one, other, what: {2: self.p2p}[what],
            "nvmlDeviceGetNvLinkState": self._link_state,
            "nvmlDeviceGetNvLinkVersion": lambda handle, link: 6,
            "nvmlDeviceGetNvLinkRemotePciInfo": lambda handle, link: SimpleNamespace(
                busId=self.remote.encode()
            ),
        }
        if name not in answers:
            raise AttributeError(name)
        if name == self.refuses:
            return self._refuse
        return answers[name]

    def _refuse(self, *arguments: object) -> None:
        raise NvmlError("not supported")

    def _link_state(self, handle: int, link: int) -> int:
        if link >= self.links:
            raise NvmlError("no such link")
        return 1


def make_torch(num_gpus: int = 2, name: str = H100) -> Any:
    """As much of torch as the check asks; a GPU's UUID is its index."""

    def properties(index: int) -> SimpleNamespace:
        return SimpleNamespace(
            name=name,
            major=9,
            minor=0,
            total_memory=85_000_000_000,
            L2_cache_size=52_428_800,
            multi_processor_count=132,
            uuid=str(index),
        )

    cuda = SimpleNamespace(
        is_available=lambda: num_gpus > 0,
        device_count=lambda: num_gpus,
        get_device_properties=properties,
        nccl=SimpleNamespace(version=lambda: (2, 28, 9)),
    )
    return SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda="13.0"))

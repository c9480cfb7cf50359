"""Where a measurement was taken: hardware, driver, libraries, clocks, the place of each rank.

Never the host's name: hosts are numbered in the order of their first rank. Imports without torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerwise.hw.host.affinity import (
    SYS,
    UNKNOWN_NODE,
    as_ranges,
    bus_id_of,
    communication_settings,
    cpus_of_this_process,
    launcher_of,
    nearest_nics,
    nics,
    numa_node_of,
    short_bus_id,
)

if TYPE_CHECKING:
    import torch

# Bits of nvmlClocksEventReasons. Source: NVML API reference, nvmlClocksEventReasons.
THROTTLE_REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "hardware power brake",
}


def environment_of(device: torch.device) -> dict[str, str]:
    """Versions, device and date, as text for a trace's header."""
    import torch

    found = {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": version_of("triton") or "not installed",
        "device": device.type,
    }
    if device.type != "cuda":
        return found | {"processor": platform.machine(), "threads": str(torch.get_num_threads())}
    properties = torch.cuda.get_device_properties(device)
    return found | {
        "gpu": properties.name,
        "gpu_memory_bytes": str(properties.total_memory),
        "l2_bytes": str(properties.L2_cache_size),
        "num_sms": str(properties.multi_processor_count),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "driver": _driver(),
    }


def sample_clocks(device: torch.device, moment: str) -> dict[str, str]:
    """Clocks, power, temperature and throttling now, under keys that end in `moment`.

    Empty on the CPU; one key that says so where NVML is missing.
    """
    if device.type != "cuda":
        return {}
    try:
        nvml, handle = _nvml(device)
    except Exception as error:
        return {f"clocks_{moment}": f"unknown: {type(error).__name__}: {error}"}
    reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    named = [name for bit, name in THROTTLE_REASONS.items() if reasons & bit]
    return {
        f"sm_clock_mhz_{moment}": str(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        f"memory_clock_mhz_{moment}": str(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        f"power_w_{moment}": str(nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        f"temperature_c_{moment}": str(
            nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
        ),
        f"throttled_{moment}": ", ".join(named) or "no",
    }


@dataclass(frozen=True, kw_only=True)
class Binding:
    """Where one rank runs. `host` tells hosts apart and says nothing else about them.

    `numa_node` -1, empty text and an empty `nics` are what the machine does not tell.
    """

    rank: int
    host: str
    local_rank: int
    device: str
    pci_bus_id: str
    numa_node: int
    nics: tuple[str, ...]
    nics_through: str
    cpus: tuple[int, ...]
    rendezvous: str
    settings: Mapping[str, str]


def binding_of(
    rank: int,
    device: torch.device,
    world_size: int = 1,
    *,
    sys: Path = SYS,
    environment: Mapping[str, str] = os.environ,
) -> Binding:
    """This process's place, for its rank of a run."""
    launcher = launcher_of(environment)
    index = device.index or 0
    started_here = rank if world_size > 1 else 0
    bus_id = _bus_id(device)
    near = nearest_nics(bus_id, nics(sys), sys) if bus_id else None
    alone = "none: one process" if world_size == 1 else "a store of the process that started all"
    return Binding(
        rank=rank,
        host=_host_token(),
        local_rank=int(environment["LOCAL_RANK"]) if launcher.under_torchrun else started_here,
        device=f"cuda:{index}" if device.type == "cuda" else device.type,
        pci_bus_id=bus_id,
        numa_node=numa_node_of(bus_id, sys) if bus_id else UNKNOWN_NODE,
        nics=near.names if near else (),
        nics_through=near.through if near else "",
        cpus=cpus_of_this_process(),
        rendezvous=launcher.name if launcher.under_torchrun and world_size > 1 else alone,
        settings=communication_settings(environment),
    )


def places_as_text(bindings: Sequence[Binding]) -> dict[str, str]:
    """The places of all ranks as text for a trace's header: one `rank_N` each.

    NCCL's variables are those of the first rank; a rank that has others has a key of its own.
    """
    first = bindings[0]
    hosts = {host: index for index, host in enumerate(dict.fromkeys(b.host for b in bindings))}
    found = {
        "rendezvous": first.rendezvous,
        "num_hosts": str(len(hosts)),
        "communication_settings": _settings_text(first.settings),
    }
    for binding in bindings:
        found[f"rank_{binding.rank}"] = _place_text(binding, hosts[binding.host])
        if binding.settings != first.settings:
            found[f"communication_settings_rank_{binding.rank}"] = _settings_text(binding.settings)
    return found


def _place_text(binding: Binding, host: int) -> str:
    parts = [f"host {host}", f"local rank {binding.local_rank}", binding.device]
    if binding.pci_bus_id:
        parts.append(f"PCI {binding.pci_bus_id}")
    if binding.numa_node != UNKNOWN_NODE:
        parts.append(f"NUMA {binding.numa_node}")
    if binding.nics:
        parts.append(f"NIC {'+'.join(binding.nics)} through {binding.nics_through}")
    return ", ".join([*parts, f"CPUs {as_ranges(binding.cpus)}"])


def _settings_text(settings: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items()) or "none"


def _host_token() -> str:
    """Equal on one host, different on another, and telling nothing else: never written."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    name = platform.node() + (boot.read_text(encoding="utf-8") if boot.exists() else "")
    return hashlib.sha256(name.encode()).hexdigest()


def _bus_id(device: torch.device) -> str:
    """A GPU's PCI bus id as /sys spells it; empty where NVML is missing, and on the CPU."""
    if device.type != "cuda":
        return ""
    try:
        return short_bus_id(bus_id_of(*_nvml(device)))
    except Exception:  # NVML is optional: its absence is told by `driver` and `clocks_before`
        return ""


def _nvml(device: torch.device) -> tuple[Any, Any]:
    import pynvml
    import torch

    pynvml.nvmlInit()
    # The UUID, not the index: NVML does not see CUDA_VISIBLE_DEVICES.
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)


def _driver() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception as error:
        return f"unknown: {type(error).__name__}"


def version_of(package: str) -> str:
    """An installed package's version; empty text when it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""

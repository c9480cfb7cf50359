"""What this machine has for measuring: packages, GPUs, links, communication, instruments.

Facts only; what a missing piece costs is said where they are printed. Imports without torch, and
answers on a machine that has neither torch nor a GPU.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from layerwise.hw.host.affinity import (
    SYS,
    UNKNOWN_NODE,
    GpuPair,
    Launcher,
    Nearest,
    Nic,
    asked,
    bus_id_of,
    communication_settings,
    cpus_of_this_process,
    gpu_pairs,
    launcher_of,
    nearest_nics,
    nics,
    numa_node_of,
    numa_nodes_of_cpus,
    short_bus_id,
)
from layerwise.hw.host.environment import THROTTLE_REASONS, version_of
from layerwise.hw.host.rates import PeerCopy, in_short, peer_copies, read_rate

PACKAGES = ("torch", "triton", "nvtx", "cupti-python", "nvidia-ml-py", "simpy", "pydantic")
# Where the driver says who may read counters. Source: developer.nvidia.com/ERR_NVGPUCTRPERM.
DRIVER_PARAMETERS = Path("/proc/driver/nvidia/params")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as found. Zeros, and empty text, are what nobody could tell.

    `read_bytes_per_s`: HBM, over 2 GiB. `problem`: why it could not be measured.
    """

    index: int
    name: str
    pci_bus_id: str
    numa_node: int
    compute_capability: str
    memory_bytes: int
    used_bytes: int
    l2_bytes: int
    num_sms: int
    sm_clock_hz: float = 0.0
    max_sm_clock_hz: float = 0.0
    memory_clock_hz: float = 0.0
    power_limit_w: float = 0.0
    usual_power_limit_w: float = 0.0
    throttled: tuple[str, ...] = ()
    nearest_nics: Nearest | None = None
    read_bytes_per_s: float = 0.0
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """Who can watch kernels. `cupti_problem` is empty where CUPTI could be subscribed to.

    `counters_restricted`: only an administrator may read hardware counters here.
    """

    cupti_library: bool
    cupti_problem: str
    nsys: bool
    ncu: bool
    counters_restricted: bool


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything that the pre-flight check found. `versions`: empty text for a missing package."""

    python: str
    versions: Mapping[str, str]
    torch_problem: str
    nvml_problem: str
    driver: str
    cuda: str
    nccl: str
    gpus: tuple[Gpu, ...]
    gpus_outside_torch: int
    cuda_problem: str
    pairs: tuple[GpuPair, ...]
    copies: tuple[PeerCopy, ...]
    nics: tuple[Nic, ...]
    cpus: tuple[int, ...]
    cpu_numa_nodes: tuple[int, ...]
    launcher: Launcher
    settings: Mapping[str, str]
    instruments: Instruments
    looked_at_gpus: bool
    measured: bool


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What the check looks through; tests hand in stand-ins. A module that is missing is None."""

    torch: Any = None
    nvml: Any = None
    torch_problem: str = ""
    nvml_problem: str = ""
    sys: Path = SYS
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    which: Callable[[str], str | None] = shutil.which


def probes_here() -> Probes:
    """This machine's torch, NVML, /sys, environment and PATH."""
    torch, torch_problem = _imported("torch")
    nvml, nvml_problem = _imported("pynvml")
    if nvml is not None:
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            nvml, nvml_problem = None, str(error)
    return Probes(torch=torch, nvml=nvml, torch_problem=torch_problem, nvml_problem=nvml_problem)


def examine(
    probes: Probes, device: Literal["cuda", "cpu"] = "cuda", *, quick: bool = False
) -> Machine:
    """Look at the machine; unless `quick`, measure HBM and every pair of GPUs too.

    `device` "cpu" leaves the GPUs alone.
    """
    torch = probes.torch
    on_gpus = device == "cuda"
    found = nics(probes.sys)
    cuda_problem = _cuda_problem(torch) if on_gpus else ""
    usable = on_gpus and torch is not None and not cuda_problem and torch.cuda.is_available()
    handles = _handles(probes, usable=usable) if on_gpus else []
    measure = usable and not quick
    every = range(len(handles)) if usable else range(0)
    gpus = tuple(_gpu(probes, index, handles[index], found, measure=measure) for index in every)
    with_handle = usable and probes.nvml is not None and None not in handles
    cpus = cpus_of_this_process()
    return Machine(
        python=platform.python_version(),
        versions={name: version_of(name) for name in PACKAGES},
        torch_problem=probes.torch_problem,
        nvml_problem=probes.nvml_problem,
        driver=str(probes.nvml.nvmlSystemGetDriverVersion()) if probes.nvml else "",
        cuda=str(torch.version.cuda or "") if torch else "",
        nccl=_nccl(torch) if usable else "",
        gpus=gpus,
        cuda_problem=cuda_problem,
        gpus_outside_torch=0 if usable else len(handles),
        pairs=gpu_pairs(probes.nvml, handles) if with_handle else (),
        copies=peer_copies(torch, len(gpus)) if measure else (),
        nics=found,
        cpus=cpus,
        cpu_numa_nodes=numa_nodes_of_cpus(cpus, probes.sys),
        launcher=launcher_of(probes.environment),
        settings=communication_settings(probes.environment),
        instruments=_instruments(probes, usable=usable),
        looked_at_gpus=on_gpus,
        measured=measure,
    )


def _cuda_problem(torch: Any) -> str:
    """Why CUDA does not start on a machine where torch sees GPUs."""
    try:
        for index in range(torch.cuda.device_count() if torch else 0):
            torch.cuda.get_device_properties(index)
    except Exception as error:
        return in_short(error)
    return ""


def _nccl(torch: Any) -> str:
    return ".".join(map(str, torch.cuda.nccl.version()))


def _handles(probes: Probes, *, usable: bool) -> list[Any]:
    """NVML's handle of each GPU that torch sees (None: unknown), else of each that NVML sees."""
    nvml = probes.nvml
    if usable:
        return [_handle(probes, index) for index in range(probes.torch.cuda.device_count())]
    count = nvml.nvmlDeviceGetCount() if nvml else 0
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]


def _handle(probes: Probes, index: int) -> Any:
    if probes.nvml is None:
        return None
    # The UUID, not the index: NVML does not see CUDA_VISIBLE_DEVICES.
    uuid = probes.torch.cuda.get_device_properties(index).uuid
    try:
        return probes.nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except probes.nvml.NVMLError:
        return None


def _gpu(probes: Probes, index: int, handle: Any, found: tuple[Nic, ...], *, measure: bool) -> Gpu:
    rate = read_rate(probes.torch, index) if measure else 0.0
    properties = probes.torch.cuda.get_device_properties(index)
    bus_id = short_bus_id(bus_id_of(probes.nvml, handle)) if handle is not None else ""
    read: dict[str, Any] = {"problem" if isinstance(rate, str) else "read_bytes_per_s": rate}
    return Gpu(
        index=index,
        name=properties.name,
        pci_bus_id=bus_id,
        numa_node=numa_node_of(bus_id, probes.sys) if bus_id else UNKNOWN_NODE,
        compute_capability=f"{properties.major}.{properties.minor}",
        memory_bytes=properties.total_memory,
        l2_bytes=properties.L2_cache_size,
        num_sms=properties.multi_processor_count,
        nearest_nics=nearest_nics(bus_id, found, probes.sys) if bus_id else None,
        # After the reading, so that the clocks are those of a GPU at work.
        **_condition(probes.nvml, handle),
        **read,
    )


def _condition(nvml: Any, handle: Any) -> dict[str, Any]:
    """Clocks, power limits, throttling and used memory of a GPU; nothing without a handle."""
    if handle is None:
        return {"used_bytes": 0}

    def answer(function: str, *arguments: Any) -> Any:
        return asked(nvml, lambda: getattr(nvml, function)(handle, *arguments), 0)

    reasons = answer("nvmlDeviceGetCurrentClocksThrottleReasons")
    return {
        "used_bytes": getattr(answer("nvmlDeviceGetMemoryInfo"), "used", 0),
        "sm_clock_hz": answer("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM) * 1e6,
        "max_sm_clock_hz": answer("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM) * 1e6,
        "memory_clock_hz": answer("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM) * 1e6,
        "power_limit_w": answer("nvmlDeviceGetEnforcedPowerLimit") / 1e3,
        "usual_power_limit_w": answer("nvmlDeviceGetPowerManagementDefaultLimit") / 1e3,
        "throttled": tuple(name for bit, name in THROTTLE_REASONS.items() if reasons & bit),
    }


def _instruments(probes: Probes, *, usable: bool) -> Instruments:
    library, problem = _cupti(usable=usable)
    restricted = "RmProfilingAdminOnly: 1" in _driver_parameters() and os.geteuid() != 0
    return Instruments(
        cupti_library=library,
        cupti_problem=problem,
        nsys=probes.which("nsys") is not None,
        ncu=probes.which("ncu") is not None,
        counters_restricted=restricted,
    )


def _cupti(*, usable: bool) -> tuple[bool, str]:
    """(is there a libcupti, why it cannot be subscribed to)."""
    from layerwise.hw.instrument.cupti import KernelRecorder, find_libcupti

    try:
        find_libcupti()
    except FileNotFoundError:
        return False, "no libcupti in this process and none in the nvidia wheels"
    if find_spec("cupti") is None:
        return True, "the package cupti-python is not installed"
    if not usable:
        return True, "no GPU to subscribe for"
    try:
        recorder = KernelRecorder()
        recorder.open()
        recorder.close()
    except Exception as error:
        return True, in_short(error)
    return True, ""


def _driver_parameters() -> str:
    try:
        return DRIVER_PARAMETERS.read_text(encoding="utf-8")
    except OSError:
        return ""


def _imported(name: str) -> tuple[Any, str]:
    try:
        return import_module(name), ""
    except Exception as error:  # a broken libcudart is an OSError, a broken wheel anything
        return None, in_short(error)

"""Where a measurement was taken: hardware, driver, libraries, clocks. Never the host's name."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

# Bits of nvmlClocksEventReasons. Source: NVML API reference, nvmlClocksEventReasons.
THROTTLE_REASONS = {
    0x4: "software power cap", 0x8: "hardware slowdown", 0x20: "software thermal",
    0x40: "hardware thermal", 0x80: "hardware power brake",
}  # fmt: skip


def environment_of(device: torch.device) -> dict[str, str]:
    """Versions, device and date, as text for a trace's header."""
    found = {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": _version("triton"),
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


def _nvml(device: torch.device) -> tuple[Any, Any]:
    import pynvml

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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

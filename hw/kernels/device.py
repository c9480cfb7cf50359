"""What kernels are cut to: how many SMs a device has."""

from __future__ import annotations

import torch


def num_sms_of(device: torch.device) -> int:
    """Multiprocessors of a GPU. On a CPU, where nothing runs side by side, any figure will do."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count

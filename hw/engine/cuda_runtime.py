"""The few CUDA runtime calls that torch does not offer, in the libcudart that torch has loaded.

Structures follow CUDA's `driver_types.h`; layouts are the same in CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerwise.hw.errors import CudaCallError, NotAvailableError

# Source: driver_types.h. The enums cudaLimit, cudaDeviceAttr, cudaLaunchAttributeID,
# cudaGraphNodeType, cudaAccessProperty and cudaStreamCaptureStatus.
LIMIT_PERSISTING_L2_BYTES = 0x06
ATTRIBUTE_MAX_PERSISTING_L2_BYTES, ATTRIBUTE_MAX_WINDOW_BYTES = 108, 109
LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW = 1
NODE_TYPE_KERNEL = 0
ACCESS_NORMAL, ACCESS_STREAMING, ACCESS_PERSISTING = 0, 1, 2
CAPTURE_ACTIVE = 1


class AccessPolicyWindow(ctypes.Structure):
    """cudaAccessPolicyWindow: 28 bytes, padded to 32."""

    _fields_ = (
        ("base_ptr", ctypes.c_void_p),
        ("num_bytes", ctypes.c_size_t),
        ("hit_ratio", ctypes.c_float),
        ("hit_property", ctypes.c_int),
        ("miss_property", ctypes.c_int),
    )


class LaunchAttributeValue(ctypes.Union):
    """cudaLaunchAttributeValue: a union of 64 bytes."""

    _fields_ = (("padding", ctypes.c_char * 64), ("access_policy_window", AccessPolicyWindow))


class CudaRuntime:
    """Calls whose return codes are checked. Raises NotAvailableError without a loaded libcudart."""

    def __init__(self, library: Path | None = None) -> None:
        self._library = ctypes.CDLL(str(library or loaded_cudart()))
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        # CUDA 12 versions the symbol and has no edge data; one more null argument is not read.
        self._capture_info_name = next(
            name
            for name in ("cudaStreamGetCaptureInfo_v2", "cudaStreamGetCaptureInfo")
            if hasattr(self._library, name)
        )

    def set_limit(self, limit: int, value: int) -> None:
        """Ask for a device limit; the device may grant less or more."""
        self._call("cudaDeviceSetLimit", ctypes.c_int(limit), ctypes.c_size_t(value))

    def limit(self, limit: int) -> int:
        """A device limit as granted."""
        found = ctypes.c_size_t()
        self._call("cudaDeviceGetLimit", ctypes.byref(found), ctypes.c_int(limit))
        return found.value

    def attribute(self, attribute: int, device: int) -> int:
        """A device attribute."""
        found = ctypes.c_int()
        self._call(
            "cudaDeviceGetAttribute",
            ctypes.byref(found),
            ctypes.c_int(attribute),
            ctypes.c_int(device),
        )
        return found.value

    def reset_persisting_l2(self) -> None:
        """Make all persisting lines normal."""
        self._call("cudaCtxResetPersistingL2Cache")

    def capturing_graph(self, stream: int) -> int:
        """The graph that a stream is being captured into, or 0."""
        status, graph = ctypes.c_int(), ctypes.c_void_p()
        self._call(
            self._capture_info_name,
            ctypes.c_void_p(stream),
            ctypes.byref(status),
            None,
            ctypes.byref(graph),
            None,
            None,
            None,
        )
        return graph.value or 0 if status.value == CAPTURE_ACTIVE else 0

    def nodes(self, graph: int) -> list[int]:
        """All nodes of a graph."""
        count = ctypes.c_size_t()
        self._call("cudaGraphGetNodes", ctypes.c_void_p(graph), None, ctypes.byref(count))
        nodes = (ctypes.c_void_p * count.value)()
        if count.value:
            self._call("cudaGraphGetNodes", ctypes.c_void_p(graph), nodes, ctypes.byref(count))
        return [node for node in nodes if node]

    def is_kernel(self, node: int) -> bool:
        """Does a node launch a kernel?"""
        found = ctypes.c_int()
        self._call("cudaGraphNodeGetType", ctypes.c_void_p(node), ctypes.byref(found))
        return found.value == NODE_TYPE_KERNEL

    def set_window(self, node: int, window: AccessPolicyWindow) -> None:
        """Give a kernel node an access-policy window."""
        value = LaunchAttributeValue(access_policy_window=window)
        self._call(
            "cudaGraphKernelNodeSetAttribute",
            ctypes.c_void_p(node),
            ctypes.c_int(LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW),
            ctypes.byref(value),
        )

    def window(self, node: int) -> AccessPolicyWindow:
        """The window that a kernel node carries; of 0 bytes when it has none."""
        value = LaunchAttributeValue()
        self._call(
            "cudaGraphKernelNodeGetAttribute",
            ctypes.c_void_p(node),
            ctypes.c_int(LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW),
            ctypes.byref(value),
        )
        # A copy: the member is a view into the union.
        return AccessPolicyWindow.from_buffer_copy(value.access_policy_window)

    def _call(self, name: str, *arguments: Any) -> None:
        function: Callable[..., int] = getattr(self._library, name)
        code = function(*arguments)
        if code:
            # What failed must not be found again by torch's next check of the last error.
            self._library.cudaGetLastError()
            text = self._library.cudaGetErrorString(ctypes.c_int(code))
            raise CudaCallError(name, code, text.decode() if text else "unknown")


def loaded_cudart() -> Path:
    """The libcudart in this process, which torch has loaded. Raises NotAvailableError."""
    maps = Path("/proc/self/maps")
    loaded = re.search(r"(/\S*libcudart\S*\.so\S*)", maps.read_text()) if maps.exists() else None
    if loaded is None:
        raise NotAvailableError(
            "run.persisting_weights=True needs the CUDA runtime and torch has loaded none; "
            "measure on a CUDA GPU"
        )
    return Path(loaded.group(1))

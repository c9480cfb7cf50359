"""Access-policy windows: ask the L2 to keep a rank's weights from one step to the next.

Kernel nodes of a graph carry their windows. They are given right after each op was captured: until
the capture ends, everything but removing nodes is allowed on its graph (CUDA runtime API,
cudaStreamGetCaptureInfo).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from layerwise.hw.engine.cuda_runtime import (
    ACCESS_PERSISTING,
    ACCESS_STREAMING,
    ATTRIBUTE_MAX_PERSISTING_L2_BYTES,
    ATTRIBUTE_MAX_WINDOW_BYTES,
    LIMIT_PERSISTING_L2_BYTES,
    AccessPolicyWindow,
    CudaRuntime,
)
from layerwise.hw.engine.memory import DeviceMemory
from layerwise.hw.errors import NotAvailableError
from layerwise.hw.instrument.observe import Lane, Observer
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.hardware import GpuSpec
from layerwise.sim.plan.program import PlacedOp, Program
from layerwise.sim.plan.residency import (
    rank_weight_bytes,
    window_bytes,
    window_hit_ratio,
)
from layerwise.sim.plan.scenario import Scenario


class WeightWindows(Observer):
    """Gives the kernels of each op that reads a weight a window over that weight.

    Lines outside the persisting share are streaming: they leave first, so that KV and activations
    have the rest of the L2 for themselves.
    """

    def __init__(
        self, runtime: CudaRuntime, memory: DeviceMemory, gpu: GpuSpec, programs: Sequence[Program]
    ) -> None:
        self._runtime, self._memory, self._gpu = runtime, memory, gpu
        self.hit_ratio = window_hit_ratio(rank_weight_bytes(programs), gpu)
        self._seen: set[int] = set()
        self.num_kernel_nodes = self.num_windows = 0

    def restart(self) -> None:
        """A new capture begins: its nodes may have the addresses of those that are gone."""
        self._seen.clear()
        self.num_kernel_nodes = self.num_windows = 0

    def end(self, placed: PlacedOp, lane: Lane) -> None:
        graph = self._runtime.capturing_graph(torch.cuda.current_stream().cuda_stream)
        if not graph:
            return
        added = [node for node in self._runtime.nodes(graph) if node not in self._seen]
        self._seen.update(added)
        kernels = [node for node in added if self._runtime.is_kernel(node)]
        self.num_kernel_nodes += len(kernels)
        window = self.window_of(placed)
        if window is None:
            return
        for node in kernels:
            self._runtime.set_window(node, window)
            # What the node says, not what it was told.
            self.num_windows += self._runtime.window(node).num_bytes > 0

    def window_of(self, placed: PlacedOp) -> AccessPolicyWindow | None:
        """The window over an op's weight, or none."""
        weight = placed.op.whole_weight
        if weight is None:
            return None
        tensor = self._memory.tensor(weight, placed.layer, placed.microbatch)
        return AccessPolicyWindow(
            base_ptr=tensor.data_ptr(),
            num_bytes=window_bytes(weight, self._gpu),
            hit_ratio=self.hit_ratio,
            hit_property=ACCESS_PERSISTING,
            miss_property=ACCESS_STREAMING,
        )

    def report(self) -> dict[str, str]:
        """What was asked and what was granted, for a trace's environment."""
        device = torch.cuda.current_device()
        return {
            "persisting_l2_asked_bytes": str(self._gpu.persisting_l2_bytes),
            "persisting_l2_granted_bytes": str(self._runtime.limit(LIMIT_PERSISTING_L2_BYTES)),
            "persisting_l2_max_bytes": str(
                self._runtime.attribute(ATTRIBUTE_MAX_PERSISTING_L2_BYTES, device)
            ),
            "access_window_max_bytes": str(
                self._runtime.attribute(ATTRIBUTE_MAX_WINDOW_BYTES, device)
            ),
            "window_hit_ratio": f"{self.hit_ratio:.6g}",
            "kernel_nodes": str(self.num_kernel_nodes),
            "kernel_nodes_with_window": str(self.num_windows),
        }


@contextmanager
def weight_windows(
    runtime: CudaRuntime, memory: DeviceMemory, gpu: GpuSpec, programs: Sequence[Program]
) -> Iterator[WeightWindows]:
    """Set L2 aside for persisting accesses while the context lasts; then give all of it back.

    Raises CudaCallError.
    """
    runtime.set_limit(LIMIT_PERSISTING_L2_BYTES, gpu.persisting_l2_bytes)
    try:
        yield WeightWindows(runtime, memory, gpu, programs)
    finally:
        runtime.reset_persisting_l2()
        runtime.set_limit(LIMIT_PERSISTING_L2_BYTES, 0)


def check_windows(scenario: Scenario, device: torch.device) -> None:
    """Refuse run.persisting_weights where nothing could carry the windows.

    Raises NotAvailableError on the CPU; SpecError in eager mode, or for a GPU with no set-aside.
    """
    gpu = scenario.cluster.gpu
    if not scenario.run.persisting_weights:
        return
    if device.type != "cuda":
        raise NotAvailableError(
            f"run.persisting_weights=True needs a CUDA GPU and the device is {device.type}; "
            "set it to false, or measure on a GPU"
        )
    if scenario.run.launch != "graph":
        raise SpecError(
            "run.persisting_weights",
            True,
            f"has no effect with run.launch={scenario.run.launch!r}",
            "use run.launch='graph', whose kernel nodes carry the windows",
        )
    if not (gpu.persisting_l2_bytes and gpu.access_window_bytes):
        raise SpecError(
            "run.persisting_weights",
            True,
            f"needs the L2 set-aside of {gpu.name}",
            "give cluster.gpu.persisting_l2_bytes and cluster.gpu.access_window_bytes",
        )

"""Persisting windows: which nodes get one, what is refused, and what is given back."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from layerwise.hw.engine.collectives import ReplacedPeers
from layerwise.hw.engine.cuda_runtime import (
    AccessPolicyWindow,
    CudaRuntime,
    LaunchAttributeValue,
    loaded_cudart,
)
from layerwise.hw.engine.execute import Engine
from layerwise.hw.engine.memory import allocate, random_fill, slots_of
from layerwise.hw.engine.residency import WeightWindows, check_windows, weight_windows
from layerwise.hw.engine.schedule import actions_of
from layerwise.hw.errors import CudaCallError, NotAvailableError
from layerwise.hw.measure import measure
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.plan.program import Program
from layerwise.sim.plan.residency import rank_weight_bytes
from layerwise.sim.plan.scenario import compile_run
from tests.hw.scenes import scenario

CPU = torch.device("cpu")
GPU = replace(GPUS["h100-sxm"], persisting_l2_bytes=50_000, access_window_bytes=20_000)
PERSISTING_L2_LIMIT = 6


class PretendedRuntime:
    """A capture in which each op adds one kernel node and one that is none."""

    def __init__(self, *, capturing: bool = True, refuses: bool = False) -> None:
        self.capturing, self.refuses = capturing, refuses
        self.windows: dict[int, AccessPolicyWindow] = {}
        self.calls: list[tuple[object, ...]] = []
        self._nodes: list[int] = []

    def forget(self) -> None:
        """The next graph's nodes have the addresses of those that are gone."""
        self._nodes.clear()

    def capturing_graph(self, stream: int) -> int:
        self._nodes += [len(self._nodes) + 1, len(self._nodes) + 2]
        return 7 if self.capturing else 0

    def nodes(self, graph: int) -> list[int]:
        return self._nodes

    def is_kernel(self, node: int) -> bool:
        return node % 2 == 1

    def set_window(self, node: int, window: AccessPolicyWindow) -> None:
        self.windows[node] = window

    def window(self, node: int) -> AccessPolicyWindow:
        return AccessPolicyWindow() if self.refuses else self.windows[node]

    def set_limit(self, limit: int, value: int) -> None:
        self.calls.append(("limit", limit, value))

    def reset_persisting_l2(self) -> None:
        self.calls.append(("reset",))


@pytest.fixture(autouse=True)
def stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.current_stream", lambda: SimpleNamespace(cuda_stream=1))


def program() -> Program:
    return compile_run(scenario())[2].programs[0]


def watched(runtime: PretendedRuntime) -> tuple[WeightWindows, Engine]:
    """The tiny model, run once on the CPU with windows watching."""
    memory = allocate(slots_of([program()]), CPU, random_fill(CPU))
    windows = WeightWindows(runtime, memory, GPU, [program()])
    engine = Engine(0, memory, ReplacedPeers(), [windows])
    engine.run(actions_of(program()))
    return windows, engine


def test_kernels_of_ops_with_a_weight_get_a_window_over_it() -> None:
    runtime = PretendedRuntime()
    _, engine = watched(runtime)
    expected: dict[int, tuple[int, int]] = {}
    for index, placed in enumerate(program()):
        weight = getattr(placed.op, "weight", None)
        if weight is not None:
            tensor = engine.memory.tensor(weight, placed.layer, placed.microbatch)
            expected[2 * index + 1] = (tensor.data_ptr(), min(20_000, tensor.nbytes))

    assert expected == {node: (w.base_ptr, w.num_bytes) for node, w in runtime.windows.items()}


def test_windows_together_fill_the_set_aside() -> None:
    runtime = PretendedRuntime()
    windows, _ = watched(runtime)
    ratio = 50_000 / rank_weight_bytes([program()])

    assert pytest.approx(ratio) == windows.hit_ratio
    assert {(2, 1)} == {(w.hit_property, w.miss_property) for w in runtime.windows.values()}
    assert all(pytest.approx(ratio) == w.hit_ratio for w in runtime.windows.values())


def test_nodes_are_counted_as_they_say_themselves() -> None:
    (kept, _), (refused, _) = (watched(PretendedRuntime(refuses=r)) for r in (False, True))
    with_weight = sum(hasattr(placed.op, "weight") for placed in program())

    assert (len(program()), with_weight) == (kept.num_kernel_nodes, kept.num_windows)
    assert (len(program()), 0) == (refused.num_kernel_nodes, refused.num_windows)


def test_a_new_capture_counts_anew() -> None:
    runtime = PretendedRuntime()
    windows, engine = watched(runtime)
    once = windows.num_windows
    windows.restart()
    runtime.forget()
    engine.run(actions_of(program()))

    assert once == windows.num_windows


def test_outside_a_capture_nothing_is_set() -> None:
    runtime = PretendedRuntime(capturing=False)
    windows, _ = watched(runtime)

    assert ({}, 0) == (runtime.windows, windows.num_kernel_nodes)


def test_the_l2_is_given_back_even_after_a_failure() -> None:
    runtime = PretendedRuntime()
    memory = allocate(slots_of([program()]), CPU, random_fill(CPU))
    with (
        pytest.raises(ValueError, match="inside"),
        weight_windows(runtime, memory, GPU, [program()]),
    ):
        raise ValueError("inside")

    limit = PERSISTING_L2_LIMIT
    assert [("limit", limit, 50_000), ("reset",), ("limit", limit, 0)] == runtime.calls


def test_the_cpu_is_refused() -> None:
    with pytest.raises(NotAvailableError, match="run.persisting_weights=True needs a CUDA GPU"):
        measure(scenario(persisting_weights=True), timing="clock", device="cpu")


def test_eager_launches_are_refused() -> None:
    with pytest.raises(SpecError, match="has no effect with run.launch='eager'"):
        check_windows(scenario(persisting_weights=True), torch.device("cuda"))


def test_a_gpu_without_a_set_aside_is_refused() -> None:
    asked = scenario(persisting_weights=True, launch="graph")
    gpu = replace(GPU, persisting_l2_bytes=0)
    asked = replace(asked, cluster=replace(asked.cluster, gpu=gpu))
    with pytest.raises(SpecError, match="cluster.gpu.persisting_l2_bytes"):
        check_windows(asked, torch.device("cuda"))


def test_without_being_asked_nothing_is_refused() -> None:
    check_windows(scenario(), CPU)


def test_structures_are_as_large_as_cudas() -> None:
    offsets = [getattr(AccessPolicyWindow, name).offset for name, _ in AccessPolicyWindow._fields_]

    assert (32, 64) == (ctypes.sizeof(AccessPolicyWindow), ctypes.sizeof(LaunchAttributeValue))
    assert [0, 8, 16, 20, 24] == offsets


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch loads a CUDA runtime")
def test_a_torch_without_cuda_has_no_runtime() -> None:
    with pytest.raises(NotAvailableError, match="torch has loaded none"):
        loaded_cudart()


class FailingLibrary(SimpleNamespace):
    """A libcudart whose calls return 100."""

    def __getattr__(self, name: str) -> object:
        return lambda *arguments: 100


def test_a_failed_call_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FailingLibrary(cudaGetErrorString=lambda code: b"no device")
    monkeypatch.setattr("layerwise.hw.engine.cuda_runtime.ctypes.CDLL", lambda path: library)
    runtime = CudaRuntime(Path("libcudart.so"))
    with pytest.raises(
        CudaCallError, match="cudaDeviceSetLimit failed with CUDA error 100: no device"
    ):
        runtime.set_limit(PERSISTING_L2_LIMIT, 1)

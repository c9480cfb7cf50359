"""The pre-flight check's facts: on a machine made of stand-ins, and on this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from layerwise.hw.host.affinity import Nearest
from layerwise.hw.host.doctor import Machine, Probes, examine, probes_here
from layerwise.hw.host.rates import PeerCopy, peer_copies, read_rate
from tests.hw.machines import BUS_IDS, H100, Nvml, make_sys, make_torch
from tests.hw.test_imports import imported


def probes(tmp_path: Path, **parts: Any) -> Probes:
    given = {"torch": make_torch(), "nvml": Nvml(), "environment": {}, "which": lambda name: None}
    return Probes(sys=make_sys(tmp_path / "sys"), **given | parts)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return examine(probes(tmp_path), quick=True)


def test_it_imports_without_torch_and_nvml() -> None:
    assert (
        "[]" == imported("layerwise.hw.host.doctor", "torch", "pynvml", "triton", "cupti").strip()
    )


def test_a_gpu_is_told_by_torch_and_nvml_together(machine: Machine) -> None:
    gpu = machine.gpus[0]
    assert (H100, BUS_IDS[0], 0, "9.0", 132, 1500e6, 1980e6, 2619e6, 700.0, ()) == (
        gpu.name,
        gpu.pci_bus_id,
        gpu.numa_node,
        gpu.compute_capability,
        gpu.num_sms,
        gpu.sm_clock_hz,
        gpu.max_sm_clock_hz,
        gpu.memory_clock_hz,
        gpu.power_limit_w,
        gpu.throttled,
    )


def test_each_gpu_has_its_nearest_adapter(machine: Machine) -> None:
    assert [
        Nearest(names=("mlx5_0",), through="a PCIe switch"),
        Nearest(names=("mlx5_10",), through="the NUMA node"),
    ] == [gpu.nearest_nics for gpu in machine.gpus]


def test_versions_and_links_are_told(machine: Machine) -> None:
    assert ("580.1", "13.0", "2.28.9") == (machine.driver, machine.cuda, machine.nccl)
    assert [18] == [pair.nvlinks for pair in machine.pairs]


def test_a_quick_look_measures_nothing(machine: Machine) -> None:
    assert (False, ()) == (machine.measured, machine.copies)
    assert [0.0, 0.0] == [gpu.read_bytes_per_s for gpu in machine.gpus]


def test_reasons_to_throttle_are_named(tmp_path: Path) -> None:
    found = examine(probes(tmp_path, nvml=Nvml(throttle=0x4 | 0x40 | 0x1)), quick=True)
    assert ("software power cap", "hardware thermal") == found.gpus[0].throttled


def test_without_nvml_torch_still_tells_what_it_knows(tmp_path: Path) -> None:
    found = examine(probes(tmp_path, nvml=None), quick=True)
    assert [(H100, "", -1, 0.0)] * 2 == [
        (gpu.name, gpu.pci_bus_id, gpu.numa_node, gpu.max_sm_clock_hz) for gpu in found.gpus
    ]
    assert ((), "") == (found.pairs, found.driver)


def test_gpus_that_torch_cannot_see_are_counted(tmp_path: Path) -> None:
    for torch in (None, make_torch(num_gpus=0)):
        found = examine(probes(tmp_path / str(torch is None), torch=torch), quick=True)
        assert (2, ()) == (found.gpus_outside_torch, found.gpus)


def test_a_gpu_that_does_not_start_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    def fail(index: int) -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error")

    torch = make_torch()
    torch.cuda.get_device_properties = fail
    found = examine(probes(tmp_path, torch=torch))
    assert ("RuntimeError: CUDA error: uncorrectable ECC error", ()) == (
        found.cuda_problem,
        found.gpus,
    )


def test_a_question_that_nvml_refuses_is_left_open(tmp_path: Path) -> None:
    found = examine(probes(tmp_path, nvml=Nvml(refuses="nvmlDeviceGetEnforcedPowerLimit")))
    assert (0.0, 1500e6) == (found.gpus[0].power_limit_w, found.gpus[0].sm_clock_hz)


def test_gpus_are_left_alone_on_request(tmp_path: Path) -> None:
    found = examine(probes(tmp_path), "cpu", quick=True)
    assert ((), 0, "", False) == (
        found.gpus,
        found.gpus_outside_torch,
        found.nccl,
        found.looked_at_gpus,
    )


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    # The stand-in for torch has no events and no tensors.
    found = examine(probes(tmp_path))
    assert ["AttributeError"] * 2 == [gpu.problem.partition(":")[0] for gpu in found.gpus]
    assert [(0, 1, "AttributeError")] == [
        (copy.first, copy.second, copy.problem.partition(":")[0]) for copy in found.copies
    ]


def test_tools_are_looked_for_on_path(tmp_path: Path) -> None:
    found = examine(probes(tmp_path, which={"nsys": "nsys"}.get), quick=True)
    assert (True, False) == (found.instruments.nsys, found.instruments.ncu)


def test_this_machine_can_be_examined() -> None:
    found = examine(probes_here(), quick=True)
    assert found.versions["pydantic"]
    assert found.cpus


def test_no_pair_of_one_gpu_is_copied_between() -> None:
    assert () == peer_copies(None, 1)


def test_a_rate_that_cannot_be_taken_is_a_reason() -> None:
    assert "AttributeError: " in str(read_rate(None, 0))
    assert isinstance(peer_copies(None, 2)[0], PeerCopy)


@pytest.mark.cuda
def test_rates_of_a_gpu_are_measured() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    found = examine(probes_here())
    assert all(gpu.read_bytes_per_s > 1e11 for gpu in found.gpus)
    assert all(copy.intact and not copy.problem for copy in found.copies)

"""`layerwise doctor`: a verdict on each piece, and the cost of what is amiss."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from layerwise.hw.host.doctor import Instruments, Machine, Probes, examine
from layerwise.hw.host.rates import PeerCopy
from layerwise.scenarios.measure.diagnosis import Finding, findings_of
from layerwise.scenarios.measure.doctoring import abilities_of, machine_as_data, print_machine
from layerwise.sim.plan.hardware import GPUS
from tests.hw.machines import Nvml, make_sys, make_torch
from tests.scenarios.conftest import Run

H100 = GPUS["h100-sxm"]
COPY = PeerCopy(first=0, second=1, there_bytes_per_s=390e9, back_bytes_per_s=388e9)


def machine_with(folder: Path, **parts: Any) -> Machine:
    """Two H100s on NVLink that were measured; `parts` are probes."""
    given = {"torch": make_torch(), "nvml": Nvml(), "environment": {}, "which": str}
    looked = examine(Probes(sys=make_sys(folder), **given | parts), quick=True)
    gpus = tuple(replace(g, read_bytes_per_s=0.93 * H100.hbm_bytes_per_s) for g in looked.gpus)
    copies = (COPY,) if len(gpus) == 2 else ()
    instruments = Instruments(
        cupti_library=True, cupti_problem="", nsys=True, ncu=True, counters_restricted=False
    )
    return replace(
        looked,
        gpus=gpus,
        copies=copies,
        measured=True,
        instruments=instruments,
        versions=dict.fromkeys(looked.versions, "1.0"),
        cpus=(0, 1, 2, 3),
        cpu_numa_nodes=(0, 1),
    )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return machine_with(tmp_path / "sys")


def finding(machine: Machine, piece: str) -> Finding:
    return next(finding for finding in findings_of(machine) if finding.piece == piece)


def test_nothing_is_amiss_on_a_healthy_machine_but_a_port_that_is_down(machine: Machine) -> None:
    assert ["mlx5_2"] == [f.piece for f in findings_of(machine) if f.verdict != "ok"]


def test_all_that_is_amiss_says_what_it_costs(tmp_path: Path) -> None:
    bare = examine(Probes(sys=tmp_path, environment={}, which=lambda name: None), quick=True)
    amiss = [each for each in findings_of(bare) if each.verdict != "ok"]
    assert all(each.cost for each in amiss)
    assert {"GPUs", "NCCL", "NICs", "CUPTI", "nsys", "ncu"} <= {each.piece for each in amiss}


@pytest.mark.parametrize(
    "package", ["torch", "triton", "nvtx", "cupti-python", "nvidia-ml-py", "simpy", "pydantic"]
)
def test_a_missing_package_has_a_cost_of_its_own(machine: Machine, package: str) -> None:
    found = finding(replace(machine, versions={**machine.versions, package: ""}), package)
    assert ("missing", "not installed") == (found.verdict, found.found)
    assert found.cost


def test_a_package_that_does_not_load_is_missing(machine: Machine) -> None:
    found = finding(replace(machine, torch_problem="OSError: libcudart.so.13"), "torch")
    assert ("missing", "1.0: OSError: libcudart.so.13") == (found.verdict, found.found)


def test_a_driver_that_is_missing_is_no_missing_package(machine: Machine) -> None:
    problem = "NVML Shared Library Not Found"
    found = finding(replace(machine, nvml_problem=problem), "nvidia-ml-py")
    assert ("missing", f"1.0: {problem}") == (found.verdict, found.found)
    assert found.cost.startswith("no NVIDIA driver here: ")
    assert "pip install" not in found.cost


def test_a_gpu_is_one_line(machine: Machine) -> None:
    assert (
        "NVIDIA H100 80GB HBM3, 85.0 GB, L2 52 MB, 132 SMs, compute capability 9.0, "
        "PCI 0000:0c:00.0, NUMA node 0"
    ) == finding(machine, "cuda:0").found


def test_no_gpu_leaves_the_simulator_and_gloo(tmp_path: Path) -> None:
    found = finding(machine_with(tmp_path, torch=make_torch(0), nvml=None), "GPUs")
    assert ("missing", "none") == (found.verdict, found.found)
    assert "the simulator works" in found.cost and "gloo" in found.cost


def test_gpus_that_torch_cannot_see_are_not_called_none(tmp_path: Path) -> None:
    found = finding(machine_with(tmp_path, torch=None), "GPUs")
    assert "2 that the driver has and torch does not see" == found.found


def test_a_gpu_that_does_not_start_says_why(tmp_path: Path) -> None:
    bare = machine_with(tmp_path, torch=make_torch(0), nvml=None)
    found = finding(replace(bare, cuda_problem="RuntimeError: ECC"), "GPUs")
    assert "CUDA does not start: RuntimeError: ECC" == found.found


def test_a_profile_is_shipped_for_an_h100_and_not_for_others(tmp_path: Path) -> None:
    other = machine_with(tmp_path, torch=make_torch(name="NVIDIA H100 NVL"))
    calibrated = finding(machine_with(tmp_path / "h100"), "cuda:0 profile")
    assert ("ok", "calibrated: h100-sxm") == (calibrated.verdict, calibrated.found)
    assert "missing" == finding(other, "cuda:0 profile").verdict


@pytest.mark.parametrize(("share", "verdict"), [(0.93, "ok"), (0.8, "slow")])
def test_hbm_is_held_against_the_datasheet(machine: Machine, share: float, verdict: str) -> None:
    gpu = replace(machine.gpus[0], read_bytes_per_s=share * H100.hbm_bytes_per_s)
    assert verdict == finding(replace(machine, gpus=(gpu,)), "cuda:0 HBM").verdict


def test_a_throttled_gpu_is_slow(tmp_path: Path) -> None:
    found = finding(machine_with(tmp_path, nvml=Nvml(throttle=0x4)), "cuda:0 clocks")
    assert ("slow", True) == (found.verdict, found.found.endswith("held by software power cap"))


def test_a_lowered_power_limit_is_slow(tmp_path: Path) -> None:
    found = finding(machine_with(tmp_path, nvml=Nvml(limit_w=500)), "cuda:0 clocks")
    assert ("slow", True) == (found.verdict, "limit 500 W of the usual 700" in found.found)


def test_a_gpu_in_use_is_slow(tmp_path: Path) -> None:
    found = finding(machine_with(tmp_path, nvml=Nvml(used_bytes=9 * 10**9)), "cuda:1")
    assert ("slow", True) == (found.verdict, "9.0 GB in use" in found.found)


def test_a_pair_tells_its_links_and_its_speed(machine: Machine) -> None:
    assert "18 NVLinks 4.0, copies at 390 GB/s there, 388 back" == (
        finding(machine, "cuda:0 - 1").found
    )


@pytest.mark.parametrize(
    ("copy", "verdict", "cost"),
    [
        (replace(COPY, back_bytes_per_s=200e9), "slow", "44% of nvlink4"),
        (replace(COPY, intact=False), "missing", "NCCL_P2P_DISABLE=1"),
        (replace(COPY, problem="RuntimeError: no way"), "missing", "without the host"),
    ],
)
def test_a_bad_copy_is_amiss(machine: Machine, copy: PeerCopy, verdict: str, cost: str) -> None:
    found = finding(replace(machine, copies=(copy,)), "cuda:0 - 1")
    assert (verdict, True) == (found.verdict, cost in found.cost)


def test_pcie_between_gpus_is_slow(tmp_path: Path) -> None:
    found = finding(machine_with(tmp_path, nvml=Nvml(links=0)), "cuda:0 - 1")
    assert ("slow", True) == (found.verdict, found.found.startswith("PCIe, meeting at the system"))


def test_one_gpu_runs_one_rank_at_a_time(tmp_path: Path) -> None:
    found = finding(machine_with(tmp_path, torch=make_torch(1)), "GPU to GPU")
    assert ("missing", True) == (found.verdict, "run.only_rank" in found.cost)


def test_cpus_far_from_a_gpu_are_slow(machine: Machine) -> None:
    found = finding(replace(machine, cpu_numa_nodes=(0,)), "CPUs")
    assert ("slow", True) == (found.verdict, "cuda:1 cross the CPU sockets" in found.cost)


def test_fewer_cpus_than_gpus_are_slow(machine: Machine) -> None:
    assert "slow" == finding(replace(machine, cpus=(0,)), "CPUs").verdict


def test_variables_of_nccl_are_shown(tmp_path: Path) -> None:
    found = machine_with(tmp_path, environment={"NCCL_NVLS_ENABLE": "0", "HOME": "/x"})
    assert "NCCL_NVLS_ENABLE=0" == finding(found, "its variables").found


def test_counters_for_administrators_are_missing(machine: Machine) -> None:
    restricted = replace(machine.instruments, counters_restricted=True)
    assert "missing" == finding(replace(machine, instruments=restricted), "ncu").verdict


def test_what_can_be_done_is_said_in_sentences(machine: Machine) -> None:
    assert abilities_of(machine)[-1].startswith("measuring on GPUs works: placements of up to 2")
    assert (
        "measuring does not work: there is no torch"
        == (abilities_of(replace(machine, torch_problem="broken"))[-1])
    )


def test_it_fits_100_columns(machine: Machine) -> None:
    settings = {"NCCL_IB_HCA": ",".join(f"mlx5_{port}:1" for port in range(40))}
    out = Console(file=(text := io.StringIO()), width=100)
    print_machine(replace(machine, settings=settings, nvml_problem="x" * 300), out)
    assert max(map(len, text.getvalue().splitlines())) <= 100
    assert "mlx5_39:1" in text.getvalue()


def test_json_holds_findings_and_facts_in_si_units(machine: Machine) -> None:
    data = json.loads(json.dumps(machine_as_data(machine), allow_nan=False))
    assert 390e9 == data["machine"]["copies"][0]["there_bytes_per_s"]
    assert len(findings_of(machine)) == len(data["findings"])


def test_the_command_answers_on_this_machine(layerwise: Run) -> None:
    ran = layerwise("doctor", "--quick")
    assert (0, "") == (ran.code, ran.err)
    assert "predicting (paper, predict, compare) works: it needs no GPU" in ran.out
    assert "\\n" not in ran.out


def test_the_command_leaves_gpus_alone_for_the_cpu(layerwise: Run) -> None:
    ran = layerwise("doctor", "--device", "cpu", "--json")
    assert (0, False) == (ran.code, json.loads(ran.out)["machine"]["looked_at_gpus"])

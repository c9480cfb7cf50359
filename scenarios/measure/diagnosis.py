"""A verdict on each piece that the pre-flight check found, and what it costs where it is amiss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from layerwise.calibration.data import profile_path
from layerwise.hw.host.affinity import UNKNOWN_NODE, GpuPair, Nearest, Nic, as_ranges
from layerwise.hw.host.doctor import Gpu, Machine, PeerCopy
from layerwise.scenarios.tables import gigabytes, megabytes
from layerwise.sim.plan.hardware import GPUS, usual_wires

Verdict = Literal["ok", "missing", "slow"]
Section = Literal["software", "GPUs", "links", "communication", "instruments", "this process"]

# Names that devices report. Source: the first two, traces committed here; others, nvidia-smi's.
SPEC_OF_NAME = {
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H200": "h200",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA B200": "b200",
}
# A healthy H100 reads 92 to 93 % of its datasheet (validation traces), an H200 93 to 95 %.
LEAST_READ_SHARE = 0.88
# Copies reach 83 to 88 % of NVLink's rate on H100 and H200. Source: nvbandwidth and
# p2pBandwidthLatencyTest, public runs.
LEAST_COPY_SHARE = 0.75
# A context and what NVML counts as reserved stay below this; a model of somebody else's does not.
OWN_BYTES = 4 * 10**9
# Triton and bf16 matrix units. Source: CUDA C++ programming guide, compute capability 8.0.
LEAST_CAPABILITY = (8, 0)

NO_NVML = (
    "traces hold no clocks, power or throttling, and no rank's PCI place; this check sees no NVLink"
)
# What NVML says where the package is there and the driver is not. Source: nvmlErrorString.
NO_DRIVER = ("NVML Shared Library Not Found", "Driver Not Loaded")
COSTS = {
    "torch": "nothing can be measured, on CPU or GPU; predicting works. pip install '.[hw]'",
    "triton": "nothing runs in bf16 on a GPU (norms, rotary, activation, attention are Triton's); "
    "the CPU needs none",
    "nvtx": "eager runs cannot be timed by CUPTI or read in Nsight Systems, for lack of op names; "
    "graphs and --timing events work. pip install nvtx",
    "cupti-python": "no kernel times: --timing events puts two event nodes around each op, about a "
    "microsecond each. pip install cupti-python",
    "nvidia-ml-py": f"{NO_NVML}. pip install nvidia-ml-py",
    "simpy": "nothing can be predicted. pip install simpy",
    "pydantic": "no scenario file and no profile can be read. pip install pydantic",
}


@dataclass(frozen=True)
class Finding:
    """One piece of the machine. `cost`: what it costs that it is not ok, and what to do."""

    section: Section
    piece: str
    verdict: Verdict
    found: str
    cost: str = ""


def findings_of(machine: Machine) -> tuple[Finding, ...]:
    """Everything that was looked at, in the order of printing."""
    return (
        *_software(machine),
        *_gpus(machine),
        *_links(machine),
        *_communication(machine),
        *_instruments(machine),
        *_process(machine),
    )


def has_torch(machine: Machine) -> bool:
    """Can torch be imported here?"""
    return bool(machine.versions["torch"]) and not machine.torch_problem


def _software(machine: Machine) -> Iterator[Finding]:
    yield Finding("software", "python", "ok", machine.python)
    problems = {"torch": machine.torch_problem, "nvidia-ml-py": machine.nvml_problem}
    for name, version in machine.versions.items():
        problem = problems.get(name)
        if version and not problem:
            yield Finding("software", name, "ok", version)
        else:
            found = f"{version}: {problem}" if version else "not installed"
            cost = COSTS[name]
            if name == "nvidia-ml-py" and problem in NO_DRIVER:
                cost = f"no NVIDIA driver here: {NO_NVML}"
            yield Finding("software", name, "missing", found, cost)


def _gpus(machine: Machine) -> Iterator[Finding]:
    if not machine.looked_at_gpus:
        yield Finding("GPUs", "GPUs", "ok", "left alone: --device cpu")
        return
    if not machine.gpus:
        yield _no_gpu(machine)
        return
    driver = f"{machine.driver or 'unknown'}, CUDA {machine.cuda}"
    yield Finding("GPUs", "driver", "ok", driver)
    for gpu in machine.gpus:
        yield _identity(gpu)
        yield _profile(gpu)
        yield _reading(gpu, measured=machine.measured)
        if gpu.max_sm_clock_hz:
            yield _clocks(gpu)


def _no_gpu(machine: Machine) -> Finding:
    cost = "no GPU time; the simulator works, the engine runs with gloo on the CPU (--device cpu)"
    found = "none"
    if machine.gpus_outside_torch:
        found = f"{machine.gpus_outside_torch} that the driver has and torch does not see"
        cost += "; install a CUDA build of torch, or see CUDA_VISIBLE_DEVICES"
    if machine.cuda_problem:
        found = f"CUDA does not start: {machine.cuda_problem}"
    return Finding("GPUs", "GPUs", "missing", found, cost)


def _identity(gpu: Gpu) -> Finding:
    place = f", PCI {gpu.pci_bus_id}" if gpu.pci_bus_id else ""
    node = f", NUMA node {gpu.numa_node}" if gpu.numa_node != UNKNOWN_NODE else ""
    found = (
        f"{gpu.name}, {gigabytes(gpu.memory_bytes)} GB, L2 {megabytes(gpu.l2_bytes)} MB, "
        f"{gpu.num_sms} SMs, compute capability {gpu.compute_capability}{place}{node}"
    )
    if tuple(map(int, gpu.compute_capability.split("."))) < LEAST_CAPABILITY:
        cost = "no bf16 matrix units: the engine's kernels do not run on it"
        return _of(gpu, "", "missing", found, cost)
    if gpu.used_bytes > OWN_BYTES:
        cost = "another process works on it: times are shared, and less fits"
        return _of(gpu, "", "slow", f"{found}, {gigabytes(gpu.used_bytes)} GB in use", cost)
    return _of(gpu, "", "ok", found)


def _profile(gpu: Gpu) -> Finding:
    spec = SPEC_OF_NAME.get(gpu.name, "")
    if spec and profile_path(spec).exists():
        return _of(gpu, "profile", "ok", f"calibrated: {spec}")
    cost = (
        "predictions for it rest on datasheets, or on another GPU's profile moved by datasheet "
        "ratios; make one with `layerwise calibrate --collect DIR`, then --fit"
    )
    return _of(gpu, "profile", "missing", "no calibration profile is shipped", cost)


def _reading(gpu: Gpu, *, measured: bool) -> Finding:
    if not measured:
        return _of(gpu, "HBM", "ok", "not measured: --quick")
    if gpu.problem:
        cost = "its read rate is unknown, and so is the floor that steps are held against"
        return _of(gpu, "HBM", "missing", f"could not be read: {gpu.problem}", cost)
    found = f"read at {gpu.read_bytes_per_s / 1e9:,.0f} GB/s"
    spec = GPUS.get(SPEC_OF_NAME.get(gpu.name, ""))
    if spec is None:
        return _of(gpu, "HBM", "ok", found)
    share = gpu.read_bytes_per_s / spec.hbm_bytes_per_s
    found += f", {share:.1%} of the datasheet's {spec.hbm_bytes_per_s / 1e9:,.0f}"
    if share < LEAST_READ_SHARE:
        cost = f"decoding slows alike; a healthy one reads {LEAST_READ_SHARE:.0%} or more"
        return _of(gpu, "HBM", "slow", found, cost)
    return _of(gpu, "HBM", "ok", found)


def _clocks(gpu: Gpu) -> Finding:
    found = (
        f"SMs at {gpu.sm_clock_hz / 1e6:,.0f} of {gpu.max_sm_clock_hz / 1e6:,.0f} MHz, memory at "
        f"{gpu.memory_clock_hz / 1e6:,.0f} MHz, power limit {gpu.power_limit_w:,.0f} W"
    )
    if gpu.throttled:
        cost = "times are those of a throttled GPU; traces mark such a run"
        return _of(gpu, "clocks", "slow", f"{found}, held by {', '.join(gpu.throttled)}", cost)
    if gpu.power_limit_w < gpu.usual_power_limit_w:
        cost = "large matmuls (prefill) meet the cap earlier and clock down"
        usual = f"{found} of the usual {gpu.usual_power_limit_w:,.0f}"
        return _of(gpu, "clocks", "slow", usual, cost)
    return _of(gpu, "clocks", "ok", f"{found}, not throttled")


def _of(gpu: Gpu, piece: str, verdict: Verdict, found: str, cost: str = "") -> Finding:
    return Finding("GPUs", f"cuda:{gpu.index} {piece}".rstrip(), verdict, found, cost)


def _links(machine: Machine) -> Iterator[Finding]:
    if len(machine.gpus) == 1:
        cost = "several ranks at once do not run here: measure them one by one, run.only_rank"
        yield Finding("links", "GPU to GPU", "missing", "one GPU", cost)
    copies = {(copy.first, copy.second): copy for copy in machine.copies}
    pairs = {(pair.first, pair.second): pair for pair in machine.pairs}
    for key in sorted(copies.keys() | pairs.keys()):
        pair, copy = pairs.get(key), copies.get(key)
        verdict, cost = _link_verdict(pair, copy, machine.gpus[key[0]].name)
        found = f"{_wire_text(pair)}, {_copy_text(copy)}"
        yield Finding("links", f"cuda:{key[0]} - {key[1]}", verdict, found, cost)


def _wire_text(pair: GpuPair | None) -> str:
    if pair is None:
        return "way unknown (no NVML)"
    if pair.nvlinks:
        return f"{pair.nvlinks} NVLinks {pair.nvlink_version}".rstrip()
    return f"PCIe, meeting at {pair.common_ancestor}"


def _copy_text(copy: PeerCopy | None) -> str:
    if copy is None:
        return "not measured: --quick"
    if copy.problem:
        return f"copying failed: {copy.problem}"
    there, back = copy.there_bytes_per_s / 1e9, copy.back_bytes_per_s / 1e9
    return f"copies at {there:,.0f} GB/s there, {back:,.0f} back"


def _link_verdict(pair: GpuPair | None, copy: PeerCopy | None, gpu: str) -> tuple[Verdict, str]:
    if copy and copy.problem:
        return "missing", "no message passes between them without the host"
    if copy and not copy.intact:
        cost = "copies arrive corrupted, NCCL's too (IOMMU or ACS?); NCCL_P2P_DISABLE=1 avoids it"
        return "missing", cost
    if pair and not pair.nvlinks:
        cost = "no NVLink: messages and all-reduces at a seventh of its rate, or less; predictions "
        return "slow", cost + "learn it by cluster.nvlink='pcie5'"
    wire = usual_wires(SPEC_OF_NAME[gpu])[0] if gpu in SPEC_OF_NAME else None
    if copy and wire:
        share = min(copy.there_bytes_per_s, copy.back_bytes_per_s) / wire.bytes_per_s
        if share < LEAST_COPY_SHARE:
            return "slow", f"{share:.0%} of {wire.name}, and messages with it; 83 to 88 % is usual"
    return "ok", ""


def _communication(machine: Machine) -> Iterator[Finding]:
    if machine.nccl:
        yield Finding("communication", "NCCL", "ok", machine.nccl)
    else:
        cost = "ranks on GPUs cannot talk; gloo serves ranks on the CPU"
        found = "no GPU to use it" if has_torch(machine) else "no torch"
        yield Finding("communication", "NCCL", "missing", found, cost)
    settings = " ".join(f"{key}={value}" for key, value in machine.settings.items())
    chosen = settings or "none set: NCCL chooses by itself"
    yield Finding("communication", "its variables", "ok", chosen)
    if not machine.nics:
        cost = "between nodes NCCL takes TCP sockets; inside one node nothing is lost"
        yield Finding("communication", "NICs", "missing", "no RDMA adapter", cost)
    for nic in machine.nics:
        yield _nic(nic)
    for gpu in machine.gpus:
        if gpu.nearest_nics is not None:
            yield _nearest(gpu.index, gpu.nearest_nics)


def _nic(nic: Nic) -> Finding:
    node = f", NUMA node {nic.numa_node}" if nic.numa_node != UNKNOWN_NODE else ""
    rate = f"{nic.rate_bytes_per_s / 1e9:,.0f} GB/s"
    found = f"{nic.link_layer}, {nic.state}, {rate}, PCI {nic.pci_bus_id}{node}"
    if nic.state == "ACTIVE":
        return Finding("communication", nic.name, "ok", found)
    cost = "NCCL leaves it out, and the GPU near it shares another's"
    return Finding("communication", nic.name, "missing", found, cost)


def _nearest(index: int, nearest: Nearest) -> Finding:
    found = f"{', '.join(nearest.names)}, through {nearest.through}"
    if nearest.through != "the system":
        return Finding("communication", f"cuda:{index} NIC", "ok", found)
    cost = "its messages to other nodes cross the CPU sockets"
    return Finding("communication", f"cuda:{index} NIC", "slow", found, cost)


def _instruments(machine: Machine) -> Iterator[Finding]:
    seen = machine.instruments
    if seen.cupti_problem:
        cost = "use --timing events: a drain after each repeat, about a microsecond around each op"
        yield Finding("instruments", "CUPTI", "missing", seen.cupti_problem, cost)
    else:
        yield Finding("instruments", "CUPTI", "ok", "can be subscribed to")
    yield _tool("nsys", "no timelines of Nsight Systems can be taken", there=seen.nsys)
    cost = "L2 hit rates and DRAM bytes cannot be read from counters"
    if seen.ncu and seen.counters_restricted:
        found = "on PATH, but counters are for administrators (ERR_NVGPUCTRPERM)"
        yield Finding("instruments", "ncu", "missing", found, cost)
    else:
        yield _tool("ncu", cost, there=seen.ncu)


def _tool(name: str, cost: str, *, there: bool) -> Finding:
    if there:
        return Finding("instruments", name, "ok", "on PATH")
    return Finding("instruments", name, "missing", "not on PATH", cost)


def _process(machine: Machine) -> Iterator[Finding]:
    yield Finding("this process", "started", "ok", machine.launcher.name)
    nodes = as_ranges(machine.cpu_numa_nodes)
    found = f"{len(machine.cpus)} ({as_ranges(machine.cpus)})"
    found += f", NUMA nodes {nodes}" if nodes else ""
    near = (*machine.cpu_numa_nodes, UNKNOWN_NODE)
    away = [gpu.index for gpu in machine.gpus if gpu.numa_node not in near]
    if len(machine.cpus) < len(machine.gpus):
        cost = "ranks share a core: eager launches wait for the host"
        yield Finding("this process", "CPUs", "slow", found, cost)
    elif away:
        cost = f"launches for cuda:{as_ranges(away)} cross the CPU sockets: eager steps slow down"
        yield Finding("this process", "CPUs", "slow", found, cost)
    else:
        yield Finding("this process", "CPUs", "ok", found)

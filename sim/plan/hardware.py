"""The hardware: datasheet values of GPUs, links and clusters, each with its source."""

from __future__ import annotations

from dataclasses import dataclass

from sim.plan.errors import SpecError


def _require_positive(spec: object, *keys: str) -> None:
    for key in keys:
        if not getattr(spec, key) > 0:
            raise SpecError(key, getattr(spec, key), "is not positive", "use a value above 0")


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """One GPU as its datasheet describes it: the speed of light, not what kernels reach.

    `peak_flops_per_s` is dense bf16. `l2_bytes_per_s` is a read rate. `source` names where the
    values come from.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    num_sms: int
    peak_flops_per_s: float
    hbm_bytes: int
    hbm_bytes_per_s: float
    l2_bytes: int
    l2_bytes_per_s: float
    source: str

    def __post_init__(self) -> None:
        _require_positive(
            self, "num_sms", "peak_flops_per_s", "hbm_bytes", "hbm_bytes_per_s",
            "l2_bytes", "l2_bytes_per_s",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LinkSpec:
    """One direction of one GPU's port onto a wire."""

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    bytes_per_s: float
    source: str

    def __post_init__(self) -> None:
        _require_positive(self, "bytes_per_s")


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Equal GPUs in equal nodes: `nvlink` inside a node, one `nic` per GPU between nodes."""

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    gpu: GpuSpec
    num_nodes: int
    gpus_per_node: int
    nvlink: LinkSpec
    nic: LinkSpec

    def __post_init__(self) -> None:
        _require_positive(self, "num_nodes", "gpus_per_node")

    @property
    def num_gpus(self) -> int:
        """GPUs in the cluster."""
        return self.num_nodes * self.gpus_per_node

    def node_of(self, rank: int) -> int:
        """The node that holds a rank (ranks fill nodes in order)."""
        return rank // self.gpus_per_node

    def link_between(self, rank: int, peer: int) -> LinkSpec:
        """The wire of this one hop: NVLink inside a node, the NIC between nodes."""
        return self.nvlink if self.node_of(rank) == self.node_of(peer) else self.nic


GPUS: dict[str, GpuSpec] = {
    "h100-sxm": GpuSpec(
        name="h100-sxm",
        num_sms=132,
        peak_flops_per_s=989.4e12,
        hbm_bytes=80 * 10**9,
        hbm_bytes_per_s=3.35e12,
        l2_bytes=50 * 2**20,
        # 80 slices x 64 B/clock x 1.98 GHz; the public microbenchmarks of the same slices reach 80 %.
        l2_bytes_per_s=80 * 64 * 1.98e9,
        source="NVIDIA H100 Tensor Core GPU datasheet (SXM5); L2 from device properties",
    ),
    "h200": GpuSpec(
        name="h200",
        num_sms=132,
        peak_flops_per_s=989.4e12,
        hbm_bytes=141 * 10**9,
        hbm_bytes_per_s=4.8e12,
        l2_bytes=60 * 2**20,
        l2_bytes_per_s=96 * 64 * 1.98e9,
        source="NVIDIA H200 datasheet; L2 size from device properties",
    ),
}

NVLINK4 = LinkSpec(
    name="nvlink4", bytes_per_s=450e9, source="NVIDIA H100 datasheet: 900 GB/s both ways, 18 links"
)
NDR400 = LinkSpec(
    name="ndr400", bytes_per_s=50e9, source="NVIDIA DGX H100 guide: one 400 Gb/s ConnectX-7 per GPU"
)


def dgx_cluster(gpu: GpuSpec, num_gpus: int, gpus_per_node: int = 8) -> ClusterSpec:
    """DGX nodes of eight GPUs (fewer when fewer are asked for), NVLink inside, NDR between.

    Raises SpecError when the last node would be partly filled.
    """
    if gpus_per_node < 1:
        raise SpecError("gpus_per_node", gpus_per_node, "is not positive", "use 1 or more")
    if num_gpus < 1:
        raise SpecError("num_gpus", num_gpus, "is not positive", "use 1 or more")
    per_node = min(gpus_per_node, num_gpus)
    if num_gpus < 1 or num_gpus % per_node:
        raise SpecError(
            "num_gpus", num_gpus, f"does not fill nodes of {per_node} GPUs",
            f"use a multiple of {per_node}",
        )  # fmt: skip
    return ClusterSpec(
        name=f"{num_gpus}x {gpu.name}",
        gpu=gpu,
        num_nodes=num_gpus // per_node,
        gpus_per_node=per_node,
        nvlink=NVLINK4,
        nic=NDR400,
    )

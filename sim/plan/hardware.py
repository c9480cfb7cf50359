"""The hardware: datasheet values of GPUs, links and clusters, each with its source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from layerwise.sim.plan.errors import SpecError

# Of bytes/s or FLOP/s: at less a step would take longer than the clock of picoseconds counts.
MIN_RATE, MAX_QUANTITY = 10**6, 10**30
# What is gone through in a minute or so.
MAX_GPUS = 65_536
# Of full speed: a part that is slower still is broken, and found otherwise.
MIN_SHARE = 0.01


def _require_positive(spec: object, *keys: str) -> None:
    for key in keys:
        if not getattr(spec, key) > 0:
            raise SpecError(key, getattr(spec, key), "is not positive", "use a value above 0")
        least = MIN_RATE if key.endswith("_per_s") else 1
        if not least <= getattr(spec, key) <= MAX_QUANTITY:
            raise SpecError(key, getattr(spec, key), "is beyond any machine", "use one nearer to 1")


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """One GPU as its datasheet describes it: the speed of light, not what kernels reach.

    `peak_flops_per_s` is dense bf16, `peak_float32_flops_per_s` float32 outside tensor cores (torch's
    default for float32 is no TF32). `l2_bytes_per_s` is a read rate. `persisting_l2_bytes` is the
    most L2 that may be set aside for persisting accesses and `access_window_bytes` the largest
    access-policy window; 0: none known. `source` names where the values come from.
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
    persisting_l2_bytes: int = 0
    access_window_bytes: int = 0
    peak_float32_flops_per_s: float = 0.0

    def __post_init__(self) -> None:
        _require_positive(
            self,
            "num_sms",
            "peak_flops_per_s",
            "hbm_bytes",
            "hbm_bytes_per_s",
            "l2_bytes",
            "l2_bytes_per_s",
        )
        if self.peak_float32_flops_per_s:
            _require_positive(self, "peak_float32_flops_per_s")
        if not 0 <= self.persisting_l2_bytes <= self.l2_bytes:
            raise SpecError(
                "persisting_l2_bytes",
                self.persisting_l2_bytes,
                f"is not a part of l2_bytes={self.l2_bytes}",
                f"use 0 to {self.l2_bytes}",
            )
        if self.access_window_bytes < 0:
            raise SpecError(
                "access_window_bytes",
                self.access_window_bytes,
                "is negative",
                "use 0 for none known",
            )


@dataclass(frozen=True, kw_only=True)
class LinkSpec:
    """One direction of one GPU's port onto a wire."""

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    bytes_per_s: float
    source: str

    def __post_init__(self) -> None:
        _require_positive(self, "bytes_per_s")


@dataclass(frozen=True, slots=True)
class Speed:
    """What one GPU reaches of its kind's rates: of its clock (the L2's follows it), of its HBM."""

    clock_share: float = 1.0
    hbm_share: float = 1.0


FULL_SPEED = Speed()


@dataclass(frozen=True, kw_only=True)
class SlowParts:
    """`[cluster.slow]`: GPUs below the speed of their kind, and GPUs whose ports are; by rank.

    Shares are of full speed, 0.01 to 1: `clock_share` and `hbm_share` of the GPUs in `gpus`,
    `nvlink_share` and `nic_share` of the ports of those in `ports`, both directions. At 1 nothing
    is slow. Raises SpecError for a share outside that range, one that slows nobody, and a rank
    named twice.
    """

    __pydantic_config__ = {"extra": "forbid"}

    gpus: tuple[int, ...] = ()
    clock_share: float = 1.0
    hbm_share: float = 1.0
    ports: tuple[int, ...] = ()
    nvlink_share: float = 1.0
    nic_share: float = 1.0

    def __post_init__(self) -> None:
        for ranks, *shares in SLOW_KEYS:
            self._check_ranks(ranks)
            for key in shares:
                self._check_share(key, ranks)

    def _check_ranks(self, key: str) -> None:
        ranks: tuple[int, ...] = getattr(self, key)
        if any(rank < 0 for rank in ranks):
            raise SpecError(key, ranks, "has a negative rank", "ranks begin at 0")
        if len(set(ranks)) < len(ranks):
            raise SpecError(key, ranks, "names a rank twice", "name each once")

    def _check_share(self, key: str, ranks: str) -> None:
        share: float = getattr(self, key)
        if not MIN_SHARE <= share <= 1:
            raise SpecError(key, share, "is no share of full speed", f"use {MIN_SHARE} to 1")
        if share < 1 and not getattr(self, ranks):
            raise SpecError(
                key,
                share,
                f"slows nobody: {ranks} is empty",
                f"name the ranks, as in {ranks} = [5]",
            )

    @property
    def ranks(self) -> frozenset[int]:
        """Those that something is slow about."""
        return frozenset(
            rank
            for ranks, *shares in SLOW_KEYS
            if any(getattr(self, key) < 1 for key in shares)
            for rank in getattr(self, ranks)
        )

    @property
    def words(self) -> str:
        """What is slow, in the user's own keys; "" where nothing is."""
        return "; ".join(
            f"{key}={getattr(self, key):g} of GPU {', '.join(map(str, getattr(self, ranks)))}"
            for ranks, *shares in SLOW_KEYS
            for key in shares
            if getattr(self, key) < 1
        )


# The key of the ranks, and the keys of what is slow about them.
SLOW_KEYS = (("gpus", "clock_share", "hbm_share"), ("ports", "nvlink_share", "nic_share"))
NOTHING_SLOW = SlowParts()


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Equal GPUs in equal nodes: `nvlink` inside a node, one `nic` per GPU between nodes.

    `nvlink` is whatever wire joins a node's GPUs: PCIe in a node without NVLink. `slow` names the
    GPUs and ports that are slower than that.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    gpu: GpuSpec
    num_nodes: int
    gpus_per_node: int
    nvlink: LinkSpec
    nic: LinkSpec
    slow: SlowParts = NOTHING_SLOW

    def __post_init__(self) -> None:
        _require_positive(self, "num_nodes", "gpus_per_node")
        if self.num_gpus > MAX_GPUS:
            raise SpecError(
                "num_nodes",
                self.num_nodes,
                f"makes {self.num_gpus} GPUs",
                f"use at most {MAX_GPUS} GPUs in all",
            )
        for key, ranks in (("slow.gpus", self.slow.gpus), ("slow.ports", self.slow.ports)):
            if max(ranks, default=0) >= self.num_gpus:
                raise SpecError(
                    key,
                    ranks,
                    f"names a rank beyond the {self.num_gpus} GPUs",
                    f"use 0 to {self.num_gpus - 1}",
                )

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

    def link_named(self, name: str) -> LinkSpec:
        """Whichever of the two wires has this name."""
        return {link.name: link for link in (self.nvlink, self.nic)}[name]

    def speed_of(self, rank: int) -> Speed:
        """How fast this rank's GPU is."""
        slow = self.slow
        return Speed(slow.clock_share, slow.hbm_share) if rank in slow.gpus else FULL_SPEED

    @property
    def slow_ranks(self) -> frozenset[int]:
        """The ranks below full speed, or with such a port."""
        return self.slow.ranks

    def port_share(self, wire: str, ranks: Iterable[int]) -> float:
        """What the slowest of these ranks' ports onto this wire reaches of the wire's rate."""
        slow = self.slow
        if not slow.ports or not any(rank in slow.ports for rank in ranks):
            return 1.0
        ends = ((self.nvlink, slow.nvlink_share), (self.nic, slow.nic_share))
        return min(share for link, share in ends if link.name == wire)


@dataclass(frozen=True, kw_only=True)
class HeldCluster(ClusterSpec):
    """A cluster as it runs: `clock_shares` of full clock by rank, where power limits hold them."""

    clock_shares: tuple[float, ...]

    @classmethod
    def of(cls, cluster: ClusterSpec, clock_shares: tuple[float, ...]) -> HeldCluster:
        """Make it of the cluster that somebody asked for."""
        return cls(
            **{each.name: getattr(cluster, each.name) for each in fields(ClusterSpec)},
            clock_shares=clock_shares,
        )

    def speed_of(self, rank: int) -> Speed:
        """How fast this rank's GPU is: a GPU that is slow anyway is held by the lower of the two."""
        asked = super().speed_of(rank)
        return Speed(min(asked.clock_share, self.clock_shares[rank]), asked.hbm_share)

    @property
    def slow_ranks(self) -> frozenset[int]:
        """The ranks below full speed, or with such a port."""
        held = (rank for rank, share in enumerate(self.clock_shares) if share < 1)
        return super().slow_ranks.union(held)


GPUS: dict[str, GpuSpec] = {
    "h100-sxm": GpuSpec(
        name="h100-sxm",
        num_sms=132,
        peak_flops_per_s=989.4e12,
        peak_float32_flops_per_s=67e12,
        hbm_bytes=80 * 10**9,
        hbm_bytes_per_s=3.35e12,
        l2_bytes=50 * 2**20,
        # 80 slices x 64 B/clock x 1.98 GHz; the public microbenchmarks of the same slices reach 80 %.
        l2_bytes_per_s=80 * 64 * 1.98e9,
        # Measured here by cudaDeviceProp: persistingL2CacheMaxSize and accessPolicyMaxWindowSize.
        persisting_l2_bytes=32_768_000,
        access_window_bytes=134_217_728,
        source="NVIDIA H100 Tensor Core GPU datasheet (SXM5); L2 from device properties",
    ),
    "h200": GpuSpec(
        name="h200",
        num_sms=132,
        peak_flops_per_s=989.4e12,
        peak_float32_flops_per_s=67e12,
        hbm_bytes=141 * 10**9,
        hbm_bytes_per_s=4.8e12,
        l2_bytes=60 * 2**20,
        l2_bytes_per_s=96 * 64 * 1.98e9,
        persisting_l2_bytes=39_321_600,
        access_window_bytes=134_217_728,
        source="NVIDIA H200 datasheet; L2 from device properties",
    ),
    "h100-pcie": GpuSpec(
        name="h100-pcie",
        num_sms=114,
        peak_flops_per_s=756e12,
        # The datasheet's; the whitepaper of an early card has 48.
        peak_float32_flops_per_s=51e12,
        hbm_bytes=80 * 10**9,
        # The datasheet rounds to 2 TB/s, and public read kernels reach 2.016: a bound must not.
        hbm_bytes_per_s=5120 / 8 * 2 * 1.593e9,
        l2_bytes=50 * 2**20,
        l2_bytes_per_s=80 * 64 * 1.755e9,
        source="NVIDIA H100 whitepaper (PCIe); HBM2e: 5,120 bits at 1,593 MHz, both edges; L2: 80 "
        "slices x 64 B/clock x 1.755 GHz (clocks as the device reports them: chipsandcheese.com, "
        "2023; its microbenchmarks reach 77 %)",
    ),
    "a100-80gb": GpuSpec(
        name="a100-80gb",
        num_sms=108,
        peak_flops_per_s=312e12,
        peak_float32_flops_per_s=19.5e12,
        hbm_bytes=80 * 10**9,
        hbm_bytes_per_s=2.039e12,
        l2_bytes=40 * 2**20,
        l2_bytes_per_s=5120 * 1.41e9,
        # 75 % of the L2. Source: cudaDeviceProp in NVIDIA developer forum 275542.
        persisting_l2_bytes=31_457_280,
        access_window_bytes=134_213_632,
        source="NVIDIA A100 80GB datasheet (SXM); L2 read rate: 5,120 B/clock (NVIDIA A100 "
        "whitepaper) x 1.41 GHz boost; microbenchmarks reach 75 %",
    ),
    "b200": GpuSpec(
        name="b200",
        num_sms=148,
        peak_flops_per_s=2.25e15,
        # NVIDIA Blackwell architecture technical brief, HGX B200 at 1,000 W. 148 SMs x 128 x 2 x
        # 1.965 GHz are 74e12: of the two the looser bound.
        peak_float32_flops_per_s=80e12,
        hbm_bytes=180 * 10**9,
        hbm_bytes_per_s=8e12,
        l2_bytes=132_644_864,
        # No rate and no slice count is published. This bounds it from the other side.
        l2_bytes_per_s=148 * 64 * 1.965e9,
        source="NVIDIA DGX B200 datasheet, an eighth of it (devices report a bus and a clock of "
        "7.67 TB/s, 4 % less: pytorch/ao pull request 4002); SMs, L2 size and clock from device "
        "properties; L2 read rate is not published: what 148 SMs can take in at 64 B/clock, looser "
        "than the slices' rate that the other GPUs have here",
    ),
}

NVLINK3 = LinkSpec(
    name="nvlink3", bytes_per_s=300e9, source="NVIDIA A100 datasheet: 600 GB/s both ways, 12 links"
)
NVLINK4 = LinkSpec(
    name="nvlink4", bytes_per_s=450e9, source="NVIDIA H100 datasheet: 900 GB/s both ways, 18 links"
)
NVLINK5 = LinkSpec(
    name="nvlink5",
    bytes_per_s=900e9,
    source="NVIDIA HGX B200 datasheet: 1.8 TB/s both ways, 18 links",
)
# Lanes x transfers/s x 128b/130b line code; packet headers take some 10 % more.
PCIE4 = LinkSpec(
    name="pcie4",
    bytes_per_s=16 * 16e9 * 128 / 130 / 8,
    source="PCI Express 4.0 specification: 16 lanes at 16 GT/s",
)
PCIE5 = LinkSpec(
    name="pcie5",
    bytes_per_s=16 * 32e9 * 128 / 130 / 8,
    source="PCI Express 5.0 specification: 16 lanes at 32 GT/s",
)
HDR200 = LinkSpec(
    name="hdr200", bytes_per_s=25e9, source="NVIDIA DGX A100 guide: one 200 Gb/s ConnectX-6 per GPU"
)
NDR400 = LinkSpec(
    name="ndr400", bytes_per_s=50e9, source="NVIDIA DGX H100 guide: one 400 Gb/s ConnectX-7 per GPU"
)
LINKS: dict[str, LinkSpec] = {
    link.name: link for link in (NVLINK3, NVLINK4, NVLINK5, PCIE4, PCIE5, HDR200, NDR400)
}
# (inside a node, between nodes) of the machines these GPUs are sold in. H100 PCIe cards may be
# bridged in pairs by NVLink; a node of eight reaches most peers over PCIe alone, so PCIe it is.
# A DGX B200 has the same 400 Gb/s ConnectX-7 per GPU as a DGX H100.
WIRES: dict[str, tuple[LinkSpec, LinkSpec]] = {
    "h100-sxm": (NVLINK4, NDR400),
    "h200": (NVLINK4, NDR400),
    "h100-pcie": (PCIE5, NDR400),
    "a100-80gb": (NVLINK3, HDR200),
    "b200": (NVLINK5, NDR400),
}


def usual_wires(gpu_name: str) -> tuple[LinkSpec, LinkSpec]:
    """The wires inside and between nodes of a GPU's usual machine; a DGX H100's for an own GPU."""
    return WIRES.get(gpu_name, (NVLINK4, NDR400))


def dgx_cluster(
    gpu: GpuSpec,
    num_gpus: int,
    gpus_per_node: int = 8,
    *,
    nvlink: LinkSpec | None = None,
    nic: LinkSpec | None = None,
    slow: SlowParts = NOTHING_SLOW,
) -> ClusterSpec:
    """Nodes of eight GPUs (fewer when fewer are asked for) on the GPU's usual wires, or on these.

    Raises SpecError when the last node would be partly filled.
    """
    if gpus_per_node < 1:
        raise SpecError("gpus_per_node", gpus_per_node, "is not positive", "use 1 or more")
    if num_gpus < 1:
        raise SpecError("num_gpus", num_gpus, "is not positive", "use 1 or more")
    if num_gpus > MAX_GPUS:
        raise SpecError("num_gpus", num_gpus, "is beyond any cluster", f"use at most {MAX_GPUS}")
    per_node = min(gpus_per_node, num_gpus)
    if num_gpus % per_node:
        raise SpecError(
            "num_gpus",
            num_gpus,
            f"does not fill nodes of {per_node} GPUs",
            f"use a multiple of {per_node}",
        )
    inside, between = usual_wires(gpu.name)
    return ClusterSpec(
        name=cluster_name(gpu, num_gpus, slow),
        gpu=gpu,
        num_nodes=num_gpus // per_node,
        gpus_per_node=per_node,
        nvlink=nvlink or inside,
        nic=nic or between,
        slow=slow,
    )


def cluster_name(gpu: GpuSpec, num_gpus: int, slow: SlowParts = NOTHING_SLOW) -> str:
    """What a cluster is called unless somebody named it."""
    return f"{num_gpus}x {gpu.name}" + (f" ({slow.words})" if slow.words else "")

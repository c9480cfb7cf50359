"""The uncalibrated belief: datasheet values times published efficiencies, nothing measured here.

What an engineer predicts before any run of their own: the same physics forms as the calibrated
belief, with constants that other people measured and published, most of them on one H100 SXM.
Rates are shares of the datasheet's, so they carry over to any GPU; latencies are taken as they
are. Published fits come without standard errors, and nothing is corrected by neighbours.
"""

from __future__ import annotations

import math
from itertools import pairwise

from layerwise.sim.cost.kinds import KINDS, Kind
from layerwise.sim.cost.published import AIC, GPU_BENCHES, READ_RATE, SMALL, Published
from layerwise.sim.cost.transfer import HOLDS_FOR, values_text
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.hardware import NDR400, NVLINK4, ClusterSpec, GpuSpec
from layerwise.sim.profile import OpFit, Profile, Regime, TransferFit

NONE_PUBLISHED = "none published: a kernel is taken to be as fast among others as alone"
OVERLAP = "arXiv 2507.03114: compute slowed by 18.9 % on average beside communication"
MACHINE: dict[str, Published] = {
    "hbm_bytes_per_s": READ_RATE,
    "graph_gap_s": Published(1.23e-6, "s", f"{SMALL}: an empty kernel is all launch"),
    "graph_launch_s": Published(
        2.44e-6,
        "s",
        f"{GPU_BENCHES} gpu-small-kernels: stream launches back to back (1.8 % off); "
        "a queued graph is taken to start like a queued kernel",
    ),
    "eager_issue_s": Published(
        5e-6, "s", "rule of thumb for a host that launches one kernel; no measurement published"
    ),
    "interleaved_s": Published(0.0, "s", NONE_PUBLISHED),
    "interleaved_code_s": Published(0.0, "s", NONE_PUBLISHED),
    "interleaved_hbm_s": Published(0.0, "s", NONE_PUBLISHED),
    "interleaved_full_hit": Published(0.73, "of L2 size", NONE_PUBLISHED),
    "interleaved_no_hit": Published(1.19, "of L2 size", NONE_PUBLISHED),
    "set_aside_hbm_slowdown": Published(0.0, "1", "none published: windows are taken to be free"),
    "op_speed_beside_message": Published(1 / 1.189, "of its speed alone", OVERLAP),
    "message_speed_beside_hbm": Published(1 / 1.189, "of its speed alone", OVERLAP),
    "message_num_sms": Published(
        24.0, "SMs", "NCCL's channels for an all-gather on H100, as seen in NVIDIA's forum (337991)"
    ),
    "l2_full_hit": Published(
        0.73, "of L2 size", f"{GPU_BENCHES} gpu-l2-cache: linear ramp shared by two Hopper parts"
    ),
    "l2_no_hit": Published(
        1.19, "of L2 size", f"{GPU_BENCHES} gpu-l2-cache: linear ramp shared by two Hopper parts"
    ),
}

# Latency in us and payload rate in GB/s from REGIMES_FROM bytes up, by ranks.
NCCL = f"nccl-tests 2.29.2 on one 8x H100 SXM node, as published by {AIC}: piecewise, 1 to 6 % off"
REGIMES_FROM = (0, 64 * 2**10, 2**20, 16 * 2**20)
ALL_REDUCE = {
    2: ((6.4, 55), (6.8, 134), (19.4, 286), (39.4, 320)),
    4: ((9.7, 32), (10.4, 134), (17.6, 194), (30.4, 233)),
    8: ((15.7, 20), (17.5, 141), (26.4, 171), (71.8, 264)),
}
ALL_GATHER = {
    2: ((5.5, 55), (6.0, 200), (11.4, 353), (29.2, 519)),
    4: ((7.3, 33), (8.2, 197), (12.1, 267), (31.5, 427)),
    8: ((10.5, 22), (12.6, 248), (16.3, 311), (36.3, 388)),
}
# (latency us, us a ring step, bus GB/s): NCCL's LL and Simple protocols over all group sizes.
RING = "same data, joint fit over group sizes: LL, then Simple (10 to 20 % off for an unseen size)"
PROTOCOLS = ((5.25, 0.78, 161.0), (21.5, 0.52, 332.0))

# Microseconds at these payloads, by ranks; straight lines between them.
ONE_SHOT = f"one-/two-shot all-reduce of SGLang in a CUDA graph, as published by {AIC}"
ONE_SHOT_BYTES = (4096, 2**16, 2**18, 2**20, 2**22, 2**25)
ONE_SHOT_US = {
    2: (2.5, 3.0, 3.7, 5.9, 16.7, 138.0),
    4: (2.7, 3.5, 5.5, 11.1, 25.6, 174.8),
    8: (3.5, 4.8, 9.4, 13.5, 33.3, 198.0),
}

NVLINK_SEND = "NCCL send/recv between two H100s of a DGX, microsoft/vidur 7d47513: 7.7 us, 360 GB/s"
NIC_SEND = "NCCL send/recv between two DGX H100, microsoft/vidur 7d47513: 19.6 us, 36.2 GB/s (4 %)"

RESERVED = (
    "CUDA context and loaded kernels: 1 to 2 GB, Hugging Face Transformers documentation, "
    "'Model training anatomy'"
)
RESERVED_BYTES = 2 * 10**9


def published_profile(cluster: ClusterSpec) -> Profile:
    """The constants of a cluster's GPU and wires, from its datasheet and public measurements.

    Works for any GPU and any wire. Collectives are given for up to `gpus_per_node` ranks; one-shot
    all-reduces for up to eight, as nobody publishes larger ones.
    """
    gpu = cluster.gpu
    return Profile(
        name=f"published for {gpu.name}",
        gpu=gpu.name,
        kernels=KernelChoice(
            decode_attention="flash", prefill_attention="flash", chunked_prefill_attention="flash"
        ),
        provenance={
            "source": "datasheet values and published efficiencies; no measurement of this project",
            "gpu": gpu.source,
            "reserved_bytes": RESERVED,
            # Made of this very cluster's datasheet values: there is nothing to move.
            HOLDS_FOR: values_text(gpu, (cluster.nvlink, cluster.nic)),
        },
        fits={kind.name: _fit(kind, gpu) for kind in KINDS.values() if kind.published},
        transfers=_transfers(cluster),
        machine={name: published.on(gpu) for name, published in MACHINE.items()},
        reserved_bytes=RESERVED_BYTES,
    )


def _fit(kind: Kind, gpu: GpuSpec) -> OpFit:
    return OpFit(
        constants={name: given.on(gpu) for name, given in kind.published.items()},
        features=kind.features,
        # Nothing was calibrated, so no shape lies outside of it.
        valid=((0.0, math.inf),) * len(kind.features),
        kernels=kind.published_of,
    )


def _transfers(cluster: ClusterSpec) -> dict[str, TransferFit]:
    """Messages over both wires, collectives of every group that fits in a node."""
    nvlink, nic = cluster.nvlink, cluster.nic
    share = nvlink.bytes_per_s / NVLINK4.bytes_per_s
    nic_share = nic.bytes_per_s / NDR400.bytes_per_s
    made = {
        f"send.{nic.name}": _scaled(((0, 19.6, 36.2),), nic_share, NIC_SEND),
        f"send.{nvlink.name}": _scaled(((0, 7.7, 360.0),), share, NVLINK_SEND),
    }
    for ranks in range(2, cluster.gpus_per_node + 1):
        for name, table, passes in (
            ("all_reduce", ALL_REDUCE, 2),
            ("all_gather", ALL_GATHER, 1),
        ):
            found, source = _ring(ranks, passes), RING
            if ranks in table:
                source = NCCL
                lines = zip(REGIMES_FROM, table[ranks], strict=True)
                found = tuple((first, *line) for first, line in lines)
            made[f"{name}.nccl.{ranks}"] = _scaled(found, share, source)
        if ranks <= max(ONE_SHOT_US):
            made[f"all_reduce.one_shot.{ranks}"] = _one_shot(ranks, share)
    return made


def _scaled(lines: tuple[tuple[int, float, float], ...], share: float, source: str) -> TransferFit:
    """(from bytes, us, GB/s) on an H100's wire, where a wire is `share` times as fast."""
    regimes = tuple(
        Regime(from_bytes=first, latency_s=latency_us * 1e-6, bytes_per_s=rate * 1e9 * share)
        for first, latency_us, rate in lines
    )
    scaled = "" if share == 1 else f"; rates times {share:.3g}, as the wires' datasheets"
    return TransferFit(regimes=regimes, source=source + scaled)


def _ring(ranks: int, passes: int) -> tuple[tuple[int, float, float], ...]:
    """A group of a size nobody published: the faster of two protocols, `passes` round the ring."""
    steps = passes * (ranks - 1)
    (low_us, low_rate), (us, rate) = (
        (base + step * steps, bus * ranks / steps) for base, step, bus in PROTOCOLS
    )
    meet = (us - low_us) / (1 / low_rate - 1 / rate) * 1e3
    return ((0, low_us, low_rate), (max(1, round(meet)), us, rate))


def _one_shot(ranks: int, share: float) -> TransferFit:
    """Lines through the published times of this group, or of the next larger one."""
    size = min(number for number in ONE_SHOT_US if number >= ranks)
    points = list(zip(ONE_SHOT_BYTES, ONE_SHOT_US[size], strict=True))
    lines: list[tuple[int, float, float]] = []
    for (first, first_us), (last, last_us) in pairwise(points):
        rate = (last - first) / (last_us - first_us) / 1e3
        lines.append((first if lines else 0, first_us - first / rate / 1e3, rate))
    whose = "" if size == ranks else f" for {size} ranks"
    return _scaled(tuple(lines), share, ONE_SHOT + whose)

"""Where a model fits when it does not on the GPUs asked for: more of them, or as many of another kind.

Memory only: nothing is simulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from layerwise.calibration.data import profile_path
from layerwise.scenarios.rank.asked import Asked
from layerwise.scenarios.rank.layouts import Layout, layouts_of
from layerwise.sim.memory import free_bytes
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.hardware import GPUS, NOTHING_SLOW, ClusterSpec, GpuSpec, cluster_name
from layerwise.sim.profile import load_profile
from layerwise.sim.resolve import best_belief, reserved_bytes

# Of a machine that GPUs are sold in: below it any number is tried, above it whole nodes.
NODE = 8
# Numbers of GPUs tried, from the least that could hold weights and KV.
NUM_COUNTS = 16
# What can be gone through in some seconds.
MOST_GPUS = 1024


@dataclass(frozen=True, kw_only=True)
class Room:
    """GPUs on which everything fits: the layout of them that needs least, and its fullest GPU."""

    gpu: str
    num_gpus: int
    layout: Layout
    total_bytes: int


def rooms_of(asked: Asked) -> tuple[Room, ...]:
    """The fewest GPUs of the kind asked for, the next power of two of them, and other kinds.

    Of other kinds those of which as many as asked suffice.
    """
    found = [_fewest(asked)]
    if found[0] and found[0].num_gpus < NODE:
        even = 1 << (found[0].num_gpus - 1).bit_length()
        cluster = resized(asked.cluster, even) if even > found[0].num_gpus else None
        found.append(_room(asked, cluster, asked.reserved_bytes) if cluster else None)
    for gpu in sorted(GPUS.values(), key=lambda gpu: gpu.hbm_bytes):
        if gpu.name != asked.cluster.gpu.name and gpu.hbm_bytes > asked.cluster.gpu.hbm_bytes:
            cluster = replace(asked.cluster, gpu=gpu)
            found.append(_room(asked, cluster, _reserved_bytes(gpu)))
    return tuple(room for room in found if room)


def resized(cluster: ClusterSpec, num_gpus: int) -> ClusterSpec | None:
    """The cluster with another number of GPUs, all at full speed; None where nodes are not filled."""
    per_node = cluster.gpus_per_node
    if num_gpus <= max(per_node, NODE if cluster.num_nodes == 1 else 0):
        per_node = num_gpus
    elif cluster.num_nodes == 1 and NODE % per_node == 0:
        per_node = NODE
    if num_gpus % per_node:
        return None
    try:
        return replace(
            cluster,
            name=cluster_name(cluster.gpu, num_gpus),
            num_nodes=num_gpus // per_node,
            gpus_per_node=per_node,
            slow=NOTHING_SLOW,
        )
    except SpecError:
        return None  # more than any cluster has


def _fewest(asked: Asked) -> Room | None:
    tried = 0
    for number in _counts(asked):
        cluster = resized(asked.cluster, number)
        if cluster is None:
            continue
        if room := _room(asked, cluster, asked.reserved_bytes):
            return room
        tried += 1
        if tried == NUM_COUNTS:
            return None
    return None


def _counts(asked: Asked) -> Iterator[int]:
    """Above what was asked for, from the least that could hold all weights and KV between them."""
    model, work = asked.model, asked.workload
    kv_bytes = (
        work.batch_size
        * work.context_tokens
        * model.num_layers
        * model.kv_bytes_per_token_per_layer
    )
    room_bytes = asked.cluster.gpu.hbm_bytes - asked.reserved_bytes
    if room_bytes <= 0:
        return
    all_bytes = model.parameters * model.dtype_bytes + kv_bytes
    first = max(asked.cluster.num_gpus + 1, -(-all_bytes // room_bytes))
    yield from range(first, MOST_GPUS + 1)


def _room(asked: Asked, cluster: ClusterSpec, reserved_bytes: int) -> Room | None:
    """Of the layouts that fit, the one whose fullest GPU holds least; None where none fits."""
    there = replace(asked, cluster=cluster)
    layouts, _ = layouts_of(asked.model, cluster, asked.workload, None)
    held = [
        (cluster.gpu.hbm_bytes - left_bytes(there, layout, reserved_bytes), layout)
        for layout in layouts
    ]
    total_bytes, layout = min(held, key=lambda pair: pair[0], default=(0, None))
    if layout is None or total_bytes > cluster.gpu.hbm_bytes:
        return None
    return Room(
        gpu=cluster.gpu.name, num_gpus=cluster.num_gpus, layout=layout, total_bytes=total_bytes
    )


def left_bytes(there: Asked, layout: Layout, reserved_bytes: int) -> int:
    """What the fullest GPU has left, with one microbatch a stage or as many as were asked for."""
    limit = there.workload.batch_size // layout.data_parallel
    number = min(there.workload.num_microbatches or layout.pipeline_parallel, limit)
    return free_bytes(there.scenario(layout, number), reserved_bytes)


def _reserved_bytes(gpu: GpuSpec) -> int:
    """Of the profile shipped for another kind of GPU, if one is."""
    path = profile_path(gpu.name)
    profile = load_profile(path) if path.is_file() else None
    return reserved_bytes(best_belief(profile), profile)

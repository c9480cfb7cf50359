"""Say what to time on links: payloads, groups, and pairs of ranks by how they are joined."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import torch

from layerwise.hw.errors import NotAvailableError
from layerwise.hw.host.affinity import gpu_pairs
from layerwise.hw.links.ops import MESSAGES, OPS, PEER_MEMORY_OPS, RING

Mode = Literal["graph", "eager"]
MODES: tuple[Mode, ...] = ("graph", "eager")
Use = Literal["fit", "score", "survey"]

KIB, MIB = 2**10, 2**20
# A payload must divide among eight ranks in elements of two bytes.
STEP_BYTES = 16
SURVEY_BYTES = (4 * KIB, MIB, 64 * MIB)
UNITS = {"": 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": 2**30}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure. `sizes_bytes` are fitted, `score_bytes` only score a fit.

    `goes_on`: what `out` holds of these ranks already is kept. `announce`: the first rank names
    each series on stderr when it begins.
    """

    out: Path
    device: Literal["cuda", "cpu"]
    ops: tuple[str, ...]
    modes: tuple[Mode, ...]
    sizes_bytes: tuple[int, ...]
    score_bytes: tuple[int, ...]
    budget_s: float
    goes_on: bool = False
    announce: bool = False

    @property
    def every_size(self) -> list[int]:
        """All payloads of a whole series, rising."""
        return sorted({*self.sizes_bytes, *self.score_bytes})

    def use_of(self, payload_bytes: int) -> Use:
        """What a payload of a whole series is for."""
        return "score" if payload_bytes in self.score_bytes else "fit"


def request_of(
    out: Path,
    device: Literal["cuda", "cpu"],
    *,
    sizes: str = "",
    modes: str = "",
    ops: str = "",
    budget_s: float,
) -> Request:
    """Make a request of what a command was given; an empty text takes all that the device can do.

    `sizes` is LOW..HIGH, `modes` and `ops` are names with commas between. Raises NotAvailableError.
    """
    on_gpus = device == "cuda"
    low, high = parse_sizes(sizes or ("512..512MiB" if on_gpus else "512..64KiB"))
    possible = (op for op in OPS if on_gpus or op not in PEER_MEMORY_OPS)
    asked = (modes or ("graph,eager" if on_gpus else "eager")).split(",")
    if set(asked) - set(MODES):
        raise NotAvailableError(f"--modes {modes} is unknown; use some of {list(MODES)}")
    return Request(
        out=out,
        device=device,
        ops=tuple(ops.split(",") if ops else possible),
        modes=tuple(mode for mode in MODES if mode in asked),
        sizes_bytes=sizes_between(low, high),
        score_bytes=score_sizes_between(low, high),
        budget_s=budget_s,
        announce=True,
    )


@dataclass(frozen=True)
class Series:
    """One op of one group in one mode, at several payloads."""

    op: str
    mode: Mode
    ranks: tuple[int, ...]
    is_survey: bool = False


@dataclass(frozen=True)
class Pair:
    """Two ranks, and in words how they are joined."""

    ranks: tuple[int, int]
    joined_by: str


def series_of(request: Request, world_size: int, pairs: Sequence[Pair]) -> tuple[Series, ...]:
    """What to time, most wanted first: the first mode, then the other pairs, then the rest.

    Of each class of pairs the first is timed in full; the farthest one sends at every payload, all
    others at a few. Rings come last, in graphs last of all; of two ranks one would be `bidirectional`.
    """
    first_of: dict[str, Pair] = {}
    far_of: dict[str, Pair] = {}
    for pair in pairs:
        first_of.setdefault(pair.joined_by, pair)
        far_of[pair.joined_by] = max(far_of.get(pair.joined_by, pair), pair, key=_apart)
    groups = [tuple(range(size)) for size in group_sizes(world_size)]
    messages = [op for op in request.ops if op in MESSAGES]
    collectives = [op for op in request.ops if op not in (*MESSAGES, RING)]
    places = [(op, pair.ranks) for pair in first_of.values() for op in messages]
    places += [(op, ranks) for ranks in groups for op in collectives]
    rings = request.modes[::-1] if RING in request.ops and world_size > 2 else ()
    first, *rest = request.modes
    others = [pair for pair in pairs if pair is not first_of[pair.joined_by]]
    one_way = messages[:1]
    return (
        *(Series(op, first, ranks) for op, ranks in places),
        *(
            Series(op, first, pair.ranks, is_survey=pair is not far_of[pair.joined_by])
            for pair in others
            for op in one_way
        ),
        *(Series(op, mode, ranks) for mode in rest for op, ranks in places),
        *(Series(RING, mode, groups[-1]) for mode in rings),
    )


def _apart(pair: Pair) -> int:
    return pair.ranks[1] - pair.ranks[0]


def group_sizes(world_size: int) -> tuple[int, ...]:
    """2, 4, 8, ... and all ranks."""
    powers = (2**power for power in range(1, world_size.bit_length()))
    return tuple(sorted({size for size in powers if size <= world_size} | {world_size}))


def ops_per_replay(payload_bytes: int) -> int:
    """So many in a row that a launch is little of it. By payload alone: all ranks must agree."""
    return max(2, min(20, 512 * MIB // max(payload_bytes, 1)))


def sizes_between(low: int, high: int) -> tuple[int, ...]:
    """Powers of two times `low`, up to `high`."""
    sizes: list[int] = []
    while low <= high:
        sizes.append(low)
        low *= 2
    return tuple(sizes)


def score_sizes_between(low: int, high: int) -> tuple[int, ...]:
    """Half-way between two powers of two, in every other octave: never one that is fitted."""
    return tuple(size * 3 // 2 for size in sizes_between(low, high * 2 // 3)[::2])


def sizes_of(series: Series, request: Request) -> list[int]:
    """The payloads of a series."""
    every = request.every_size
    return [size for size in every if size in SURVEY_BYTES] if series.is_survey else every


def parse_sizes(text: str) -> tuple[int, int]:
    """`512..512MiB` in bytes. Raises NotAvailableError for anything else."""
    match = re.fullmatch(r"(\d+)(\w*)\.\.(\d+)(\w*)", text)
    if not match or match[2] not in UNITS or match[4] not in UNITS:
        raise NotAvailableError(f"--sizes {text} is no range; write LOW..HIGH, as 512..512MiB")
    low, high = int(match[1]) * UNITS[match[2]], int(match[3]) * UNITS[match[4]]
    if not 0 < low <= high or low % STEP_BYTES:
        raise NotAvailableError(
            f"--sizes {text} must rise from a multiple of {STEP_BYTES} bytes; use 512..512MiB"
        )
    return low, high


def pairs_of(places: Sequence[tuple[str, int]]) -> list[Pair]:
    """All pairs of ranks, from (host, GPU index there) of each rank. Hosts are taken to be alike."""
    joined = _joined_here()
    pairs: list[Pair] = []
    for first, second in combinations(range(len(places)), 2):
        (host, one), (other_host, other) = places[first], places[second]
        here = joined.get((min(one, other), max(one, other)), "one host")
        pairs.append(Pair((first, second), here if host == other_host else "the network"))
    return pairs


def _joined_here() -> dict[tuple[int, int], str]:
    """(GPU index, GPU index) -> how they are joined; nothing without NVML or GPUs."""
    try:
        import pynvml

        pynvml.nvmlInit()
        uuids = [torch.cuda.get_device_properties(i).uuid for i in range(torch.cuda.device_count())]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for uuid in uuids]
    except Exception:
        return {}
    return {
        (pair.first, pair.second): f"{pair.nvlinks} NVLinks {pair.nvlink_version}".strip()
        if pair.nvlinks
        else pair.common_ancestor
        for pair in gpu_pairs(pynvml, handles)
    }

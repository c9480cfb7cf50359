"""Counters of ops: which are read, what they say, and the file that they are kept in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from layerwise.hw.counters.ncu import Kernel

FORMAT, VERSION = "layerwise-counters", 1
# Each group is one run of the program. The first is needed; the second tells the L2's halves apart.
GROUPS: dict[str, tuple[str, ...]] = {
    "memory": (
        "lts__t_sectors_op_read.sum",
        "lts__t_sectors_op_read_lookup_hit.sum",
        "lts__t_sectors_op_write.sum",
        "dram__bytes_read.sum",
        "dram__bytes_write.sum",
        "gpu__time_duration.sum",
    ),
    "partitions": (
        "lts__t_sectors_srcunit_tex_op_read.sum",
        "lts__t_sectors_srcunit_tex_op_read_lookup_hit.sum",
        "lts__t_sectors_srcunit_ltcfabric_op_read_lookup_hit.sum",
    ),
}
OPTIONAL_GROUPS = ("partitions",)
SECTOR_BYTES = 32  # Source: Nsight Compute, Kernel Profiling Guide, "Memory Tables".


@dataclass(frozen=True, kw_only=True)
class OpCounters:
    """One op's counters, summed over its kernels; metrics by ncu's names, in bytes, s, sectors."""

    __pydantic_config__ = {"extra": "forbid"}

    op: str
    kernels: tuple[str, ...]
    metrics: dict[str, float]

    @property
    def hbm_read_bytes(self) -> float:
        """What came from HBM while its kernels ran."""
        return self.metrics["dram__bytes_read.sum"]

    @property
    def hbm_write_bytes(self) -> float:
        """What went to HBM meanwhile, whoever wrote it."""
        return self.metrics["dram__bytes_write.sum"]

    @property
    def l2_lookup_bytes(self) -> float:
        """What was looked up for reading in either half of the L2."""
        return SECTOR_BYTES * self.metrics["lts__t_sectors_op_read.sum"]

    @property
    def lookup_hit_share(self) -> float:
        """Share of those lookups that hit: Nsight Compute's own hit rate of reads."""
        hits = SECTOR_BYTES * self.metrics["lts__t_sectors_op_read_lookup_hit.sum"]
        return hits / self.l2_lookup_bytes if self.l2_lookup_bytes else 0.0

    @property
    def served_share(self) -> float | None:
        """Share of the SMs' reads that either half of the L2 served; None where not counted."""
        asked, near, far = (self.metrics.get(name) for name in GROUPS["partitions"])
        if not asked or near is None or far is None:
            return None
        return (near + far) / asked


@dataclass(frozen=True, kw_only=True)
class Counters:
    """One profiled step, or reads. What the JSON file holds, beside its format and version.

    `scenario` is empty for reads, `working_sets_bytes` (by op name) for a scenario. `ops_run`: every
    op whose range was profiled; those without kernels have no entry in `ops`. `num_outside`:
    kernels outside all ranges. `passes`: times the program ran, by metric group.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    ops_run: tuple[str, ...]
    ops: tuple[OpCounters, ...]
    passes: dict[str, int]
    warm_ups: int
    scenario: dict[str, Any] = field(default_factory=dict[str, Any])
    working_sets_bytes: dict[str, int] = field(default_factory=dict[str, int])
    num_outside: int = 0
    notes: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict[str, str])


def join(groups: Mapping[str, Iterable[Kernel]]) -> tuple[OpCounters, ...]:
    """Kernels by op, in order of their first kernel; counters add up over kernels and groups."""
    names: dict[str, tuple[str, ...]] = {}
    sums: dict[str, dict[str, float]] = {}
    for group, kernels in groups.items():
        for kernel in (kernel for kernel in kernels if kernel.op):
            if group == next(iter(groups)):
                names[kernel.op] = (*names.get(kernel.op, ()), kernel.name)
            total = sums.setdefault(kernel.op, {})
            for metric, value in kernel.metrics.items():
                total[metric] = total.get(metric, 0.0) + value
    return tuple(OpCounters(op=op, kernels=names[op], metrics=sums[op]) for op in names)


def add_counters(op: str, each: Sequence[OpCounters]) -> OpCounters:
    """Several ops as one; a metric that one of them lacks is left out."""
    names = [name for name in each[0].metrics if all(name in one.metrics for one in each)]
    return OpCounters(
        op=op,
        kernels=tuple(kernel for one in each for kernel in one.kernels),
        metrics={name: sum(one.metrics[name] for one in each) for name in names},
    )

"""What an op costs: the datasheet's speed of light, or physics forms with a profile's constants."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from layerwise.sim.cost import forms
from layerwise.sim.cost.kinds import Bound, Rows, kind_of
from layerwise.sim.cost.power import energies_of, share_within
from layerwise.sim.cost.slowed import slowed_gpu, slowed_profile
from layerwise.sim.cost.transfer import profile_for
from layerwise.sim.cost.unfitted import (
    Change,
    changes_at_the_speed_of_light,
    changes_of,
    half_width_of,
    peak_flops_per_s,
)
from layerwise.sim.plan import ops
from layerwise.sim.plan.demand import demand_of
from layerwise.sim.plan.errors import ProfileMismatchError
from layerwise.sim.plan.hardware import FULL_SPEED, ClusterSpec, LinkSpec, Speed
from layerwise.sim.plan.ops import CollectiveOp, LocalOp, Op
from layerwise.sim.profile import Profile, TransferFit

Belief = Literal["speed_of_light", "uncalibrated", "calibrated"]

# Shares of the L2 at which hits begin to fail inside a layer, and at which none is left.
INTERLEAVED_RAMP = ("interleaved_full_hit", "interleaved_no_hit")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one op after the L2 had its say: what misses, what hits, what is written.

    `written_back_bytes`: dirty lines, of this op or of earlier ones, that leave for HBM meanwhile.
    `l2_set_aside`: a part of the L2 is set aside for persisting windows. `code_miss_share`: how
    much of the kernel's code has left the L2 since its last turn; all of it where nobody looked.
    """

    hbm_read_bytes: int
    l2_read_bytes: int
    written_bytes: int
    written_back_bytes: int = 0
    l2_set_aside: bool = False
    code_miss_share: float = 1.0

    @property
    def hbm_bytes(self) -> int:
        """What crosses to and from HBM: reads that miss, and write-backs."""
        return self.hbm_read_bytes + self.written_back_bytes

    @property
    def l2_bytes(self) -> int:
        """What the L2 serves: reads that hit, and writes that stay in it for now.

        A write that pushes another one out to HBM goes at HBM's pace, and is not counted again.
        """
        return self.l2_read_bytes + max(0, self.written_bytes - self.written_back_bytes)

    @property
    def miss_share(self) -> float:
        """Share of all these bytes that cross to or from HBM; 0 where nothing moves."""
        return self.hbm_bytes / max(1, self.hbm_bytes + self.l2_bytes)


@dataclass(frozen=True, slots=True)
class OpCost:
    """`launch_s` passes before the first kernel starts, `kernel_s` until the last one ends.

    `half_width`: of the 90 % interval of both together, as ln(measured / predicted); 0 where a
    belief has none. `distance`: to the nearest calibrated shape; `extrapolated`: beyond them, or of
    a kernel, head size or dtype that the fit has not seen: then `changes` says which. `sm_j`: joules
    in SMs and L2 at full clock, `hbm_j` of its traffic with HBM; 0 where nobody measured power.
    """

    launch_s: float
    kernel_s: float
    bound: Bound
    extrapolated: bool = False
    half_width: float = 0.0
    distance: float = 0.0
    changes: tuple[Change, ...] = ()
    sm_j: float = 0.0
    hbm_j: float = 0.0


@dataclass(frozen=True, slots=True)
class TransferCost:
    """A message: `latency_s` with no bytes moving, then a flow of at most `bytes_per_s`.

    `half_width`: as in OpCost.
    """

    latency_s: float
    bytes_per_s: float
    half_width: float = 0.0


def _slowed(cluster: ClusterSpec, speed: Speed) -> ClusterSpec:
    return replace(cluster, gpu=slowed_gpu(cluster.gpu, speed))


def _seconds(table: TransferFit, payload_bytes: int, port_share: float) -> float:
    """A slow port delivers fewer bytes/s, and takes no longer to begin."""
    regime = table.regime(payload_bytes)
    return regime.latency_s + payload_bytes / (regime.bytes_per_s * port_share)


class CostModel(Protocol):
    """Seconds of ops, messages and collectives under one belief."""

    @property
    def belief(self) -> Belief:
        """Which belief this is."""
        ...

    @property
    def is_disturbed_by_messages(self) -> bool:
        """Do ops and large messages on one GPU slow each other down?"""
        ...

    def speeds_beside_messages(self, bound: Bound) -> tuple[float, float]:
        """The speed of an op with this bound while a message runs beside it, and the message's."""
        ...

    @property
    def issue_s(self) -> float:
        """Host time to issue one op in eager mode."""
        ...

    @property
    def graph_launch_s(self) -> float:
        """Time between two graphs on a GPU that has the next one queued."""
        ...

    @property
    def hit_horizon_bytes(self) -> float:
        """The reuse distance from which nothing hits any more."""
        ...

    def hit_fraction(self, reuse_distance_bytes: int) -> float:
        """Share of a buffer found in L2 after so many other bytes were touched."""
        ...

    def obeys_windows(self, op: Op) -> bool:
        """Does this op's kernel keep weights where an access-policy window says so?"""
        ...

    def local(self, op: LocalOp, traffic: Traffic) -> OpCost:
        """Cost of an op that one GPU runs alone."""
        ...

    def changes(self, op: LocalOp) -> tuple[Change, ...]:
        """What separates an op from what this belief prices it by."""
        ...

    def collective(self, op: CollectiveOp) -> OpCost:
        """Cost of a collective from the moment its last member arrives."""
        ...

    def transfer(self, payload_bytes: int, link: LinkSpec) -> TransferCost:
        """Cost of a message over one hop."""
        ...

    def link_bytes_per_s(self, link: LinkSpec) -> float:
        """What one port delivers to all messages that share it."""
        ...

    def at_speed(self, speed: Speed) -> CostModel:
        """The same belief about a GPU of this speed; one model for each."""
        ...


@dataclass(frozen=True)
class SpeedOfLight:
    """Datasheet rates, no latency, no launch, an L2 that keeps what was touched last."""

    cluster: ClusterSpec
    belief: Belief = "speed_of_light"
    issue_s: float = 0.0
    graph_launch_s: float = 0.0
    is_disturbed_by_messages: bool = False

    def speeds_beside_messages(self, bound: Bound) -> tuple[float, float]:
        del bound
        return 1.0, 1.0

    @property
    def hit_horizon_bytes(self) -> float:
        return self.cluster.gpu.l2_bytes + 1

    def hit_fraction(self, reuse_distance_bytes: int) -> float:
        return 1.0 if reuse_distance_bytes <= self.cluster.gpu.l2_bytes else 0.0

    def obeys_windows(self, op: Op) -> bool:
        del op
        return True

    def local(self, op: LocalOp, traffic: Traffic) -> OpCost:
        gpu = self.cluster.gpu
        # Writes may stay on chip: the bound must not charge HBM for them.
        times: dict[Bound, float] = {
            "hbm": traffic.hbm_read_bytes / gpu.hbm_bytes_per_s,
            "l2": traffic.l2_bytes / gpu.l2_bytes_per_s,
            "compute": demand_of(op).flops / peak_flops_per_s(op, gpu),
        }
        bound = max(times, key=lambda key: times[key])
        return OpCost(0.0, times[bound], bound)

    def changes(self, op: LocalOp) -> tuple[Change, ...]:
        return changes_at_the_speed_of_light(op, self.cluster.gpu)

    def collective(self, op: CollectiveOp) -> OpCost:
        """No algorithm sends less: a switch that reduces takes each tensor once.

        Both wires can be busy at once; the slowest member's port sets the pace on each.
        """
        nodes = {self.cluster.node_of(rank) for rank in op.group}
        local_ranks = len(op.group) // len(nodes)
        inside = op.payload_bytes if local_ranks > 1 else 0
        if isinstance(op, ops.AllGather) or local_ranks == 2:
            inside = op.payload_bytes * (local_ranks - 1) // local_ranks
        across = op.payload_bytes // local_ranks * (len(nodes) - 1) // len(nodes)
        nvlink, nic = (
            link.bytes_per_s * self.cluster.port_share(link.name, op.group)
            for link in (self.cluster.nvlink, self.cluster.nic)
        )
        return OpCost(0.0, max(inside / nvlink, across / nic), "link")

    def transfer(self, payload_bytes: int, link: LinkSpec) -> TransferCost:
        return TransferCost(0.0, link.bytes_per_s)

    def link_bytes_per_s(self, link: LinkSpec) -> float:
        return link.bytes_per_s

    def at_speed(self, speed: Speed) -> SpeedOfLight:
        if speed == FULL_SPEED:
            return self
        return replace(self, cluster=_slowed(self.cluster, speed))


@dataclass(frozen=True)
class Calibrated:
    """Physics forms with a profile's constants, corrected by what was measured nearby.

    The profile holds for the cluster: `about` sees to it. The uncalibrated belief is the same with
    published constants and nothing to correct by.

    `full`: where this is a GPU below full clock and its power was measured, the same GPU at full
    clock. Ops are then told by it: a fit's points are bursts, in which the fast power limit may
    have held the clock of a long kernel already.
    """

    cluster: ClusterSpec
    profile: Profile
    belief: Belief = "calibrated"
    full: Calibrated | None = None
    _cache: dict[tuple[LocalOp, Traffic], OpCost] = field(default_factory=dict, compare=False)
    _slowed: dict[Speed, Calibrated] = field(default_factory=dict, compare=False)

    @classmethod
    def about(
        cls, cluster: ClusterSpec, profile: Profile, belief: Belief = "calibrated"
    ) -> Calibrated:
        """Make the belief about a cluster: measured rates follow the datasheet values of a what-if.

        Raises ProfileMismatchError for a profile of another GPU.
        """
        return cls(cluster, profile_for(cluster, profile), belief)

    @property
    def is_disturbed_by_messages(self) -> bool:
        return True

    def speeds_beside_messages(self, bound: Bound) -> tuple[float, float]:
        """An op loses bandwidth or SMs to a message; beside an op bound by HBM it crawls itself."""
        match bound:
            case "hbm" | "l2":
                return self._machine("op_speed_beside_message"), self._machine(
                    "message_speed_beside_hbm"
                )
            case "compute":
                sms = self.cluster.gpu.num_sms
                return max(1, sms - self._machine("message_num_sms")) / sms, 1.0
            case "link" | "launch":
                return 1.0, 1.0

    @property
    def issue_s(self) -> float:
        return self._machine("eager_issue_s")

    @property
    def graph_launch_s(self) -> float:
        return self._machine("graph_launch_s")

    @cached_property
    def _l2_ramp(self) -> tuple[float, float]:
        full, no = (self._machine(name) * self.cluster.gpu.l2_bytes for name in INTERLEAVED_RAMP)
        return full, no

    @property
    def hit_horizon_bytes(self) -> float:
        return self._l2_ramp[1]

    def hit_fraction(self, reuse_distance_bytes: int) -> float:
        """Linear ramp between two shares of the L2: where kernels in turn begin to miss, and end.

        Source: shared best of the forms tried on public Hopper curves; its ends are fitted to this
        project's whole layers, and for ops in a row of their own kind to its read sweep.
        """
        low, high = self._l2_ramp
        return forms.ramp(reuse_distance_bytes, low, high)

    def obeys_windows(self, op: Op) -> bool:
        """Documents say that all do; cuBLAS' Hopper kernels load weights by TMA, which does not.

        Source: a kernel of plain loads and torch.mm, each with windows on its graph nodes,
        traces/windows-h100-sxm. Skinny matmuls and norms are kernels of plain loads.
        """
        if self.belief == "uncalibrated":
            return True
        return isinstance(op, LocalOp) and kind_of(op).obeys_windows

    def local(self, op: LocalOp, traffic: Traffic) -> OpCost:
        cached = self._cache.get((op, traffic))
        if cached is None:
            cached = self._cache[op, traffic] = self._local(op, traffic)
        return cached

    def changes(self, op: LocalOp) -> tuple[Change, ...]:
        found = changes_of(op, self.profile, self.cluster.gpu)
        if self.belief == "calibrated":
            return found
        return tuple(replace(one, half_width=0.0, known_by="published") for one in found)

    def collective(self, op: CollectiveOp) -> OpCost:
        kind, algorithm = (
            ("all_reduce", op.algorithm)
            if isinstance(op, ops.AllReduce)
            else ("all_gather", "nccl")
        )
        nodes = {self.cluster.node_of(rank) for rank in op.group}
        local_ranks = len(op.group) // len(nodes)
        seconds = half_width = 0.0
        if local_ranks > 1:
            table = self._table(f"{kind}.{algorithm}.{local_ranks}")
            share = self.cluster.port_share(self.cluster.nvlink.name, op.group)
            seconds, half_width = _seconds(table, op.payload_bytes, share), table.half_width
        if len(nodes) > 1:
            seconds += self._across_nodes_s(op, local_ranks, len(nodes))
            half_width = max(half_width, self._table(f"send.{self.cluster.nic.name}").half_width)
        return OpCost(0.0, seconds, "link", half_width=half_width)

    def transfer(self, payload_bytes: int, link: LinkSpec) -> TransferCost:
        table = self._table(f"send.{link.name}")
        regime = table.regime(payload_bytes)
        return TransferCost(regime.latency_s, regime.bytes_per_s, table.half_width)

    def link_bytes_per_s(self, link: LinkSpec) -> float:
        return max(r.bytes_per_s for r in self._table(f"send.{link.name}").regimes)

    def at_speed(self, speed: Speed) -> Calibrated:
        if speed == FULL_SPEED:
            return self
        found = self._slowed.get(speed)
        if found is None:
            cluster = _slowed(self.cluster, speed)
            profile = slowed_profile(self.profile, cluster, speed)
            full = None
            if self.profile.power and speed.clock_share < 1:
                full = self.at_speed(Speed(hbm_share=speed.hbm_share))
            found = replace(
                self, cluster=cluster, profile=profile, full=full, _cache={}, _slowed={}
            )
            self._slowed[speed] = found
        return found

    def _across_nodes_s(self, op: CollectiveOp, local_ranks: int, num_nodes: int) -> float:
        """Each GPU exchanges its share with its counterparts over its own NIC.

        Hierarchical reduce: derived, not measured; the profile holds no multi-node collective.
        """
        nic = self.cluster.nic.name
        part = max(1, op.payload_bytes // local_ranks // num_nodes)
        slowest = self.cluster.port_share(nic, op.group)
        return 2 * (num_nodes - 1) * _seconds(self._table(f"send.{nic}"), part, slowest)

    def _table(self, name: str) -> TransferFit:
        if name not in self.profile.transfers:
            raise ProfileMismatchError(
                f"profile {self.profile.name!r} has no transfer {name!r}; it has "
                f"{sorted(self.profile.transfers)}; choose one of these, or calibrate it"
            )
        return self.profile.transfers[name]

    def _machine(self, name: str) -> float:
        if name not in self.profile.machine:
            raise ProfileMismatchError(
                f"profile {self.profile.name!r} has no machine constant {name!r}; it is from "
                "another version: calibrate again"
            )
        return self.profile.machine[name].value

    def _local(self, op: LocalOp, traffic: Traffic) -> OpCost:
        kind = kind_of(op, self.profile.fits)
        if kind.name not in self.profile.fits:
            raise ProfileMismatchError(
                f"profile {self.profile.name!r} has no fit of {kind.name!r}; calibrate again"
            )
        told_by = self.full or self
        fit = told_by.profile.fits[kind.name]
        total_s, parts = told_by.form(op, traffic)
        features = kind.features_of(op)
        place = kind.place_of(features, traffic.miss_share)
        total_s *= fit.correction(place)
        bound = max(parts, key=lambda key: parts[key])
        sm_j = hbm_j = 0.0
        if power := self.profile.power:
            hbm_bytes, flops = traffic.hbm_bytes, demand_of(op).flops
            moved_bytes = hbm_bytes + traffic.l2_bytes
            sm_j, hbm_j = energies_of(power, kind.flop_energy, flops, moved_bytes, hbm_bytes)
            if self.full:
                total_s *= self._slowdown(op, traffic, bound, (total_s, sm_j, hbm_j))
        total_s = self._among_others(total_s, bound, traffic.code_miss_share)
        if traffic.l2_set_aside and bound == "hbm":
            total_s *= 1 + self._machine("set_aside_hbm_slowdown")
        gap_s = min(self._machine("graph_gap_s"), 0.9 * total_s)
        # Where nothing was calibrated, nothing lies outside of it.
        changes = self.changes(op) if self.belief == "calibrated" else ()
        return OpCost(
            launch_s=gap_s,
            kernel_s=total_s - gap_s,
            bound=bound,
            extrapolated=bool(changes) or fit.is_beyond(features, place),
            half_width=math.hypot(fit.half_width(place), half_width_of(changes)),
            distance=fit.nearby(place).distance,
            changes=changes,
            sm_j=sm_j,
            hbm_j=hbm_j,
        )

    @property
    def clock_share(self) -> float:
        """Its clock over that of its kind at full speed."""
        if self.full is None:
            return 1.0
        return self.cluster.gpu.peak_flops_per_s / self.full.cluster.gpu.peak_flops_per_s

    def burst_share(self, seconds: float, sm_j: float, hbm_j: float) -> float:
        """The clock at which the fast power limit lets a kernel of these joules run, in a burst."""
        if self.profile.power is None:
            return 1.0
        limit_w = self.profile.power.values["fast_limit_w"]
        return share_within(self.profile.power, limit_w, seconds, sm_j, hbm_j)

    def _slowdown(
        self, op: LocalOp, traffic: Traffic, bound: Bound, burst: tuple[float, float, float]
    ) -> float:
        """How much longer an op takes at this clock than in a burst of (seconds, sm_j, hbm_j).

        What HBM bounds is slowed by a part of what its form says: loads are in flight meanwhile.
        """
        assert self.full is not None
        assert self.profile.power is not None
        # To a hundredth: each share is a model of its own.
        share = round(self.full.burst_share(*burst), 2)
        if share <= self.clock_share:
            return 1.0
        held_s, _ = self.form(op, traffic)
        burst_s, _ = self.full.at_speed(Speed(clock_share=share)).form(op, traffic)
        exponent = self.profile.power.values["hbm_bound_share"] if bound == "hbm" else 1.0
        return max(1.0, held_s / burst_s) ** exponent

    def _among_others(self, alone_s: float, bound: Bound, code_miss_share: float) -> float:
        """A kernel between other kernels is slower than in a row of its own kind.

        Sweeps repeat one kernel. In a layer another one came before, its code may have left the L2
        before its next turn, and HBM must come back up to speed. All three times are fitted to
        whole steps kept for fitting.
        """
        alone_s += self._machine("interleaved_s")
        if bound == "hbm":
            alone_s += self._machine("interleaved_hbm_s")
        return alone_s + self._machine("interleaved_code_s") * code_miss_share

    def form(self, op: LocalOp, traffic: Traffic) -> tuple[float, dict[Bound, float]]:
        """Seconds of the form alone at this clock, and what each resource alone would take."""
        kind = kind_of(op, self.profile.fits)
        fit = self.profile.fits[kind.name]
        times = kind.form(fit.values, self._asked(kind.features_of(op), op, traffic))
        total_s = float(times.seconds[0])
        parts: dict[Bound, float] = {"launch": fit.values["launch_s"]}
        parts |= {bound: float(seconds[0]) for bound, seconds in times.parts.items()}
        if kind.counts_tiles_only:
            # No prompt is read faster than HBM delivers it.
            parts["hbm"] = traffic.hbm_read_bytes / self._machine("hbm_bytes_per_s")
            total_s = max(total_s, parts["launch"] + parts["hbm"])
        return total_s, parts

    def _asked(self, features: tuple[float, ...], op: LocalOp, traffic: Traffic) -> Rows:
        """One op as the forms take it: arrays [1]."""
        gpu = self.cluster.gpu
        numbers = (traffic.hbm_bytes, traffic.l2_bytes, getattr(op, "head_dim", 0), *features)
        hbm, l2, head_dim, *rest = np.array(numbers, dtype=np.float64)[:, None]
        return Rows(tuple(rest), hbm, l2, head_dim, gpu.num_sms, peak_flops_per_s(op, gpu))

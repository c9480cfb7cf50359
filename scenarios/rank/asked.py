"""What is ranked, and one predicted row of it: values, and nothing that searches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from layerwise.scenarios.rank.flips import Knob
from layerwise.scenarios.rank.layouts import Layout
from layerwise.scenarios.rank.unvalidated import Pairs, Part
from layerwise.sim.cost.model import Belief, Calibrated
from layerwise.sim.cost.uncalibrated import published_profile
from layerwise.sim.cost.unfitted import Change
from layerwise.sim.memory import MemoryBudget
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.hardware import ClusterSpec
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.overrides import with_values
from layerwise.sim.plan.scenario import RunSpec, Scenario
from layerwise.sim.plan.workload import Workload
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import Plan, best_belief, reserved_bytes, resolve
from layerwise.sim.uncertainty import Interval, Uncertainty


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is ranked. Without a profile beliefs are uncalibrated; factors make what-ifs of it.

    `pairs`: collectives of two GPUs, as others published them and as measured here.
    """

    model: ModelSpec
    cluster: ClusterSpec
    workload: Workload
    run: RunSpec = RunSpec()
    profile: Profile | None = None
    latency_factor: float = 1.0
    pairs: Pairs = field(default_factory=dict, repr=False)

    @property
    def belief(self) -> Belief:
        """Calibrated where something was measured."""
        return best_belief(self.profile)

    @property
    def reserved_bytes(self) -> int:
        """Memory that is not the program's own."""
        return reserved_bytes(self.belief, self.profile)

    def cost(self) -> Calibrated:
        """What ops cost here. Raises ProfileMismatchError for a profile of another GPU."""
        profile = self.profile or published_profile(self.cluster)
        if self.latency_factor != 1.0:
            profile = _with_latency(profile, self.latency_factor)
        return Calibrated.about(self.cluster, profile, self.belief)

    def scenario(self, layout: Layout, num_microbatches: int = 0) -> Scenario:
        """One layout of it."""
        kernels = self.profile.kernels if self.profile else KernelChoice()
        return Scenario(
            name=layout.name,
            model=self.model,
            cluster=self.cluster,
            placement=layout.spec,
            workload=replace(self.workload, num_microbatches=num_microbatches),
            run=self.run,
            kernels=replace(kernels, all_reduce=layout.all_reduce),
        )

    def plan(self, layout: Layout, cost: Calibrated, num_microbatches: int = 0) -> Plan:
        """Resolve one layout of it; `cost` is what `cost` gives, for every layout the same."""
        return resolve(self.scenario(layout, num_microbatches), self.profile, cost=cost)

    def with_knob(self, knob: Knob, factor: float) -> Asked:
        """The same with one figure of the hardware multiplied, or launches by the host."""
        match knob.kind:
            case "latency":
                return replace(self, latency_factor=self.latency_factor * factor)
            case "launch":
                return replace(self, run=replace(self.run, launch="eager"))
            case "field":
                layout = Layout(tensor_parallel=1, pipeline_parallel=1, data_parallel=1)
                values = knob.values(self.cluster, factor)
                return replace(self, cluster=with_values(self.scenario(layout), values).cluster)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One layout at one number of microbatches and one batch, predicted.

    `share` and `bubble` as in `Prediction`; `memory` is the fullest GPU's. `ttft_s`: the prefill of
    one prompt per replica, alone. `uncertainty` None: the belief has no interval. `unvalidated`:
    what it rests on besides that nothing measured here has checked. `unfitted`: what no fit has seen
    of its kernels, head sizes and dtypes, its first token's included.
    """

    layout: Layout
    batch_size: int
    num_microbatches: int
    tokens_per_s: float
    tpot_s: float
    ttft_s: float
    share: dict[str, float]
    bubble: float
    memory: MemoryBudget
    num_extrapolated_ops: int
    is_steady: bool
    uncertainty: Uncertainty | None = field(default=None, repr=False)
    unvalidated: tuple[Part, ...] = field(default=(), repr=False)
    unfitted: tuple[Change, ...] = field(default=(), repr=False)

    @property
    def fits(self) -> bool:
        """Does the fullest GPU's memory suffice?"""
        return self.memory.fits

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Over all GPUs."""
        return self.tokens_per_s / self.layout.num_gpus

    @property
    def interval(self) -> Interval | None:
        """90 % of `tokens_per_s`."""
        return self.uncertainty.around(self.tokens_per_s) if self.uncertainty else None

    @property
    def bottleneck(self) -> tuple[str, float]:
        """What takes the largest share of a GPU's step, and that share."""
        shares = self.share | {"bubble": self.bubble}
        name = max(shares, key=lambda key: shares[key])
        return name, shares[name]

    def meets(self, tpot_below_s: float | None) -> bool:
        """Does it fit, and are its tokens that close together?"""
        return self.fits and (tpot_below_s is None or self.tpot_s < tpot_below_s)


def _with_latency(profile: Profile, factor: float) -> Profile:
    transfers = {
        name: replace(
            fit,
            regimes=tuple(
                replace(regime, latency_s=regime.latency_s * factor) for regime in fit.regimes
            ),
        )
        for name, fit in profile.transfers.items()
    }
    return replace(profile, transfers=transfers)

"""Plan -> a prediction: the metrics users read, at the best number of microbatches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd

from layerwise.sim.cost.model import Belief
from layerwise.sim.cost.unfitted import Change
from layerwise.sim.memory import MemoryBudget, memory_budgets
from layerwise.sim.plan.program import StepPrograms
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.plan.workload import Phase
from layerwise.sim.power import Power, power_of
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import Plan, resolve
from layerwise.sim.shared import Shared
from layerwise.sim.simulate import PS, Simulation, simulate_scenario
from layerwise.sim.uncertainty import Interval, Uncertainty, uncertainty_of, unfitted_of

BOUNDS = ("hbm", "l2", "compute", "link", "launch", "wait")
MAX_STEPS = 32
SMALL_BUBBLE = 0.02


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one placement does under one belief.

    Decode: `step_s` is the steady interval between steps, `from_idle_s` one step from idle.
    Prefill: `step_s` is the time of the whole batch's prefill, from idle. `share` splits a GPU's
    mean step time by bottleneck; what is left is `bubble`. `wire_bytes`: per step, all ranks.
    `num_extrapolated_ops`: ops of those steps that lie outside what was calibrated.
    `busy_share_by_rank`: of the ranks that were simulated, each for those it stands for. `simulation`
    and `steps` are what all this was read from.
    """

    belief: Belief
    placement: str
    phase: Phase
    num_stages: int
    num_microbatches: int
    tokens_per_s: float
    step_s: float
    from_idle_s: float
    bubble: float
    share: dict[str, float]
    wire_bytes: dict[str, int]
    memory: tuple[MemoryBudget, ...]
    busy_share_by_rank: tuple[float, ...]
    is_steady: bool
    num_extrapolated_ops: int = 0
    simulation: Simulation | None = field(default=None, repr=False, compare=False)
    steps: tuple[int, ...] = ()

    @cached_property
    def uncertainty(self) -> Uncertainty | None:
        """Why its interval is as wide as it is, worked out when asked; None if it has none."""
        if self.simulation is None:
            return None
        return uncertainty_of(self.simulation, self.steps, self.step_s)

    @cached_property
    def power(self) -> Power | None:
        """What it draws, and the clock that the power limit holds; None where nobody measured it."""
        return power_of(self.simulation, self.steps, self.step_s) if self.simulation else None

    @property
    def energy_per_token_j(self) -> float | None:
        """Joules of all GPUs for one token; None where nobody measured power."""
        return (
            self.power.energy_per_step_j / (self.step_s * self.tokens_per_s) if self.power else None
        )

    @cached_property
    def unfitted(self) -> tuple[Change, ...]:
        """What the belief's fits have not seen about its ops: kernels, head sizes, dtypes."""
        return unfitted_of(self.simulation) if self.simulation else ()

    @property
    def interval(self) -> Interval | None:
        """90 % of `step_s`, and so of `tpot_s`; only calibrated predictions have one."""
        return self.uncertainty.around(self.step_s) if self.uncertainty else None

    @property
    def tokens_per_s_interval(self) -> Interval | None:
        """90 % of `tokens_per_s`."""
        return self.uncertainty.around(self.tokens_per_s) if self.uncertainty else None

    @property
    def inverse_throughput_s(self) -> float:
        """Seconds per token over the whole batch: what the paper calls TPOT."""
        return 1.0 / self.tokens_per_s

    @property
    def tpot_s(self) -> float:
        """Time between two tokens of one sequence (decode): the steady step."""
        return self.step_s

    @property
    def fits(self) -> bool:
        """Does every rank's memory suffice?"""
        return all(budget.fits for budget in self.memory)

    @property
    def peak_memory_bytes(self) -> int:
        """The fullest GPU."""
        return max(budget.total_bytes for budget in self.memory)


def predict(
    scenario: Scenario, profile: Profile | None, belief: Belief | None = None
) -> Prediction:
    """Resolve a scenario and predict it; raises what `layerwise.sim.resolve.resolve` raises."""
    return predict_plan(resolve(scenario, profile, belief))


def predict_plan(plan: Plan, shared: Shared | None = None) -> Prediction:
    """Predict a plan; a number of microbatches left open is searched for.

    Plans that hand on what they have `shared` under one cost model price each op, compile each
    program and walk each block once; the answers are equal.
    """
    shared = shared or Shared(plan.cost)
    if plan.scenario.workload.num_microbatches:
        return _predict(plan, shared)
    return _search(plan, shared)


def _search(plan: Plan, shared: Shared) -> Prediction:
    """Climb in powers of two from one microbatch a stage, both ways, to the best throughput.

    Placements that fit in memory come first whatever their speed. In decode no other number is
    tried where SMALL_BUBBLE is left: more microbatches only fill bubbles, and read weights more
    often; with fewer than stages a step is no shorter than one of them takes through all stages,
    and a larger one takes longer.
    """
    placement = plan.placement
    limit = plan.scenario.workload.batch_size // placement.data_parallel
    tried: dict[int, Prediction] = {}

    def rank_of(number: int) -> tuple[bool, float]:
        if number not in tried:
            tried[number] = _predict(plan.with_microbatches(number), shared)
        return tried[number].fits, tried[number].tokens_per_s

    best = min(placement.num_stages, limit)
    rank_of(best)
    for factor in (2.0, 0.5):
        while 1 <= int(best * factor) <= limit:
            if _is_full(tried[best]):
                break
            if rank_of(int(best * factor)) <= rank_of(best):
                break
            best = int(best * factor)
    return tried[best]


def _is_full(prediction: Prediction) -> bool:
    """Decode's memory is KV, whatever the microbatches: whether it fits makes no difference."""
    return prediction.phase == "decode" and prediction.bubble < SMALL_BUBBLE


def _predict(plan: Plan, shared: Shared) -> Prediction:
    """Simulate, decode until its steps are steady; longer runs share what shorter ones made."""
    decoding = plan.scenario.workload.phase == "decode"
    spec = replace(plan.scenario.run, only_rank=-1)
    run, simulation = _simulated(plan.with_run(spec), shared)
    while decoding and not simulation.is_steady and len(run) < MAX_STEPS:
        longer = plan.with_run(replace(spec, num_steps=2 * len(run)))
        run, simulation = _simulated(longer, shared)
    return _prediction(plan, run, simulation, shared)


def _simulated(plan: Plan, shared: Shared) -> tuple[list[StepPrograms], Simulation]:
    run = shared.compile(plan)
    return run, simulate_scenario(plan.scenario, run, shared.cost, blocks=shared.blocks)


def _prediction(
    plan: Plan, run: list[StepPrograms], simulation: Simulation, shared: Shared
) -> Prediction:
    scenario, placement = plan.scenario, plan.placement
    decoding = scenario.workload.phase == "decode"
    # A steady step is the last but one: the last hands no tokens back.
    steps = [len(run) - 2 if len(run) > 1 else 0] if decoding else list(range(len(run)))
    step_s = simulation.steady_step_s if decoding else simulation.step_end_s[-1]
    tokens = scenario.workload.batch_size * (1 if decoding else scenario.workload.context_tokens)
    accounts = {
        rank: [simulation.account(rank, step) for step in steps] for rank in simulation.ranks
    }
    busy = {
        rank: {bound: sum(a.bound_ps.get(bound, 0) for a in found) * PS for bound in BOUNDS}
        for rank, found in accounts.items()
    }
    alike = {rank: simulation.num_alike(rank) for rank in simulation.ranks}
    # Without common factors: a mean over ranks that all stand for as many is that of the ranks.
    weights = {rank: number // gcd(*alike.values()) for rank, number in alike.items()}
    share = {
        b: sum(busy[r][b] * weights[r] for r in busy) / sum(weights.values()) / step_s
        for b in BOUNDS
    }
    wires: dict[str, int] = {}
    for rank, found in accounts.items():
        for account in found:
            for wire, size in account.wire_bytes.items():
                wires[wire] = wires.get(wire, 0) + size * alike[rank]
    return Prediction(
        belief=plan.belief,
        placement=placement.name,
        phase=scenario.workload.phase,
        num_stages=placement.num_stages,
        num_microbatches=scenario.workload.num_microbatches,
        tokens_per_s=tokens / step_s,
        step_s=step_s,
        from_idle_s=simulation.first_step_s if decoding else step_s,
        bubble=max(0.0, 1.0 - sum(share.values())),
        share=share,
        wire_bytes=wires,
        memory=memory_budgets(
            run, scenario.cluster.gpu.hbm_bytes, plan.reserved_bytes, shared.held
        ),
        busy_share_by_rank=tuple(sum(busy[r].values()) / step_s for r in simulation.ranks),
        is_steady=simulation.is_steady or not decoding,
        num_extrapolated_ops=sum(
            alike[rank] * account.num_extrapolated
            for rank, found in accounts.items()
            for account in found
        ),
        simulation=simulation,
        steps=tuple(steps),
    )

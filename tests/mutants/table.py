"""The wrong formulas, each named by what it gets wrong and found by its function, wherever it moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Area = Literal["cost", "machine", "memory and uncertainty", "calibration"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One expression and what stands in its place.

    `function`: its name alone, for modules and classes may change. `expression` and `replacement` are
    Python; layout does not count. `equivalent`: why nobody can observe the change, where nobody can.
    """

    name: str
    area: Area
    function: str
    expression: str
    replacement: str
    matters: str
    equivalent: str = ""


MUTANTS = (
    Mutant(
        name="share of traffic that misses: over HBM's and the L2's bytes",
        area="cost",
        function="miss_share",
        expression="self.hbm_bytes + self.l2_bytes",
        replacement="self.hbm_bytes",
        matters="which calibrated points are near: cold ones or warm ones",
    ),
    Mutant(
        name="constant moved to other hardware: its standard error in proportion",
        area="cost",
        function="_moved_constant",
        expression="constant.standard_error * ratio.factor",
        replacement="constant.standard_error",
        matters="what a moved profile says about its own constants",
    ),
    Mutant(
        name="FlashAttention 2's split of keys: nearly as full as the fullest",
        area="cost",
        function="_flash_splits",
        expression="max(filled.values())",
        replacement="min(filled.values())",
        matters="chunks of a prompt with few heads, which are split over idle SMs",
    ),
    Mutant(
        name="ramp's width: from its lower to its upper end",
        area="cost",
        function="ramp",
        expression="reach / (no_hit_bytes - full_hit_bytes)",
        replacement="reach / no_hit_bytes",
        matters="layers that nearly fit the L2",
    ),
    Mutant(
        name="decode attention: p-norm of key tiles and the cache's bytes",
        area="cost",
        function="decode_attention_seconds",
        expression="(walks_s**DECODE_OVERLAP + memory**DECODE_OVERLAP) ** (1 / DECODE_OVERLAP)",
        replacement="np.maximum(walks_s, memory)",
        matters="every decode step; most where tiles and bytes take equally long",
    ),
    Mutant(
        name="matmul's waves: each has a prologue and an epilogue",
        area="cost",
        function="matmul_seconds",
        expression="waves * (ends_s + steps * np.maximum(flops_s, load_s))",
        replacement="ends_s + waves * steps * np.maximum(flops_s, load_s)",
        matters="matmuls of many tiles and few steps",
    ),
    Mutant(
        name="collective across nodes: each GPU's share of a node's share",
        area="cost",
        function="_across_nodes_s",
        expression="op.payload_bytes // local_ranks // num_nodes",
        replacement="op.payload_bytes // local_ranks",
        matters="tensor parallelism over several nodes",
    ),
    Mutant(
        name="eager op by event: waits for the host beyond its gap",
        area="machine",
        function="begin",
        expression="process.host_ps - now - plan.gaps_ps[at]",
        replacement="process.host_ps - now",
        matters="eager runs whose messages disturb ops",
    ),
    Mutant(
        name="eager op: starts when its gap is over and the host has issued it",
        area="machine",
        function="_issue",
        expression="max(now + seconds_to_ps(one.cost.launch_s), self.host_ps)",
        replacement="max(now, self.host_ps) + seconds_to_ps(one.cost.launch_s)",
        matters="every eager run that the host paces",
    ),
    Mutant(
        name="rate of a collective on its wire: at most the port's",
        area="machine",
        function="collective_rates",
        expression="min(sent / seconds, port_bytes_per_s(wire, op.group, cost, cluster))",
        replacement="max(sent / seconds, port_bytes_per_s(wire, op.group, cost, cluster))",
        matters="collectives beside messages on one port",
    ),
    Mutant(
        name="reuse distance: the larger of what is read and what is held",
        area="machine",
        function="_hit_fraction",
        expression="since + max(size, held)",
        replacement="since + min(size, held)",
        matters="reads of a part of a buffer, or of more than was touched",
    ),
    Mutant(
        name="pipeline bubble: until the message starts",
        area="machine",
        function="bound_ps",
        expression="start - ready",
        replacement="end - ready",
        matters="the account of every pipeline stage but the first",
    ),
    Mutant(
        name="weights that windows keep: at most the set-aside",
        area="machine",
        function="l2_of",
        expression="min(held, gpu.persisting_l2_bytes)",
        replacement="max(held, gpu.persisting_l2_bytes)",
        matters="what is left of the L2 beside persisting windows",
    ),
    Mutant(
        name="KV bytes of a rank: room for the longest context of a run",
        area="memory and uncertainty",
        function="memory_budgets",
        expression="max(step.kv_capacity_tokens for step in by_step)",
        replacement="min(step.kv_capacity_tokens for step in by_step)",
        matters="whether a run whose steps differ in room fits",
    ),
    Mutant(
        name="allocator's slack: 10 MiB have a segment of their own",
        area="memory and uncertainty",
        function="slack_bytes_of",
        expression="block < 10 * MIB",
        replacement="block <= 10 * MIB",
        matters="models whose tensors are exactly 10 MiB",
    ),
    Mutant(
        name="interval of a step: others stand in only while the pacing rank idles",
        area="memory and uncertainty",
        function="uncertainty_of",
        expression="idle * found.time_ps",
        replacement="found.time_ps",
        matters="every interval of a pipeline",
    ),
    Mutant(
        name="half-width of an op: wider by the distance beyond its reach",
        area="memory and uncertainty",
        function="half_width",
        expression="nearby.distance - self.reach",
        replacement="nearby.distance",
        matters="intervals of ops between calibrated points",
    ),
    Mutant(
        name="half-width of a ratio: what both steps have cancels",
        area="memory and uncertainty",
        function="half_width_of_ratio",
        expression="sign * each.factor_of(kind)",
        replacement="each.factor_of(kind)",
        matters="whether one placement is surely faster than another",
    ),
    Mutant(
        name="standard error of a fitted constant: of its logarithm, times its value",
        area="calibration",
        function="fit_positive",
        expression="value * error",
        replacement="error",
        matters="what profiles say about their constants",
    ),
    Mutant(
        name="conformal quantile: one more score than there are",
        area="calibration",
        function="conformal_quantile",
        expression="math.ceil((len(scores) + 1) * COVERAGE)",
        replacement="math.ceil(len(scores) * COVERAGE)",
        matters="the coverage of every interval",
    ),
    Mutant(
        name="message's speed beside a kernel: half a kernel of waiting taken off",
        area="calibration",
        function="_message_speed",
        expression="pair['alone_s'] / 2",
        replacement="pair['alone_s']",
        matters="large messages beside ops that HBM bounds",
    ),
    Mutant(
        name="collectives without a switch: 2 MiB are large already",
        area="calibration",
        function="without_in_switch_reduction",
        expression="one.from_bytes < SIMPLE_BYTES",
        replacement="one.from_bytes <= SIMPLE_BYTES",
        matters="all-reduces of a table that has a regime from 2 MiB on",
    ),
    Mutant(
        name="farthest distance that was scored",
        area="calibration",
        function="error_scale",
        expression="held.distances[scored].max()",
        replacement="held.distances[scored].min()",
        matters="which ops are flagged as outside what was calibrated",
    ),
    Mutant(
        name="ends of the ramp: two more constants must earn their place",
        area="calibration",
        function="_best_ramp",
        expression="needed_gain * losses[best] < loss(as_read)",
        replacement="losses[best] < loss(as_read)",
        matters="profiles calibrated from few whole steps",
    ),
)

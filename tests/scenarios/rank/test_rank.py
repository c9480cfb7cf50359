"""Ranking: what is enumerated, in which order, what is a tie, what flips it, what is said."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from layerwise.scenarios.rank.asked import Asked, Candidate
from layerwise.scenarios.rank.flips import (
    EAGER,
    HIGH,
    KNOBS,
    LATENCY,
    LOW,
    Flip,
    crossing,
    find_flip,
    knobs_of,
)
from layerwise.scenarios.rank.inputs import RankInputs, resolve, tpot_s_of
from layerwise.scenarios.rank.layouts import Layout, layouts_of, microbatch_grid
from layerwise.scenarios.rank.leeway import Leeway
from layerwise.scenarios.rank.ranking import Ranking, is_tied, pareto, rank
from layerwise.scenarios.rank.tables import print_ranking
from layerwise.scenarios.rank.words import (
    flip_sentence,
    leeway_sentence,
    quantity,
    short_reason,
    verdict,
)
from layerwise.sim.memory import MemoryBudget
from layerwise.sim.plan.errors import (
    LayerwiseError,
    PlacementError,
    ProfileMismatchError,
    SpecError,
)
from layerwise.sim.plan.hardware import GPUS, ClusterSpec, SlowParts, dgx_cluster
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.scenario import PlacementSpec, Scenario, place
from layerwise.sim.plan.workload import Workload
from layerwise.sim.predict import predict
from layerwise.sim.uncertainty import Contribution, Uncertainty
from tests.scenarios.conftest import Run
from tests.synthetic import synthetic_profile

H100 = GPUS["h100-sxm"]
SMALL = ModelSpec(
    name="small",
    num_layers=8,
    hidden_size=1024,
    intermediate_size=4096,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=128,
)
WORK = Workload(batch_size=8, context_tokens=1000)
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 8,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
}


def cluster_of(gpu: str, num_gpus: int, gpus_per_node: int = 0) -> ClusterSpec:
    asked = RankInputs(model="paper-16", gpu=gpu, num_gpus=num_gpus, gpus_per_node=gpus_per_node)
    return resolve(asked).cluster


def model_named(text: str) -> ModelSpec:
    return resolve(RankInputs(model=text)).model


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    return rank(SMALL, dgx_cluster(H100, 4), WORK, synthetic_profile())


def budget(total_bytes: int = 10) -> MemoryBudget:
    return MemoryBudget(
        rank=0,
        weight_bytes=0,
        kv_bytes=total_bytes,
        activation_bytes=0,
        communication_bytes=0,
        slack_bytes=0,
        reserved_bytes=0,
        capacity_bytes=100,
    )


def unsure(**half_widths: float) -> Uncertainty:
    """Each op decides the whole step; the names are kinds of op."""
    contributions = tuple(
        Contribution(
            name=kind,
            kind=kind,
            dimensions=(1.0,),
            share=1.0,
            half_width=width,
            distance=0.0,
            is_beyond=False,
        )
        for kind, width in half_widths.items()
    )
    return Uncertainty(contributions=contributions, step_factor=1.0)


def candidate(
    tokens_per_s: float,
    tpot_s: float = 0.01,
    uncertainty: Uncertainty | None = None,
    *,
    layout: tuple[int, int, int] = (1, 1, 1),
    total_bytes: int = 10,
) -> Candidate:
    tensor, pipeline, data = layout
    return Candidate(
        layout=Layout(tensor_parallel=tensor, pipeline_parallel=pipeline, data_parallel=data),
        batch_size=8,
        num_microbatches=1,
        tokens_per_s=tokens_per_s,
        tpot_s=tpot_s,
        ttft_s=0.1,
        share={"hbm": 0.7, "link": 0.1},
        bubble=0.2,
        memory=budget(total_bytes),
        num_extrapolated_ops=0,
        is_steady=True,
        uncertainty=uncertainty,
    )


def ranked(*candidates: Candidate, tpot_below_s: float | None = None) -> Ranking:
    asked = Asked(model=SMALL, cluster=dgx_cluster(H100, 4), workload=WORK)
    return Ranking(
        asked=asked,
        candidates=candidates,
        front=pareto(candidates),
        refused=(),
        tpot_below_s=tpot_below_s,
        flips=(),
        nearest=None,
        remedies=(),
        needed=None,
    )


def printed(ranking: Ranking, *, everything: bool = False) -> str:
    out = io.StringIO()
    print_ranking(ranking, Console(file=out, width=100), everything=everything)
    return out.getvalue()


# What is enumerated.


def naive_stages(
    model: ModelSpec, cluster: ClusterSpec, workload: Workload
) -> set[tuple[object, ...]]:
    """Every placement that a scenario can ask for, tried one by one, told apart by its stages."""
    numbers = range(1, cluster.num_gpus + 1)
    specs = [
        PlacementSpec(
            strategy="tensor-pipeline", tensor_parallel=t, pipeline_parallel=p, data_parallel=d
        )
        for t, p, d in itertools.product(numbers, repeat=3)
    ] + [PlacementSpec(strategy="layer-wise", data_parallel=d) for d in numbers]
    found: set[tuple[object, ...]] = set()
    for spec in specs:
        scenario = Scenario(
            name="", model=model, cluster=cluster, placement=spec, workload=workload
        )
        try:
            placement = place(scenario)
        except SpecError:
            continue
        if placement.num_ranks == cluster.num_gpus:
            found.add(placement.replicas)
    return found


@pytest.mark.parametrize(
    ("num_gpus", "batch"), [(1, 8), (4, 8), (7, 7), (8, 12), (12, 24), (16, 128), (16, 6)]
)
def test_layouts_are_those_that_a_naive_search_finds(num_gpus: int, batch: int) -> None:
    workload = Workload(batch_size=batch)
    # One node: groups that straddle nodes are left out on purpose.
    cluster = cluster_of("h100-sxm", num_gpus, num_gpus)
    layouts, _ = layouts_of(SMALL, cluster, workload, None)
    stages = [
        place(
            Scenario(
                name="", model=SMALL, cluster=cluster, placement=layout.spec, workload=workload
            )
        ).replicas
        for layout in layouts
    ]

    assert len(stages) == len(set(stages))
    assert set(stages) == naive_stages(SMALL, cluster, workload)


def test_every_way_to_factor_the_gpus_is_a_layout_or_refused_with_its_reason() -> None:
    layouts, refused = layouts_of(SMALL, dgx_cluster(H100, 8), WORK, None)

    assert 10 == len(layouts) + len(refused)
    assert ["TP=8"] == [each.name for each in refused]
    assert "does not divide model.num_key_value_heads=4" in refused[0].reason


def test_groups_that_straddle_nodes_unevenly_are_refused() -> None:
    _, refused = layouts_of(SMALL, cluster_of("h100-sxm", 12), Workload(batch_size=12), None)

    assert "some groups lie in one node of 6 GPUs" in next(
        each.reason for each in refused if each.name == "TP=4 x DP=3"
    )


def test_one_shot_is_tried_where_the_profile_has_its_table() -> None:
    profile = synthetic_profile()
    profile = replace(
        profile,
        transfers=profile.transfers | {"all_reduce.one_shot.4": profile.transfers["send.nvlink4"]},
    )
    without, _ = layouts_of(SMALL, dgx_cluster(H100, 4), WORK, None)
    layouts, _ = layouts_of(SMALL, dgx_cluster(H100, 4), WORK, profile)

    assert not any(layout.all_reduce == "one_shot" for layout in without)
    assert "TP=4, 1-shot" in [layout.name for layout in layouts]


@pytest.mark.parametrize(
    ("limit", "stages", "expected"),
    [(8, 1, (1, 2, 4, 8)), (8, 3, (1, 2, 3, 4, 6, 8)), (2, 16, (1, 2)), (1, 1, (1,))],
)
def test_grid_of_microbatches(limit: int, stages: int, expected: tuple[int, ...]) -> None:
    assert expected == microbatch_grid(limit, stages)


def test_no_neighbour_of_the_best_number_of_microbatches_is_better(ranking: Ranking) -> None:
    profile = synthetic_profile()
    best = next(each for each in ranking.best if each.layout.pipeline_parallel == 4)
    neighbours = [best.num_microbatches + step for step in (-1, 1)]
    rates = [
        predict(ranking.asked.scenario(best.layout, number), profile).tokens_per_s
        for number in neighbours
        if 1 <= number <= WORK.batch_size
    ]

    assert rates
    assert best.tokens_per_s > max(rates)


def test_a_fixed_number_of_microbatches_is_kept() -> None:
    fixed = replace(WORK, num_microbatches=4)
    found = rank(SMALL, dgx_cluster(H100, 4), fixed, synthetic_profile())

    assert {4} == {each.num_microbatches for each in found.candidates}
    # Four replicas of two sequences have no four microbatches.
    assert "DP=4" not in [each.layout.name for each in found.candidates]


# Order, and figures.


def test_golden_order_of_a_small_case(ranking: Ranking) -> None:
    expected = [
        (
            each.layout,
            predict(
                ranking.asked.scenario(each.layout, each.num_microbatches), synthetic_profile()
            ),
        )
        for each in ranking.candidates
    ]
    rates = [found.tokens_per_s for _, found in expected]

    assert GOLDEN == [each.layout.name for each in ranking.best]
    assert rates == [each.tokens_per_s for each in ranking.candidates]
    assert rates == sorted(rates, reverse=True)


# Launches decide a model this small: whoever divides a layer pays for meeting.
GOLDEN = [
    "DP=4",
    "TP=2 x DP=2, 1-shot",
    "TP=4, 1-shot",
    "layer-wise PP=2 x DP=2",
    "TP=2 x PP=2, 1-shot",
    "layer-wise PP=4",
    "TP=2 x DP=2",
    "TP=2 x PP=2",
    "TP=4",
]


def test_time_to_first_token_is_one_prompts_prefill(ranking: Ranking) -> None:
    layout = next(c.layout for c in ranking.best if c.layout.name == "layer-wise PP=4")
    prompt = Workload(phase="prefill", batch_size=1, context_tokens=1000, num_microbatches=1)
    scenario = replace(ranking.asked.scenario(layout), workload=prompt)
    expected = predict(scenario, synthetic_profile()).step_s

    assert {expected} == {c.ttft_s for c in ranking.candidates if c.layout == layout}


def test_what_does_not_fit_comes_last_and_fits_only_leaves_it_out() -> None:
    # The weights of all layers are 0.25 GB: room for some layouts, not for all on one GPU.
    profile = replace(synthetic_profile(), reserved_bytes=0)
    cluster = dgx_cluster(replace(H100, hbm_bytes=250 * 10**6), 4)
    everyone = rank(SMALL, cluster, WORK, profile)
    fitting = rank(SMALL, cluster, WORK, profile, fits_only=True)
    fits = [each.fits for each in everyone.candidates]

    assert {True, False} == set(fits)
    assert fits == sorted(fits, reverse=True)
    assert [c for c in everyone.candidates if c.fits] == list(fitting.candidates)
    assert everyone.winner == fitting.winner
    assert "of 0.2 GB" in printed(everyone)


def test_processes_find_what_one_finds(ranking: Ranking) -> None:
    found = rank(SMALL, dgx_cluster(H100, 4), WORK, synthetic_profile(), workers=2)

    assert ranking == found


def test_front_is_what_nothing_beats_in_both() -> None:
    slow, fast, beaten, same = (
        candidate(100, 0.01),
        candidate(200, 0.02),
        candidate(150, 0.03),
        candidate(100, 0.02),
    )

    assert (slow, fast) == pareto([beaten, same, fast, slow])


def test_front_goes_over_batches_and_no_candidate_beats_it(ranking: Ranking) -> None:
    batches = [each.batch_size for each in ranking.front]

    assert len(batches) > 1
    assert batches == sorted(batches)
    assert ranking.front[-1] == ranking.winner


# Ties.


def test_a_difference_inside_the_interval_is_a_tie() -> None:
    one = candidate(100, uncertainty=unsure(matmul=0.03))
    other = candidate(97, uncertainty=unsure(norm=0.03))

    assert is_tied(one, other)
    assert not is_tied(one, replace(other, tokens_per_s=90))


def test_errors_that_both_share_cancel() -> None:
    one = candidate(100, uncertainty=unsure(matmul=0.03))

    assert not is_tied(one, candidate(97, uncertainty=unsure(matmul=0.03)))


def test_without_intervals_nothing_is_called_a_tie() -> None:
    assert not is_tied(candidate(100), candidate(99.9))


def test_the_rival_is_the_best_outside_the_tie_and_both_are_said() -> None:
    found = ranked(
        candidate(100, uncertainty=unsure(matmul=0.03), layout=(4, 1, 1)),
        candidate(99, uncertainty=unsure(norm=0.03), layout=(2, 2, 1)),
        candidate(50, uncertainty=unsure(norm=0.03), layout=(1, 4, 1)),
    )

    assert ["TP=2 x PP=2"] == [each.layout.name for each in found.tied]
    assert (
        "TP=4 is predicted fastest, but TP=2 x PP=2 cannot be told from it: their differences lie "
        "inside the 90 % interval of the ratio. Clearly behind: layer-wise PP=4 (-50.0 %)."
    ) == verdict(found)
    assert "= TP=2 x PP=2" in printed(found)


# What flips it.


@pytest.mark.parametrize("at", [0.13, 0.4, 0.5, 1.7, 3.0, 9.9])
def test_bisection_finds_where_a_lead_is_lost(at: float) -> None:
    side = 1 if at > 1 else -1
    found = crossing(lambda factor: side * math.log(at / factor), HIGH if at > 1 else LOW)

    assert found == pytest.approx(at, rel=0.011)


def test_the_factor_found_is_on_the_flipped_side() -> None:
    found = crossing(lambda factor: math.log(3 / factor), HIGH)

    assert found is not None
    assert found >= 3


def test_nothing_beyond_the_bound_is_found() -> None:
    assert crossing(lambda factor: math.log(10.5 / factor), HIGH) is None
    assert crossing(lambda factor: math.log(factor / 0.09), LOW) is None


def test_of_two_flips_the_smaller_change_is_nearest() -> None:
    def lead(factor: float) -> float:
        return min(math.log(factor / 0.4), math.log(2 / factor))

    found = find_flip(KNOBS[0], lead, dgx_cluster(H100, 4))

    assert found.nearest == found.above == pytest.approx(2, rel=0.011)
    assert found.below == pytest.approx(0.4, rel=0.011)
    assert math.log(0.5 / 0.4) == pytest.approx(found.lead_at_half)


@pytest.mark.parametrize(("lead", "nearest"), [(0.1, None), (-0.1, 1.0)])
def test_eager_launches_are_a_switch(lead: float, nearest: float | None) -> None:
    assert nearest == find_flip(EAGER, lambda _: lead, dgx_cluster(H100, 4)).nearest


def with_flips(*flips: Flip) -> Ranking:
    found = ranked(candidate(124, layout=(4, 1, 1)), candidate(100, layout=(1, 4, 1)))
    return replace(found, flips=flips)


def test_what_would_flip_it_is_one_sentence_from_the_smallest_change() -> None:
    cluster = dgx_cluster(H100, 16)
    nvlink, l2 = (
        next(k for k in knobs_of(cluster, "graph") if k.name == name)
        for name in ("NVLink bandwidth", "L2 size")
    )
    found = with_flips(
        Flip(knob=l2, value=l2.value(cluster), above=61.0),
        Flip(knob=nvlink, value=nvlink.value(cluster), below=0.4),
        Flip(knob=LATENCY, value=1.0),
    )

    assert "TP=4 is predicted fastest, ahead of layer-wise PP=4 (-19.4 %)." == verdict(found)
    assert (
        "To put layer-wise PP=4 ahead instead would take an NVLink bandwidth of 0.4x (180 GB/s), or "
        "an L2 size of 61x (3.2 GB); nothing else within 10x."
    ) == flip_sentence(found)


@pytest.mark.parametrize(("more", "said"), [(1, "1 larger change would"), (2, "2 larger changes")])
def test_flips_beyond_the_third_are_counted(more: int, said: str) -> None:
    flips = [Flip(knob=LATENCY, value=1.0, above=2.0 + n) for n in range(3 + more)]

    assert said in flip_sentence(with_flips(*flips))


def test_when_nothing_flips_it_that_is_said() -> None:
    found = with_flips(Flip(knob=LATENCY, value=1.0), Flip(knob=EAGER, value=1, lead_switched=1))

    assert flip_sentence(found).startswith("Nothing puts layer-wise PP=4 ahead: no")


def test_a_flip_that_was_found_does_flip_the_simulation(ranking: Ranking) -> None:
    winner, rival = ranking.winner, ranking.rival
    assert winner is not None
    assert rival is not None
    flip = next(each for each in ranking.flips if each.nearest and each.knob.kind == "field")
    changed = ranking.asked.with_knob(flip.knob, flip.nearest or 1.0)
    first, second = (
        predict(changed.scenario(c.layout, c.num_microbatches), synthetic_profile()).tokens_per_s
        for c in (winner, rival)
    )

    assert first <= second
    assert first == pytest.approx(second, rel=0.05)


@pytest.mark.parametrize(
    ("nodes", "launch", "missing"),
    [(1, "graph", "NIC bandwidth"), (2, "eager", "eager launches")],
)
def test_knobs_are_those_that_the_cluster_has(nodes: int, launch: str, missing: str) -> None:
    names = [knob.name for knob in knobs_of(dgx_cluster(H100, 8 * nodes), launch)]  # type: ignore[arg-type]

    assert missing not in names
    assert "NVLink bandwidth" in names


def test_a_smaller_l2_sets_no_more_aside_than_it_has() -> None:
    asked = Asked(model=SMALL, cluster=dgx_cluster(H100, 4), workload=WORK)
    knob = next(knob for knob in KNOBS if knob.name == "L2 size")
    gpu = asked.with_knob(knob, 0.1).cluster.gpu

    assert round(0.1 * H100.l2_bytes) == gpu.l2_bytes == gpu.persisting_l2_bytes


def test_latency_is_a_knob_of_every_message() -> None:
    asked = Asked(
        model=SMALL, cluster=dgx_cluster(H100, 4), workload=WORK, profile=synthetic_profile()
    )
    before, after = (
        each.cost().transfer(1, asked.cluster.nvlink)
        for each in (asked, asked.with_knob(LATENCY, 3.0))
    )

    assert 3 * before.latency_s == pytest.approx(after.latency_s)
    assert before.bytes_per_s == after.bytes_per_s


# What people write, and what they read.


@pytest.mark.parametrize(
    ("text", "expected"), [("20ms", 0.02), ("0.02", 0.02), ("500 us", 5e-4), (None, None)]
)
def test_tpot_with_a_unit(text: str | None, expected: float | None) -> None:
    assert expected == tpot_s_of(text)


def test_fields_are_set_with_units() -> None:
    found = resolve(RankInputs(model="paper-16", changes=("cluster.gpu.hbm_bytes=96GB",)))

    assert 96 * 10**9 == found.cluster.gpu.hbm_bytes


@pytest.mark.parametrize(
    ("gpus", "nodes", "per_node"), [(16, 2, 8), (12, 2, 6), (1, 1, 1), (7, 1, 7)]
)
def test_nodes_are_filled(gpus: int, nodes: int, per_node: int) -> None:
    cluster = cluster_of("h100-sxm", gpus)

    assert (nodes, per_node) == (cluster.num_nodes, cluster.gpus_per_node)


@pytest.mark.parametrize("text", ["h100-sxm", "H100-SXM", "H100-sxm"])
def test_a_gpu_is_known_in_any_case(text: str) -> None:
    assert H100 == cluster_of(text, 2).gpu


def test_a_peak_moves_with_float32s() -> None:
    (knob,) = [knob for knob in KNOBS if knob.name == "peak FLOP rate"]

    assert {
        "cluster.gpu.peak_flops_per_s": 2 * 989.4e12,
        "cluster.gpu.peak_float32_flops_per_s": 2 * 67e12,
    } == knob.values(dgx_cluster(H100, 1), 2.0)


def test_the_legend_says_what_is_assumed(ranking: Ranking) -> None:
    said = " ".join(printed(ranking).split())
    kernels = synthetic_profile().kernels

    assert "bound by: what limits the GPU for most of the step, not how near it is to that" in said
    assert f"Attention kernels assumed: {kernels.decode_attention} (decode)" in said


def test_model_from_a_folder_is_that_of_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))

    assert model_named(str(tmp_path)) == model_named(str(tmp_path / "config.json"))
    assert tmp_path.name == model_named(str(tmp_path)).name


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: tpot_s_of("20GB"), "has the unit 'GB'"),
        (lambda: tpot_s_of("-1ms"), "is not positive"),
        (lambda: model_named("nope"), "--model='nope' is neither a preset nor a file"),
        (lambda: cluster_of("h1000", 8), "--gpu='h1000' is not known"),
        (lambda: cluster_of("h100-sxm", 0), "--gpus=0 is not positive"),
        (lambda: cluster_of("h100-sxm", 10**9), "use at most 16384"),
        (lambda: cluster_of("h100-sxm", 12, 8), "does not fill nodes of 8"),
        (
            lambda: resolve(RankInputs(model="paper-16", changes=("placement.num_gpus=3",))),
            "is what a ranking decides itself",
        ),
        (lambda: rank(SMALL, dgx_cluster(H100, 4), Workload(phase="prefill")), "use 'decode'"),
    ],
)
def test_bad_input_says_what_to_change(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(LayerwiseError) as caught:
        call()

    assert expected in str(caught.value)


def test_a_profile_of_another_gpu_is_refused() -> None:
    with pytest.raises(ProfileMismatchError):
        rank(SMALL, dgx_cluster(GPUS["h200"], 4), WORK, synthetic_profile())


def test_when_every_placement_is_invalid_the_reasons_and_a_number_of_gpus_are_said() -> None:
    with pytest.raises(PlacementError) as caught:
        rank(SMALL, cluster_of("h100-sxm", 11, 1), WORK, synthetic_profile())

    assert "cluster.num_gpus=11 has no valid placement of small at batch 8" in str(caught.value)
    assert "leave some without a layer" in str(caught.value)
    assert "use 10 GPUs" in str(caught.value)


def test_a_slow_gpu_that_fewer_gpus_would_not_have_hides_no_number_of_them() -> None:
    eleven = replace(cluster_of("h100-sxm", 11, 1), slow=SlowParts(gpus=(10,), clock_share=0.5))

    with pytest.raises(PlacementError, match="use 10 GPUs"):
        rank(SMALL, eleven, WORK, synthetic_profile())


def test_nothing_fits_is_an_answer_with_the_nearest_remedy() -> None:
    heavy = Workload(batch_size=8, context_tokens=10_000_000)
    found = rank(SMALL, dgx_cluster(H100, 2), heavy, synthetic_profile(), fits_only=True)

    assert () == found.candidates
    assert found.winner is None
    assert found.nearest is not None
    assert "Nothing fits. Nearest is" in verdict(found)
    assert "any one of these makes it fit: a context of at most" in verdict(found)
    assert "As asked, it fits on" in verdict(found)
    assert "times as many GPUs" not in verdict(found)
    assert "Nothing fits." in " ".join(printed(found).split())


def test_a_tpot_that_only_a_smaller_batch_meets_names_that_batch(ranking: Ranking) -> None:
    assert ranking.winner is not None
    limit_s = 0.999 * ranking.winner.tpot_s
    found = rank(SMALL, dgx_cluster(H100, 4), WORK, synthetic_profile(), tpot_below_s=limit_s)

    assert found.winner is None
    assert found.needed is not None
    assert found.needed.tpot_s < limit_s
    assert f"A batch of {found.needed.batch_size} meets it" in verdict(found)


def test_many_tied_are_counted() -> None:
    sure = unsure(matmul=0.03)
    others = [candidate(99, uncertainty=unsure(norm=0.03), layout=(1, 1, n)) for n in range(2, 5)]
    found = ranked(candidate(100, uncertainty=sure, layout=(4, 1, 1)), *others)

    assert "but 3 others cannot be told from it" in verdict(found)


def roomy(tpot_below_s: float | None) -> Ranking:
    return rank(SMALL, dgx_cluster(H100, 4), WORK, synthetic_profile(), tpot_below_s=tpot_below_s)


def test_a_bar_met_with_ease_says_what_it_leaves_room_for(ranking: Ranking) -> None:
    assert ranking.winner is not None
    limit_s = 3 * ranking.winner.tpot_s
    found = roomy(limit_s)
    larger, fewer = found.leeway.larger, found.leeway.fewer

    assert larger is not None
    assert fewer is not None
    assert larger.batch_size in (16 << k for k in range(20))
    assert fewer.layout.num_gpus in (1, 2)
    assert (WORK.batch_size, 4) == (fewer.batch_size, larger.layout.num_gpus)
    assert larger.meets(limit_s)
    assert fewer.meets(limit_s)
    said = leeway_sentence(found)
    assert said.startswith(f"The bar leaves room: {larger.batch_size:,} sequences fit under it (")
    assert f"would do for 8 ({fewer.layout.name}, " in said
    assert said in " ".join(printed(found).split())


def test_leeway_is_what_a_prediction_of_that_scenario_says(ranking: Ranking) -> None:
    assert ranking.winner is not None
    larger = roomy(3 * ranking.winner.tpot_s).leeway.larger
    assert larger is not None
    asked = replace(ranking.asked, workload=replace(WORK, batch_size=larger.batch_size))
    scenario = asked.scenario(larger.layout, larger.num_microbatches)

    assert predict(scenario, synthetic_profile()).tpot_s == larger.tpot_s


@pytest.mark.parametrize("times", [None, 1.5])
def test_no_bar_or_a_near_one_leaves_no_room(ranking: Ranking, times: float | None) -> None:
    assert ranking.winner is not None
    found = roomy(times and times * ranking.winner.tpot_s)

    assert Leeway() == found.leeway
    assert "" == leeway_sentence(found)


def test_a_tpot_that_nothing_meets_says_so() -> None:
    found = rank(SMALL, dgx_cluster(H100, 2), WORK, synthetic_profile(), tpot_below_s=1e-9)

    assert "No smaller batch meets it either." in verdict(found)


def test_one_gpu_has_one_placement() -> None:
    found = rank(SMALL, dgx_cluster(H100, 1), WORK, synthetic_profile())

    assert ["one GPU"] == [each.layout.name for each in found.best]
    assert "one GPU is the only placement that qualifies." == verdict(found)
    assert "" == flip_sentence(found)


def test_a_gpu_without_a_profile_is_ranked_uncalibrated_and_it_is_said() -> None:
    found = rank(SMALL, dgx_cluster(GPUS["b200"], 2), WORK)

    assert "uncalibrated" == found.asked.belief
    assert all(each.interval is None for each in found.candidates)
    assert "No calibration profile for b200: no intervals" in printed(found)


def test_a_layout_whose_table_the_profile_lacks_is_left_out_with_that_reason() -> None:
    profile = synthetic_profile()
    transfers = {k: v for k, v in profile.transfers.items() if k != "all_reduce.nccl.2"}
    found = rank(SMALL, dgx_cluster(H100, 2), WORK, replace(profile, transfers=transfers))

    assert ["TP=2"] == [each.name for each in found.refused]
    assert "all_reduce.nccl.2" in found.refused[0].reason


def test_short_reason_names_the_largest_part_first() -> None:
    full = replace(budget(), kv_bytes=90 * 10**9, weight_bytes=4 * 10**9, capacity_bytes=80 * 10**9)

    assert "KV 90.0 + weights 4.0 + other 0.0 = 94.0 of 80.0 GB" == short_reason(full)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("cluster.nvlink.bytes_per_s", 180e9, "180 GB/s"),
        ("cluster.gpu.hbm_bytes_per_s", 3.35e12, "3.35 TB/s"),
        ("cluster.gpu.peak_flops_per_s", 5e14, "500 TFLOP/s"),
        ("cluster.gpu.l2_bytes", 5.2e6, "5.2 MB"),
    ],
)
def test_quantities_have_the_unit_of_a_person(key: str, value: float, expected: str) -> None:
    assert expected == quantity(key, value)


def test_long_tables_are_cut_and_all_prints_everything() -> None:
    layouts = [(1, 1, number) for number in range(1, 20)]
    found = ranked(*(candidate(100 - n, layout=layout) for n, layout in enumerate(layouts)))
    short, full = printed(found), printed(found, everything=True)

    assert "… and 7 more (--all)" in short
    assert "DP=19" not in short
    assert "DP=19" in full
    assert "more (--all)" not in full


def test_names_from_files_are_shown_as_text() -> None:
    found = ranked(candidate(100))
    named = replace(found.asked, model=replace(SMALL, name="[red]x\x1b[2J</script>"))

    assert "[red]x?[2J</script>" in printed(replace(found, asked=named))


def test_the_command_prints_what_the_library_finds(
    layerwise: Run, tmp_path: Path, profile_file: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    options = [
        "rank",
        "--model",
        tmp_path,
        "--gpus",
        4,
        "--batch",
        8,
        "--context",
        1000,
        "--profile",
        profile_file,
    ]
    ran, data = layerwise(*options), json.loads(layerwise(*options, "--json").out)
    lines = ran.out.splitlines()

    assert 0 == ran.code
    assert max(len(line) for line in lines) <= 100
    assert (
        next(line for line in lines if line.startswith("* ")).split()[1]
        == (data["winner"]["placement"].split()[0])
    )
    assert " ".join(data["verdict"].split()) in " ".join(ran.out.split())
    assert data["winner"]["tpot_s"] == 8 / data["winner"]["tokens_per_s"]
    assert {each["placement"] for each in data["candidates"]} >= {"TP=4", "layer-wise PP=4"}


def words_drawn(found: Ranking, path: Path) -> str:
    pytest.importorskip("matplotlib")
    from layerwise.scenarios.rank.plot import write_plot

    write_plot(found, path)
    return path.read_text()


def test_the_picture_names_batch_context_and_the_first_rivals(
    tmp_path: Path, ranking: Ranking
) -> None:
    drawn = words_drawn(ranking, tmp_path / "front.svg")

    assert "small on 4x h100-sxm, batch 8, 1,000 tokens of context" in drawn
    assert [1, 1, 1, 0] == [drawn.count(f">{each.layout.name}<") for each in ranking.best[1:5]]


@pytest.mark.parametrize(("times", "said"), [(1.2, ">bar: "), (100, "ms, beyond the right edge)<")])
def test_a_bar_is_drawn_where_it_is_near_and_told_where_not(
    tmp_path: Path, ranking: Ranking, times: float, said: str
) -> None:
    limit_s = times * max(each.tpot_s for each in ranking.best)

    assert said in words_drawn(replace(ranking, tpot_below_s=limit_s), tmp_path / "front.svg")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_front_is_drawn(tmp_path: Path, ranking: Ranking, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    from layerwise.scenarios.rank.plot import write_plot

    path = tmp_path / f"front.{suffix}"

    assert "points on the front" in write_plot(ranking, path)
    assert path.stat().st_size > 5000


def test_a_picture_in_another_format_is_refused_before_any_work(layerwise: Run) -> None:
    ran = layerwise("rank", "--model", "paper-16", "--plot", "front.txt")

    assert (2, "") == (ran.code, ran.out)
    assert "end it in .svg, .pdf, .png" in ran.err


FILE = """
[model]
preset = "paper-16"
num_layers = 8
[cluster]
num_gpus = 8
gpus_per_node = 4
[placement]
strategy = "tensor-pipeline"
tensor_parallel = 8
[workload]
batch_size = 24
context_tokens = 500
[run]
launch = "eager"
only_rank = 3
[kernels]
all_reduce = "one_shot"
"""


@pytest.fixture
def scenario_path(tmp_path: Path) -> Path:
    path = tmp_path / "asked.toml"
    path.write_text(FILE)
    return path


def test_a_scenario_file_is_ranked_whatever_it_places(scenario_path: Path) -> None:
    asked = resolve(RankInputs(scenario=scenario_path))

    assert (8, 8, 4) == (
        asked.model.num_layers,
        asked.cluster.num_gpus,
        asked.cluster.gpus_per_node,
    )
    assert Workload(batch_size=24, context_tokens=500) == asked.workload
    assert ("eager", -1, None) == (asked.run.launch, asked.run.only_rank, asked.given_all_reduce)


def test_options_replace_what_the_file_says_and_settings_what_either_says(
    scenario_path: Path,
) -> None:
    options = RankInputs(
        scenario=scenario_path,
        model="paper-30b",
        gpu="H200",
        num_gpus=6,
        batch_size=12,
        launch="graph",
        changes=("workload.batch_size=6", "cluster.gpu.num_sms=99"),
    )
    asked = resolve(options)

    assert (112, 500, 6) == (
        asked.model.num_layers,
        asked.workload.context_tokens,
        asked.workload.batch_size,
    )
    assert ("h200", 99, 6) == (
        asked.cluster.gpu.name,
        asked.cluster.gpu.num_sms,
        asked.cluster.gpus_per_node,
    )
    assert "graph" == asked.run.launch


def test_the_command_says_what_of_a_file_is_not_ranked(
    layerwise: Run, scenario_path: Path, profile_file: Path
) -> None:
    options = ("--gpus", 2, "--batch", 4, "--profile", profile_file, "--json")
    ran = layerwise("rank", scenario_path, *options)

    assert (8, 500) == (
        json.loads(ran.out)["model"]["num_layers"],
        json.loads(ran.out)["workload"]["context_tokens"],
    )
    assert "left out, as a ranking goes through all: placement, kernels" in ran.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, "--model=None is missing; give it, or a scenario file"),
        ({"changes": ("cluster.num_gpus=0",)}, "--gpus=0 is not positive"),
        ({"changes": ("workload.batch_size=0",)}, "workload.batch_size=0 is not positive"),
    ],
)
def test_what_cannot_be_ranked_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve(RankInputs(**{"model": "paper-16", **options}))


def test_a_wrong_file_is_refused_by_its_name(scenario_path: Path) -> None:
    scenario_path.write_text(FILE.replace("[workload]", "[wrokload]"))

    with pytest.raises(SpecError, match="asked.toml: wrokload=.* did you mean 'workload'"):
        resolve(RankInputs(scenario=scenario_path, num_gpus=4))

"""What placements rest on unchecked: found in their programs, weighed, and counted in a lead."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from layerwise.calibration.data import profile_path
from layerwise.scenarios.rank.asked import Asked, Candidate
from layerwise.scenarios.rank.explore import Explored, explore
from layerwise.scenarios.rank.layouts import Layout
from layerwise.scenarios.rank.ranking import is_tied, widths_of_ratio
from layerwise.scenarios.rank.unvalidated import (
    MEASURED_PAIR,
    PUBLISHED,
    Pairs,
    Part,
    is_public,
    measured_pairs,
    paired,
    width_of_ratio,
)
from layerwise.scenarios.rank.words import advice, unvalidated_sentence, verdict
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.scenario import RunSpec
from layerwise.sim.plan.workload import Workload
from layerwise.sim.profile import Profile, Regime, TransferFit, load_profile
from tests.scenarios.rank.test_rank import candidate, printed, ranked, unsure
from tests.synthetic import synthetic_profile

SMALL = ModelSpec(
    name="small",
    num_layers=4,
    hidden_size=512,
    intermediate_size=1024,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
)
NCCL_4, NCCL_2 = (f"NCCL all-reduces over {number} GPUs (public data)" for number in (4, 2))
ACROSS = "collectives across nodes (derived)"
NIC = "messages over ndr400 (public data)"


def table(latency_s: float, source: str = PUBLISHED) -> TransferFit:
    return TransferFit(
        regimes=(Regime(from_bytes=0, latency_s=latency_s, bytes_per_s=1e18),), source=source
    )


def public(profile: Profile, *names: str) -> Profile:
    """The same, with these tables somebody else's."""
    changed = {name: replace(profile.transfers[name], source=f"x, {PUBLISHED} y") for name in names}
    return replace(profile, transfers=profile.transfers | changed)


def parts(
    tensor: int,
    pipeline: int,
    *public_tables: str,
    per_node: int = 8,
    launch: str = "graph",
    pairs: Pairs | None = None,
) -> dict[str, Part]:
    asked = Asked(
        model=SMALL,
        cluster=dgx_cluster(GPUS["h100-sxm"], tensor * pipeline, per_node),
        workload=Workload(batch_size=4, context_tokens=100, num_microbatches=2),
        run=RunSpec(launch=launch),  # type: ignore[arg-type]
        profile=public(synthetic_profile(), *public_tables),
        pairs=pairs or {},
    )
    layout = Layout(tensor_parallel=tensor, pipeline_parallel=pipeline, data_parallel=1)
    found = explore((asked, layout))
    assert isinstance(found, Explored)
    return {part.name: part for part in found.candidates[0].unvalidated}


def test_what_was_measured_here_is_no_such_part() -> None:
    assert {} == parts(4, 1, per_node=4)


def test_a_public_table_that_the_programs_meet_is_one() -> None:
    found = parts(4, 1, "all_reduce.nccl.4", "all_reduce.nccl.2", per_node=4)

    assert [NCCL_4] == list(found)
    assert 0 < found[NCCL_4].share < 1
    assert found[NCCL_4].carried is None


def test_its_error_is_that_of_two_gpus_weighed_by_its_share() -> None:
    pairs = {"all_reduce.nccl": (table(1e-5), table(1.5e-5, "measured"))}
    part = parts(4, 1, "all_reduce.nccl.4", per_node=4, pairs=pairs)[NCCL_4]

    assert part.carried == pytest.approx(part.share * math.log(1.5))


def test_groups_across_nodes_are_derived_beside_their_nodes_own_table() -> None:
    found = parts(4, 1, "all_reduce.nccl.2", per_node=2)

    assert sorted([NCCL_2, ACROSS]) == sorted(found)
    assert found[ACROSS].carried is None


@pytest.mark.parametrize(("per_node", "names"), [(2, []), (1, [NIC])])
def test_messages_count_where_they_cross_the_wire(per_node: int, names: list[str]) -> None:
    assert names == list(parts(1, 2, "send.ndr400", per_node=per_node))


def test_eager_launches_rest_on_one_hosts_time() -> None:
    found = parts(1, 2, per_node=2, launch="eager")

    assert ["the host's time to launch an op (one machine's)"] == list(found)


def test_without_an_interval_nothing_is_told_apart() -> None:
    layout = Layout(tensor_parallel=2, pipeline_parallel=1, data_parallel=1)
    workload = Workload(batch_size=4, context_tokens=100, num_microbatches=1)
    asked = Asked(model=SMALL, cluster=dgx_cluster(GPUS["b200"], 2), workload=workload)
    found = explore((asked, layout))

    assert isinstance(found, Explored)
    assert ((),) == tuple(each.unvalidated for each in found.candidates)


def part(name: str, share: float, carried: float | None) -> Part:
    return Part(name=name, share=share, carried=carried)


def test_a_table_that_both_rest_on_alike_cancels() -> None:
    one = (part("a", 0.1, 0.03), part("b", 0.2, None))

    assert 0 == width_of_ratio(one, one)
    assert 0.02 == pytest.approx(width_of_ratio(one, (part("a", 0.03, 0.01),)))


def test_errors_of_different_tables_add_up() -> None:
    assert 0.05 == pytest.approx(width_of_ratio((part("a", 1, 0.03),), (part("b", 1, 0.02),)))


def test_what_only_one_rests_on_has_no_share_of_the_other() -> None:
    a, b = part("a", 0.1, 0.01), part("b", 0.2, None)

    assert [(a, part("a", 0.0, 0.0)), (part("b", 0.0, None), b)] == paired((a,), (b,))


def rested(tokens_per_s: float, *unvalidated: Part, layout: tuple[int, int, int]) -> Candidate:
    made = candidate(tokens_per_s, uncertainty=unsure(matmul=0.001), layout=layout)
    return replace(made, unvalidated=unvalidated)


def test_a_lead_inside_the_known_error_is_a_tie() -> None:
    one = rested(100, part("a", 0.1, 0.04), layout=(4, 1, 1))
    other = rested(97, layout=(1, 4, 1))

    assert (pytest.approx(0.0), 0.04) == widths_of_ratio(one, other)
    assert is_tied(one, other)
    assert not is_tied(replace(one, unvalidated=()), other)


def test_an_error_that_nobody_knows_makes_no_tie_and_is_said() -> None:
    found = ranked(
        rested(100, part("a", 0.1, None), layout=(4, 1, 1)), rested(97, layout=(1, 4, 1))
    )

    assert () == found.tied
    assert (
        "Not measured here, and not alike in TP=4 and layer-wise PP=4: a, error not known and not "
        "counted."
    ) == unvalidated_sentence(found)
    assert unvalidated_sentence(found) in " ".join(printed(found).split())


def test_a_tie_and_a_lead_say_what_of_them_is_not_validated() -> None:
    found = ranked(
        rested(100, part("a", 0.1, 0.04), layout=(4, 1, 1)),
        rested(97, layout=(1, 4, 1)),
        rested(90, layout=(2, 2, 1)),
    )

    assert (
        "TP=4 is predicted fastest, but layer-wise PP=4 cannot be told from it: the time of a was not "
        "measured here, and that alone could move the ratio by 4.1 %. Clearly behind: TP=2 x PP=2 "
        "(-10.0 %)."
    ) == verdict(found)
    assert (
        "a, 10 % and 0.0 % of a step, counted as ±4.1 %, as far as two GPUs' were off."
    ) in unvalidated_sentence(found)
    assert "Among the tied, choose by other grounds (time to first token, memory)." == advice(found)


def test_a_lead_says_how_sure_it_is() -> None:
    found = ranked(
        rested(100, part("a", 0.1, 0.04), layout=(4, 1, 1)), rested(90, layout=(2, 2, 1))
    )

    assert (
        "TP=4 is predicted fastest, clearly ahead of TP=2 x PP=2 (-10.0 %); measured costs leave that "
        "±0.0 % (90 %), and what was not measured here may be off by 4.1 %."
    ) == verdict(found)
    assert "" == advice(found)


def test_a_part_whose_error_moves_nothing_is_not_said() -> None:
    found = ranked(
        rested(100, part("a", 0.1, 0.0001), layout=(4, 1, 1)), rested(90, layout=(2, 2, 1))
    )

    assert "" == unvalidated_sentence(found)


def test_what_both_rest_on_alike_is_not_said() -> None:
    same = part("a", 0.1, 0.04)
    found = ranked(rested(100, same, layout=(4, 1, 1)), rested(90, same, layout=(1, 4, 1)))

    assert "" == unvalidated_sentence(found)


def test_pairs_are_other_peoples_tables_and_own_ones_of_two_gpus() -> None:
    pairs = measured_pairs()

    assert "all_reduce.nccl" in pairs
    assert {(True, False)} == {
        (is_public(theirs), is_public(own)) for theirs, own in pairs.values()
    }


@pytest.mark.parametrize("gpu", ["h100-sxm", MEASURED_PAIR])
def test_every_shipped_table_says_whose_timings_it_was_fitted_to(gpu: str) -> None:
    tables = load_profile(profile_path(gpu)).transfers

    assert [] == [
        name
        for name, each in tables.items()
        if not is_public(each) and "two-h200" not in each.source
    ]
